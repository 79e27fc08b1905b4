"""`npgpt tokenizer ACTION …`: trains a tokenizer; encodes, decodes and shows with any that npgpt reads."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from npgpt.cli.arguments import parse, read_text
from npgpt.data.corpora import iterate_documents
from npgpt.errors import ConfigError, TokenizerError, UsageError, shown
from npgpt.ranges import check_range
from npgpt.terminal import printable
from npgpt.tokenizers import BPETokenizer, load_tokenizer
from npgpt.tokenizers.byte_pair import END_OF_TEXT
from npgpt.tokenizers.formats import CONFIG
from npgpt.workers import physical_cores

COLOURS = [f"black on bright_{name}" for name in ("cyan", "yellow", "green", "magenta")]
TokenizerName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENIZER")]


@dataclass(frozen=True)
class Train:
    """Train a byte-level BPE tokenizer on texts, and save it in a folder."""

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA ...")]
    """python-docs, text files or folders of text files, UTF-8."""
    out_dir: Path
    """The tokenizer's folder."""
    vocab_size: int = 4096
    """Tokens: 256 bytes, the special tokens, the rest learned merges."""
    pattern: str = "gpt2"
    """How text is split before merging: gpt2, cl100k, llama3, qwen2, o200k or smollm."""
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    """Tokens that no text is ever encoded to by itself."""
    workers: int | None = None
    """Processes that split text; by default the physical cores. The result is the same for any number."""


@dataclass(frozen=True)
class Encode:
    """Write the token ids of a text to standard output, with spaces between."""

    tokenizer: TokenizerName
    """The folder of a tokenizer, a run's tokenizer/ for example, a tokenizer.json or .tiktoken file, or the
    name of one on Hugging Face's hub."""
    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE]")] = None
    """The text, UTF-8; by default standard input."""
    special: bool = False
    """Special tokens in the text become their ids; otherwise they are ordinary text."""


@dataclass(frozen=True)
class Decode:
    """Write the text of token ids, which are whole numbers with white space between."""

    tokenizer: TokenizerName
    """The folder of a tokenizer, a run's tokenizer/ for example, a tokenizer.json or .tiktoken file, or the
    name of one on Hugging Face's hub."""
    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE]")] = None
    """The ids; by default standard input."""


@dataclass(frozen=True)
class Show:
    """Show how a text is cut into tokens: each in another colour, with its id below."""

    tokenizer: TokenizerName
    """The folder of a tokenizer, a run's tokenizer/ for example, a tokenizer.json or .tiktoken file, or the
    name of one on Hugging Face's hub."""
    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT]")] = None
    """The text itself; by default standard input."""
    special: bool = False
    """Special tokens in the text become their ids; otherwise they are ordinary text."""


def run(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: npgpt tokenizer ACTION …    npgpt tokenizer ACTION --help lists an action's options\n")
        print("\n".join(f"  {action:<7} {' '.join(str(options.__doc__).split())}"
                        for action, (options, _) in ACTIONS.items()))
        return 0 if arguments else 2
    if name not in ACTIONS:
        raise UsageError(f"unknown action {name!r}: npgpt tokenizer can {', '.join(ACTIONS)}")
    options, act = ACTIONS[name]
    act(parse(options, f"tokenizer {name}", rest))
    return 0


def _train(options: Train) -> None:
    if options.workers is not None:
        check_range("workers", options.workers, least=1)
    if not options.data:
        raise UsageError("no text is named (npgpt tokenizer train DATA … --out-dir FOLDER)")
    if (options.out_dir / CONFIG).exists():
        raise ConfigError(f"{options.out_dir} already holds a tokenizer: choose another --out-dir")
    console, begun, size = Console(stderr=True, highlight=False), time.perf_counter(), 0
    bar = [BarColumn()] * (console.width >= 60)
    with Progress(TextColumn("{task.description}"), *bar, MofNCompleteColumn(), TimeElapsedColumn(),
                  console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def texts() -> Iterator[str]:
            nonlocal size
            for source in options.data:
                for text in iterate_documents(source):
                    size += len(text)
                    progress.update(task, description=f"{size / 1e6:.1f} MB read, merges:")
                    yield text

        tokenizer = BPETokenizer.train(
            texts(), options.vocab_size, options.pattern, options.special_tokens,
            lambda done, wanted: progress.update(task, completed=done, total=wanted),
            options.workers or physical_cores())
    tokenizer.save(options.out_dir)
    print(f"{options.out_dir}: {tokenizer.vocab_size:,} tokens from {size:,} characters "
          f"in {time.perf_counter() - begun:.1f} s")
    if tokenizer.vocab_size < options.vocab_size:
        print(f"every piece of the text has become one token: there is none left for {options.vocab_size:,}")


def _encode(options: Encode) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    print(*_ids(tokenizer, read_text(options.file), options.special))


def _decode(options: Decode) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    words = read_text(options.file).split()
    for word in words:
        if not (word.isascii() and word.isdecimal() and len(word) < 12):
            raise TokenizerError(f"{shown(word)} is no token id: ids are whole numbers, white space between")
    sys.stdout.write(tokenizer.decode(map(int, words)))


def _show(options: Show) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    text = read_text(None) if options.text is None else options.text
    ids  = _ids(tokenizer, text, options.special)
    console, cut, numbers = Console(highlight=False), Text(), Text()
    between = "" if console.color_system else "|"
    for n, id in enumerate(ids):
        style, token, data = COLOURS[n % len(COLOURS)], tokenizer.decode([id]), tokenizer.token_bytes(id)
        if token.encode() != data:                                           # a part of a character
            token = "".join(f"\\x{byte:02x}" for byte in data)
        cut.append(between * (n > 0) + printable(token.replace("\n", "↵\n")), style)
        numbers.append(" " * (n > 0))
        numbers.append(str(id), style)
    console.print(cut, soft_wrap=True)
    console.print(numbers)
    size = len(text.encode("utf-8", "replace"))
    print(f"{len(ids):,} token{'s' * (len(ids) != 1)}, {len(text):,} character{'s' * (len(text) != 1)}, "
          f"{size / max(len(ids), 1):.2f} bytes a token")


def _ids(tokenizer, text: str, special: bool) -> list[int]:
    return tokenizer.encode(text, allowed_special="all") if special else tokenizer.encode_ordinary(text)


ACTIONS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (Train, _train), "encode": (Encode, _encode), "decode": (Decode, _decode), "show": (Show, _show)}
