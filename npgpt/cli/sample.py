"""`npgpt sample`: a trained GPT writes, token by token."""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from npgpt.cli.arguments import parse, read_text, unescaped
from npgpt.errors import ConfigError, UsageError
from npgpt.generation.decoding import generate, stream
from npgpt.ranges import check_range
from npgpt.terminal import printable, warn
from npgpt.training.loading import Loaded, load_model


@dataclass(frozen=True)
class Options:
    """Let a trained GPT write on from a prompt. The text goes to standard output as it comes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model in Hugging Face's layout, the name of one on its hub, or a GGUF
    file."""
    prompt: str = ""
    """What to write on from; \\n is a newline. Empty: a new document."""
    prompt_file: Path | None = None
    """A UTF-8 file with the prompt, or - for standard input. It is taken as it is, but for one newline at its
    end, which editors put there."""
    max_new_tokens: int = 200
    """Tokens to write, at most; a text that ends, ends earlier."""
    min_new_tokens: int = 0
    """Tokens to write, at least: until then no text ends."""
    eos_token_id: tuple[int, ...] = ()
    """Tokens that end a text; by default those that end one for this model."""
    stop_strings: tuple[str, ...] = ()
    """End as soon as one of these was written; \\n is a newline."""
    num_samples: int = 1
    """Texts to write; with --num-beams and without sampling, the so many best."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), latest, or the number of a step."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""

    # Decoding
    do_sample: bool = True
    """Draw tokens; --no-do-sample takes the most likely one each time."""
    temperature: float = 0.8
    """Below 1 keeps to what is likely, above 1 dares more."""
    top_k: int = 50
    """Draw from the k most likely tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the smallest set of likely tokens that has this much probability."""
    min_p: float = 0.0
    """Draw from tokens only that are at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1 avoids the tokens that were there before, below 1 seeks them."""
    no_repeat_ngram_size: int = 0
    """No so many tokens in a row come twice; 0: they may."""
    bad_words: tuple[str, ...] = ()
    """Never write these, as the tokenizer writes them: mind the space before a word."""
    seed: int = 0
    """The same seed writes the same text."""
    use_cache: bool = True
    """Read each token once; --no-use-cache is slow, and writes the same."""

    # Beam search
    num_beams: int = 1
    """Search for the likeliest text among so many at a time. The text is shown when it is found."""
    length_penalty: float = 1.0
    """Above 0 favours long texts, below 0 short ones."""
    early_stopping: Literal["no", "yes", "never"] = "no"
    """When to stop, once there are as many texts as beams: when better ones are unlikely (no), at once (yes),
    or when there can be no better (never)."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "sample", arguments)
    for name, least in (("max_new_tokens", 0), ("num_samples", 1), ("top_k", 0)):
        check_range(name, getattr(options, name), least=least)
    check_range("seed", options.seed, least=0, below=2**64)
    if options.prompt and options.prompt_file:
        raise UsageError("the prompt is given twice: by --prompt and by --prompt-file")
    if options.num_samples > options.num_beams > 1 and not options.do_sample:
        raise ConfigError(f"num_samples must be at most num_beams = {options.num_beams} without sampling, "
                          f"not {options.num_samples}")
    prompt    = _prompt(options)
    loaded    = load_model(options.model, options.checkpoint, options.device, warn)
    if options.eos_token_id:
        loaded = loaded._replace(eos_token_ids=options.eos_token_id)
    tokenizer = loaded.tokenizer
    ids  = [*tokenizer.prefix, *tokenizer.encode_ordinary(prompt)] \
        or [tokenizer.eos_token_id or 0]                                          # 0 often is the newline
    show = printable if sys.stdout.isatty() else str
    for n, tokens in enumerate(_texts(loaded, np.array([ids]), options)):
        print("\n---\n" if n else "", show(prompt), sep="", end="", flush=True)
        for text in tokenizer.decode_stream(takewhile(lambda id: id not in loaded.eos_token_ids, tokens)):
            print(show(text), end="", flush=True)
    print()
    return 0


def _prompt(options: Options) -> str:
    if options.prompt_file is None:
        return unescaped(options.prompt)
    text = read_text(None if str(options.prompt_file) == "-" else options.prompt_file)
    return re.sub(r"\r?\n\Z", "", text.removeprefix("\ufeff"))


def _texts(loaded: Loaded, prompt, options: Options) -> Iterator[Iterable[int]]:
    """The new tokens of one text after the other, as they come."""
    model, tokenizer, ends, *_ = loaded
    settings = {name: getattr(options, name) for name in (
        "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p",
        "repetition_penalty", "no_repeat_ngram_size", "num_beams", "length_penalty", "use_cache")}
    settings |= {
        "eos_token_id":   ends or None,
        "early_stopping": {"no": False, "yes": True, "never": "never"}[options.early_stopping],
        "stop_strings":   [unescaped(text) for text in options.stop_strings],
        "bad_words_ids":  [tokenizer.encode_ordinary(unescaped(text)) for text in options.bad_words]}
    T = prompt.shape[1]
    if options.num_beams > 1 and not options.do_sample:
        yield from generate(model, prompt, tokenizer=tokenizer, pad_token_id=ends[0] if ends else 0,
                            num_return_sequences=options.num_samples, **settings)[:, T:].tolist()
        return
    for n in range(options.num_samples):
        settings["seed"] = (options.seed + n) % 2**64
        if options.num_beams > 1:
            yield generate(model, prompt, tokenizer=tokenizer, **settings)[0, T:].tolist()
        else:
            yield (int(new[0]) for new in stream(model, prompt, tokenizer=tokenizer, **settings))
