"""Times npgpt's tokenizer beside tiktoken's and Hugging Face's, in turn, and prints medians:

    python tools/bench_tokenizer.py TEXT                    # a UTF-8 file
    python tools/bench_tokenizer.py TEXT --gpt2 FOLDER      # with GPT-2's own vocab.bpe and encoder.json
    python tools/bench_tokenizer.py TEXT --pattern o200k    # cut by another of the known patterns
    python tools/bench_tokenizer.py TEXT --vocab-size 32768 --train-only --rounds 1

Training learns a vocabulary from the text (--vocab-size, 4096 + 257). Encoding gives the whole text to each
with one thread; to npgpt when it has seen the pieces of the text before, as most of a large corpus are, and
when it has seen none; and to npgpt with all cores, where the text is given out in parts of a million
characters that end at a line. Without --gpt2 all use what npgpt has learned. Run nothing else meanwhile.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from rich import box
from rich.console import Console
from rich.table import Table

from npgpt.tokenizers import BPETokenizer, load_tokenizer
from npgpt.tokenizers.patterns import SPLIT_PATTERNS
from npgpt.workers import physical_cores

PART = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--gpt2", type=Path, help="a folder with GPT-2's vocab.bpe and encoder.json")
    parser.add_argument("--pattern", choices=SPLIT_PATTERNS, default="gpt2",
                        help="of what is learned; Hugging Face's trainer always has GPT-2's (gpt2)")
    parser.add_argument("--vocab-size", type=int, default=4096 + 257, help="tokens to train (4353)")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--train-only", action="store_true")
    options = parser.parse_args()
    text    = options.text.read_text("utf-8")
    size    = len(text.encode())
    console = Console(width=100)

    learned: dict[str, object] = {}
    rows = measure({"npgpt": lambda: learned.update(ours=BPETokenizer.train([text], options.vocab_size,
                                                                               options.pattern)),
                    "Hugging Face": lambda: train_hugging_face(text, options.vocab_size)}, options.rounds)
    print_table(console, f"training {options.vocab_size:,} tokens on {size / 1e6:.1f} MB", rows, size)
    if options.train_only:
        return
    with tempfile.TemporaryDirectory() as folder:
        ours = load_tokenizer(options.gpt2) if options.gpt2 else learned["ours"]
        ours.save(folder)                                                     # type: ignore[attr-defined]
        console.print(f"encoding with {ours.vocab_size:,} tokens")            # type: ignore[attr-defined]
        encoders, parts = competitors(ours, Path(folder)), cut(text)
        results = {name: encode(text) for name, encode in encoders.items()}
        for name, ids in results.items():
            if list(ids) != list(results["npgpt"]):
                raise SystemExit(f"{name} gives other ids")
        calls: dict[str, Callable] = {name: lambda encode=encode: encode(text)
                                      for name, encode in encoders.items()}
        with ProcessPoolExecutor(physical_cores(), initializer=start, initargs=(folder,)) as pool:
            list(pool.map(encode_part, parts))
            calls["npgpt, all cores"] = lambda: sum(pool.map(encode_part, parts))
            rows = measure(calls, options.rounds)
    print_table(console, f"encoding {size / 1e6:.1f} MB", rows, size)


def measure(calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def print_table(console: Console, title: str, rows: dict[str, list[float]], size: int) -> None:
    table = Table("", "seconds", "spread", "MB/s", "npgpt's speed over it", box=box.SIMPLE_HEAD, title=title)
    for name, seconds in rows.items():
        middle = statistics.median(seconds)
        ratio  = statistics.median(theirs / ours for theirs, ours in zip(seconds, rows["npgpt"], strict=True))
        table.add_row(name, f"{middle:.3f}", f"{min(seconds):.3f}–{max(seconds):.3f}",
                      f"{size / middle / 1e6:.1f}", f"{ratio:.2f}")
    console.print(table)


def competitors(ours, folder: Path) -> dict[str, Callable]:
    import tiktoken
    import tokenizers
    theirs  = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ranks   = {data: id for id, data in ours.vocabulary.items()}
    tik     = tiktoken.Encoding("npgpt", pat_str=SPLIT_PATTERNS[ours.pattern], mergeable_ranks=ranks,
                                special_tokens=ours.special_tokens)

    def fresh(text: str) -> list[int]:
        ours._ids_of_piece.clear()
        ours._ids_of_piece._old.clear()
        ours._arrays.clear()
        return ours.encode_ordinary(text)

    return {"npgpt": ours.encode_ordinary, "npgpt, empty cache": fresh, "tiktoken": tik.encode_ordinary,
            "Hugging Face": lambda text: theirs.encode(text).ids}


def train_hugging_face(text: str, vocab_size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def cut(text: str) -> list[str]:
    """Parts of about PART characters that end where a line does."""
    parts, start = [], 0
    while start < len(text):
        end = text.find("\n", start + PART) + 1 or len(text)
        parts.append(text[start:end])
        start = end
    return parts


def start(folder: str) -> None:
    global worker
    worker = load_tokenizer(folder)


def encode_part(part: str) -> int:
    return len(worker.encode_ordinary(part))


if __name__ == "__main__":
    main()
