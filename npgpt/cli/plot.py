"""`npgpt plot`: the curves of one or several runs as a picture, or for TensorBoard."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from npgpt.cli.arguments import parse
from npgpt.cli.verify import find_reference
from npgpt.errors import DataError, UsageError
from npgpt.inspection.event_files import write_event_file
from npgpt.inspection.metrics import read_metrics, run_names
from npgpt.inspection.pictures import picture_format
from npgpt.inspection.plots import Band, PlottedRun, plot_runs
from npgpt.inspection.verification import normal_range
from npgpt.training.runs import run_meant_by, run_of


@dataclass(frozen=True)
class Options:
    """Draw loss, learning rate, gradient norm and tokens per second of one or several runs in one picture, or
    write them into event files for TensorBoard."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN …")]
    """Folders of runs; also of one that is still training, or that was cut off."""
    out: Path | None = None
    """The picture's file, replaced if it is there; its name ends with .png or .svg."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """What the curves go over: steps, tokens read, or seconds of training."""
    reference: bool = False
    """Shade where validation losses are normal, as npgpt verify judges them; the first run must be of a
    preset that has reference curves."""
    tensorboard: Path | None = None
    """A folder for tensorboard --logdir: each run becomes an event file in a folder of its name. Called
    again, it adds what a run has recorded since."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "plot", arguments)
    if not options.runs:
        raise UsageError("no run is named (npgpt plot RUN … --out FILE)")
    if not (options.out or options.tensorboard):
        raise UsageError("say where the curves go: --out FILE.png or FILE.svg, or --tensorboard LOGDIR")
    if options.reference and options.x != "step":
        raise UsageError("--reference goes over steps: leave out --x")
    if options.out:
        picture_format(options.out)
    folders = list({folder.resolve(): folder for folder in options.runs}.values())
    for folder in folders:
        if run_path := run_of(folder):
            raise DataError(f"{folder} is a checkpoint, and has no curves: use {run_path}")
        if not folder.is_dir():
            raise DataError(f"{folder} is not a run's folder: there is no such folder{run_meant_by(folder)}")
    runs    = [PlottedRun(name, read_metrics(folder))
               for name, folder in zip(run_names(folders), folders, strict=True)]
    if options.out:
        plot_runs(runs, options.out, options.x, _band(folders[0]) if options.reference else None)
        print(f"picture: {options.out}")
    if options.tensorboard:
        for (name, curves), folder in zip(runs, folders, strict=True):
            write_event_file(curves, _begun(folder), options.tensorboard / name)
        print(f"event files: look at them with  tensorboard --logdir {options.tensorboard}")
    return 0


def _band(folder: Path) -> Band:
    """Where the validation loss of a run like this one would lie."""
    _, reference, same = find_reference(folder)
    return Band(f"normal for preset {reference.preset}", reference.steps,
                *normal_range(reference, "val_loss", same))


def _begun(folder: Path) -> float:
    """When a run was made: the tokens are written once, the settings and metrics again when it is resumed."""
    return next((folder / "data").glob("train.*"), folder).stat().st_mtime
