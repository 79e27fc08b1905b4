"""`npgpt plot`: the curves of one or several runs as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from npgpt.cli.arguments import parse
from npgpt.errors import UsageError
from npgpt.inspection.metrics import read_metrics, run_names
from npgpt.inspection.pictures import picture_format
from npgpt.inspection.plots import PlottedRun, plot_runs


@dataclass(frozen=True)
class Options:
    """Draw loss, learning rate, gradient norm and tokens per second of one or several runs in one picture."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN …")]
    """Folders of runs; also of one that is still training, or that was cut off."""
    out: Path
    """The picture's file, replaced if it is there; its name ends with .png or .svg."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """What the curves go over: steps, tokens read, or seconds of training."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "plot", arguments)
    if not options.runs:
        raise UsageError("no run is named (npgpt plot RUN … --out FILE)")
    picture_format(options.out)
    folders = list({folder.resolve(): folder for folder in options.runs}.values())
    runs    = [PlottedRun(name, read_metrics(folder))
               for name, folder in zip(run_names(folders), folders, strict=True)]
    plot_runs(runs, options.out, options.x)
    print(f"picture: {options.out}")
    return 0
