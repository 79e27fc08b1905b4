"""Reading options into a dataclass by tyro, with wrong ones told in one sentence."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from npgpt.cli.help import show_help
from npgpt.errors import DataError, UsageError

ELSEWHERE = {       # an option's name in nanoGPT, transformers, TRL, PEFT, litgpt, and what it is here
    "lr": "learning-rate", "max-steps": "max-iters", "epochs": "max-iters", "num-iterations": "max-iters",
    "num-train-epochs": "epochs max-iters", "per-device-train-batch-size": "batch-size",
    "micro-batch-size": "batch-size", "warmup-steps": "warmup-iters", "logging-steps": "log-interval",
    "eval-steps": "eval-interval", "save-steps": "eval-interval", "max-grad-norm": "grad-clip",
    "adam-beta1": "beta1", "adam-beta2": "beta2", "bf16": "dtype", "fp16": "dtype", "dataset": "data",
    "train-file": "data", "output": "out out-dir", "output-dir": "out-dir", "max-seq-length": "block-size",
    "max-length": "max-new-tokens block-size", "hidden-size": "n-embd", "num-hidden-layers": "n-layer",
    "num-attention-heads": "n-head", "num-key-value-heads": "n-kv-head", "intermediate-size": "n-inner",
    "r": "lora-rank", "lora-r": "lora-rank", "start": "prompt", "max-tokens": "max-new-tokens",
    "num-return-sequences": "num-samples", "resume-from-checkpoint": "resume",
}

INSTEAD = {         # what is no option here
    "init-from": "a run goes on by npgpt train --resume, and a model that is there learns by npgpt finetune",
    "eval-only": "npgpt evaluate RUN measures what a run has learned",
}


def parse(options: Any, command: str, arguments: Sequence[str], default: Any = None) -> Any:
    """The dataclass `options` filled from `arguments`. In names `_` and `-` are the same. --help exits.

    Raises UsageError.
    """
    if {"-h", "--help"} & set(arguments):
        show_help(options, command, default)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, prog=f"npgpt {command}", description=" ".join(options.__doc__.split()),
                            args=list(arguments), default=default)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        sentence = _sentence(said.getvalue(), dict(_names(options)), arguments)
        raise UsageError(f"{sentence} (npgpt {command} --help lists the options)") from None


def value_of(name: str, arguments: Sequence[str], needs: str = "") -> str | None:
    """What stands after --name, or after --name= in one word; the last of several, or None. "" if nothing,
    but UsageError where it needs something.  needs: what that is.
    """
    value = None
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if word == f"--{name}":
            value = following
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    if value == "" and needs:                              # as of a variable that is not set
        raise UsageError(f"--{name} needs {needs}")
    return value


def unescaped(text: str) -> str:
    """Of a text on a command line, where a newline is hard to write: \\n is one."""
    return text.replace("\\n", "\n")


def read_text(file: Path | None) -> str:
    """The text of a file, or None: of standard input. Raises DataError where that is not UTF-8."""
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file or 'standard input'} is not UTF-8 at byte {error.start}") from None


def _names(options: Any) -> Iterator[tuple[str, Any]]:
    """The options with their types, written as on a command line."""
    for field in dataclasses.fields(options):
        kind = getattr(field.type, "__origin__", field.type)
        if dataclasses.is_dataclass(kind):
            yield from _names(kind)
        else:
            yield field.name.replace("_", "-"), kind


def _sentence(box: str, known: dict[str, Any], arguments: Sequence[str]) -> str:
    """tyro frames its errors, with the sentence above a rule and the options it may have meant below. Without
    UTF-8 the title has a rule of hyphens below, and no frame."""
    lines = [line.strip("│╭╮╰╯ \n") for line in box.splitlines()]
    lines = [line for line in lines if line and not re.match(r"^─ .* ─+$", line)]
    if lines[1:] and not lines[1].strip("-"):
        lines = lines[2:]
    rule  = next((n for n, line in enumerate(lines) if not line.strip("─-")), len(lines))
    told  = " ".join(lines[:rule])
    if lacking := re.match(r"Missing from npgpt [^:]+: (.*)", told):
        each = re.split(r"\s*\(required\)\s*", lacking[1])[:-1]
        return "; ".join(re.sub(r"^((?:--)?[\w-]+(?: [A-Z]+)?) (.)", _lacks, one).rstrip(".") for one in each)
    if needing := re.match(r"Missing value for argument '(--[\w-]+)'", told):
        return f"{needing[1]} needs a value; one that begins with a dash is written {needing[1]}=-…"
    near = re.search(r"Perhaps you meant:\n--([\w-]+)", "\n".join(lines))
    return told + _meant(told, known, arguments, near[1] if near else None)


def _lacks(found: re.Match[str]) -> str:
    return f"{found[1]} is missing: {found[2].lower()}"


def _meant(told: str, known: dict[str, Any], arguments: Sequence[str], near: str | None) -> str:
    """What the first word of those that tyro does not know may have been meant to be."""
    word, equals, value = told.removeprefix("Unrecognized options: ").split(", ")[0].partition("=")
    name = word.removeprefix("--").replace("_", "-")
    if word == told:
        return ""
    for before, after in zip(["", *arguments], [*arguments, ""], strict=True):
        switch, _, given = before.partition("=")
        switch = switch.removeprefix("--").replace("_", "-").removeprefix("no-")
        if known.get(switch) is bool and word in (given, after) and not word.startswith("--"):
            return f"; --{switch} takes no value: write --{switch} or --no-{switch}"
    if not word.startswith("--"):
        return f"; did you mean --{name}={value}?" if equals and name in known else ""
    if name in INSTEAD and name not in known:
        return f"; {INSTEAD[name]}"
    if name.startswith("no-") and known.get(switch := name.removeprefix("no-")) == bool | None:
        return f"; write --{switch}=False"
    if name == "start" and (file := value_of("start", arguments) or "").startswith("FILE:"):
        return f"; did you mean --prompt-file={file.removeprefix('FILE:')}?"
    here = [*ELSEWHERE.get(name, "").split(), *(one for one in known if one.startswith(f"{name}-"))]
    best = next((one for one in here if one in known), near)
    more = (" An epoch is tokens / (block_size · batch_size · gradient_accumulation_steps) updates"
            if best == "max-iters" and "epochs" in name else "")
    return f"; did you mean --{best}?{more}" if best else ""
