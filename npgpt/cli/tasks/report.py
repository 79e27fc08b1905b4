"""What the tasks of `npgpt evaluate` have in common: where the numbers go, and what stands beside them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from npgpt.cli.tasks.options import Options
from npgpt.errors import ConfigError
from npgpt.evaluation.bootstrap import CONFIDENCE, Interval
from npgpt.evaluation.results import model_sha256, write_result
from npgpt.training.loading import Loaded

LONGEST = 2048          # tokens of context where nobody says: a Llama's 131,072 at once fit no memory

FEW     = 20            # units: the bootstrap's intervals are too narrow by about √(1 − 1/N)


def context_of(options: Options, loaded: Loaded) -> int:
    block_size = loaded.model.config.block_size
    context    = options.context or min(block_size, LONGEST)
    if context > block_size:
        raise ConfigError(f"context must be at most the model's block_size of {block_size}, not {context}")
    return context


def prefix_of(loaded: Loaded) -> int | None:
    """What stands before a text that has nothing before it: what begins every text, or the end of another."""
    tokenizer = loaded.tokenizer
    own = (*tokenizer.prefix, tokenizer.eos_token_id, *loaded.eos_token_ids)
    return next((id for id in own if id is not None), None)


def write_out(options: Options, model: Any, data: Mapping[str, Any], numbers: Mapping[str, Any],
              intervals: Mapping[str, Interval | None], protocol: Mapping[str, Any], **more: Any) -> None:
    """The result as a file, if one was asked for. more: further entries."""
    if options.out is None:
        return
    arrays = {name: parameter.data for name, parameter in model.parameters.items()}
    write_result(options.out, {
        "task": options.task, "numbers": numbers, "intervals": intervals, **more, "protocol": protocol,
        "model": {"path": options.model, "sha256": model_sha256(arrays)},
        "data": data, "settings": asdict(options)})


def numbers_table(units: Mapping[str, str], numbers: Mapping[str, Any],
                  intervals: Mapping[str, Interval | None]) -> Table:
    """units: what each number is, or counts; only these are shown."""
    table = Table("", "", "95 % interval", "", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, unit in units.items():
        number, interval = numbers[name], intervals[name]
        table.add_row(name.replace("_", " "), "–" if number is None else f"[bold]{number:,.4f}[/]",
                      "–" if interval is None else f"{interval[0]:,.4f} to {interval[1]:,.4f}", unit)
    return table


def bootstrap_entries(units: str, count: int) -> dict[str, Any]:
    """What a protocol says of the intervals."""
    return {"bootstrap_units": units, "bootstrap_number": count, "confidence": CONFIDENCE}


def print_bootstrap(options: Options, units: str, count: int, console: Console) -> None:
    console.print(f"intervals: bootstrap over {count:,} {units}, {counted(options.resamples, 'resample')}, "
                  f"seed {options.seed}{'; of so few, they are too narrow' * (count < FEW)}" if count > 1 else
                  f"no intervals: there is but one of the {units} that a bootstrap would draw", markup=False)


def counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"
