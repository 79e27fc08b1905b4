"""`npgpt gradcheck`: a table of every op, layer and model with the worst error of its gradients."""

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt.cli.arguments import parse
from npgpt.errors import ConfigError
from npgpt.inspection.examples import LAYERS, MODELS, OPS, Sizes
from npgpt.inspection.gradient_check import TOLERANCE, GradientError, check_gradients
from npgpt.ranges import check_range
from npgpt.tensor.device import check_device


@dataclass(frozen=True)
class Options:
    """Compare what backward says with central differences of forward, in float64, for every op, layer and a
    whole GPT."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Only those whose names contain one of these, such as attention; by default all."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    seed: int = 0
    """Of the inputs and the directions."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "gradcheck", arguments)
    check_device(options.device)
    check_range("seed", options.seed, least=0)
    examples = [(kind, name, build) for kind, group in (("op", OPS), ("layer", LAYERS), ("model", MODELS))
                for name, build in group.items()
                if not options.names or any(part.lower() in name.lower() for part in options.names)]
    if not examples:
        known = dict.fromkeys(name.split(",")[0] for name in [*OPS, *LAYERS, *MODELS])
        raise ConfigError(f"no op, layer or model is called like {' or '.join(options.names)}: "
                          f"there are {', '.join(known)}")
    table = Table("kind", "name", "checked", "worst error", f"{TOLERANCE:.0e} allowed", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0))
    for column in table.columns:
        column.overflow = "fold"
    console, wrong, begun = Console(highlight=False), [], time.perf_counter()
    for kind, name, build in examples:
        case = build(Sizes(), np.random.default_rng(options.seed), options.device)
        try:
            errors = check_gradients(case.forward, case.backward, *case.inputs, parameters=case.parameters,
                                     seed=options.seed)
        except GradientError as error:
            wrong.append(f"{name}: {error}")
            table.add_row(kind, name, "", "", "[bold red]wrong[/]")
            continue
        checked = ", ".join(errors) if len(errors) < 6 else f"{len(errors)} parameters and inputs"
        table.add_row(kind, name, checked, f"{max(errors.values()):.1e}", "[green]right[/]")
    console.print(table)
    console.print(f"{len(examples) - len(wrong)} right, {len(wrong)} wrong, "
                  f"in {time.perf_counter() - begun:.1f} s; float64, three random directions each")
    if wrong:
        raise GradientError("; ".join(wrong))
    return 0
