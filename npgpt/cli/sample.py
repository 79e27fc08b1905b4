"""`npgpt sample`: a trained GPT writes, token by token."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from npgpt.cli.arguments import parse
from npgpt.errors import ConfigError
from npgpt.generation.decoding import stream
from npgpt.terminal import printable
from npgpt.training.runs import load_model


@dataclass(frozen=True)
class Options:
    """Let a trained GPT write on from a prompt. The text goes to standard output as it comes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run."""
    prompt: str = ""
    """What to write on from; \\n is a newline. Empty: a new document."""
    max_new_tokens: int = 200
    """Tokens to write, at most; a text that ends, ends earlier."""
    num_samples: int = 1
    """Texts to write."""
    do_sample: bool = True
    """Draw tokens; --no-do-sample takes the most likely one each time."""
    temperature: float = 0.8
    """Below 1 keeps to what is likely, above 1 dares more."""
    top_k: int = 50
    """Draw from the k most likely tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the smallest set of likely tokens that has this much probability."""
    seed: int = 0
    """The same seed writes the same text."""
    checkpoint: str = "best"
    """best (lowest validation loss), latest, or the number of a step."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "sample", arguments)
    for name, least in (("max_new_tokens", 0), ("num_samples", 1), ("top_k", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name} must be at least {least}, not {getattr(options, name)}")
    if not 0 <= options.seed < 2**64:
        raise ConfigError(f"seed must be at least 0 and below 2⁶⁴, not {options.seed}")
    model, tokenizer, _ = load_model(options.run, options.checkpoint, options.device, _warn)
    prompt = options.prompt.replace("\\n", "\n")
    end = tokenizer.eos_token_id
    ids = tokenizer.encode_ordinary(prompt) or [end or 0]         # of characters, id 0 usually is the newline
    show = printable if sys.stdout.isatty() else str
    for n in range(options.num_samples):
        new = stream(model.decoder(), np.array([ids]), options.max_new_tokens, options.do_sample,
                     options.temperature, options.top_k or None, options.top_p,
                     (options.seed + n) % 2**64)
        print(show(prompt), end="", flush=True)
        for text in tokenizer.decode_stream(_until(end, (int(token[0]) for token in new))):
            print(show(text), end="", flush=True)
        print("\n---" if n + 1 < options.num_samples else "")
    return 0


def _until(end: int | None, tokens):
    for token in tokens:
        if token == end:
            return
        yield token


def _warn(text: str) -> None:
    print(f"npgpt: warning: {text}", file=sys.stderr)
