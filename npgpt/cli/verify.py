"""`npgpt verify`: is the loss of a run normal at this step?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt.cli.arguments import parse
from npgpt.data.examples import Examples
from npgpt.inspection.metrics import read_metrics
from npgpt.inspection.reference import (
    QUANTITIES,
    Reference,
    read_reference,
    reference_names,
    sample_like,
    settings_that_matter,
    text_of,
)
from npgpt.inspection.verification import (
    RETRACED,
    CurveError,
    Row,
    allowed,
    judge,
    nearest_preset,
    retrace,
    same_text,
    sentence,
    settings_that_differ,
)
from npgpt.training.config import preset_names, read_settings
from npgpt.training.finetuning import FinetuneConfig
from npgpt.training.runs import Run, open_run


@dataclass(frozen=True)
class Options:
    """Compare a run of a known preset, also one that is still training, with npgpt's own runs of it with
    several seeds, and say whether its losses and gradient norms are normal for the steps it has reached. Exit
    status 0 if they are, 1 if not."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run."""


class Comparable(NamedTuple):
    """A run, and the reference of its preset; same: of the very same text."""

    run: Run
    reference: Reference
    same: bool


def run(arguments: list[str]) -> int:
    options = parse(Options, "verify", arguments)
    found, reference, same = find_reference(options.run)
    curves  = read_metrics(options.run)
    rows    = judge(sample_like(reference, curves), reference, same)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{options.run}: preset {reference.preset}, evaluated up to step "
                  f"{max(row.step for row in rows)} of {found.config.max_iters}; beside it the seeds "
                  f"{', '.join(map(str, reference.seeds))}, trained by npgpt {reference.npgpt}", markup=False)
    if not same:
        console.print("note: this Python's documentation is worded otherwise than that of the reference; the "
                      "spread is the wider for it, by what another version's wording was seen to change")
    if not reference.one_split:
        console.print("note: each seed of this preset holds back another part of the text, and that makes "
                      "most of the spread in validation loss; training loss and gradient norm are judged "
                      "more sharply")
    if curves["val_loss"].step[-1] > reference.steps[-1]:
        console.print(f"note: the reference ends at step {reference.steps[-1]}; what comes after it is not "
                      "judged")
    console.print(_table(rows, allowed(reference)))
    if same:
        _say_retraced(console, found.config.seed, retrace(curves, reference, found.config.seed), reference)
    normal, said = sentence(rows, reference)
    if not normal:
        raise CurveError(said)
    console.print(f"{said} A normal curve is no proof: half of all wrong gradients end within 1 % of the "
                  "right loss. npgpt gradcheck finds them.")
    return 0


def find_reference(folder: Path) -> Comparable:
    """The run in a folder with the reference that it can be compared with. Raises CurveError, which names
    what is different, if there is none; and whatever `open_run` raises."""
    found = open_run(folder)
    if isinstance(found.config, FinetuneConfig):
        raise CurveError("no verdict: the run is a fine-tuning, and curves are stored of presets alone; "
                         f"npgpt evaluate {folder} tells how good its model is")
    if isinstance(found.train, Examples) or isinstance(found.val, Examples):
        raise CurveError("no verdict: the run learns from examples, and curves are stored of running text "
                         "alone")
    vocab    = found.tokenizer.vocab_size
    settings = settings_that_matter(found.config, vocab)
    stored   = {name: read_reference(name) for name in reference_names()}
    presets  = {name: reference.settings for name, reference in stored.items()}
    presets |= {name: settings_that_matter(read_settings(name, None), vocab)
                for name in preset_names() if name not in stored}
    preset = nearest_preset(settings, presets)
    differ = settings_that_differ(settings, presets[preset])
    if preset not in stored:
        nearest = f"nearest to preset {preset} ({'; '.join(differ)})" if differ else f"of preset {preset}"
        raise CurveError(f"no verdict: the run is {nearest}, of which no curve is stored, since it takes too "
                         f"long to train on a CPU; there are {', '.join(stored)}")
    if found.config.lr_decay_iters is None:                 # then max_iters says how long the rate falls
        differ = [text.replace("lr_decay_iters", "max_iters") for text in differ]
    if differ:
        raise CurveError(f"no verdict: the run is not comparable with preset {preset} because "
                         f"{'; '.join(differ)}")
    reference = stored[preset]
    sides     = found.train, found.val
    if sum(map(len, sides)) > reference.text.characters:        # each token has a character at least
        raise CurveError(f"no verdict: the text the run learns from is longer than that of "
                         f"{reference.text.data}, from which the reference of preset {preset} was made")
    text = text_of(found.config.data, found.tokenizer, *sides)
    return Comparable(found, reference, same_text(text, reference))


def _table(rows: list[Row], most: float) -> Table:
    """A row a number; norms are shown as they are, their spread as a factor."""
    table = Table("", "step", "yours", "reference", "away", f"within ±{most:.1f} is", box=box.SIMPLE_HEAD)
    colour = {"normal": "green", "high": "bold red", "low": "bold red"}
    for before, row in zip([None, *rows], rows, strict=False):
        first = before is None or before.quantity != row.quantity
        if first:
            table.add_section()
        if row.quantity == "grad_norm":
            numbers = f"{np.exp(row.yours):.3f}", f"{np.exp(row.mean):.3f} ×÷ {np.exp(row.spread):.3f}"
        else:
            numbers = f"{row.yours:.4f}", f"{row.mean:.4f} ± {row.spread:.4f}"
        table.add_row(QUANTITIES[row.quantity] if first else "", str(row.step), *numbers, f"{row.away:+.1f}",
                      f"[{colour[row.verdict]}]{row.verdict}[/]")
    return table


def _say_retraced(console: Console, seed: int, apart: dict[str, float] | None, reference: Reference) -> None:
    """What only a run with one of the reference's seeds can tell: whether it is computed as that one was."""
    if apart is None:
        return
    steps = reference.beginning_steps[-1]
    if all(apart[name] <= RETRACED[name] for name in apart):
        console.print(f"In its first {steps} steps it is the reference's run of seed {seed}, but for "
                      "rounding: forward, backward and optimiser do what they did there.")
    else:
        parts = [f"the {QUANTITIES[name]} by up to {100 * apart[name]:.2g} % "
                 f"(rounding: {100 * RETRACED[name]:g} %)" for name in apart]
        console.print(f"Its first {steps} steps are not those of the reference's run of seed {seed}, but "
                      f"apart: {', '.join(parts)}. Something is computed otherwise, whatever the curve looks "
                      "like.")
