"""Worked examples of the whole way, each one command, on data that a generator makes or a package ships:

    python tools/worked_examples.py arithmetic     # three-digit sums, from nothing
    python tools/worked_examples.py digits         # handwritten digits as text (needs scikit-learn)
    python tools/worked_examples.py topics         # what is this text about? (needs chatterbot-corpus)
    python tools/worked_examples.py dialogue       # small talk, by LoRA (needs chatterbot-corpus)
    python tools/worked_examples.py translation    # English into French (needs django and polib)

Each writes its records into runs/examples/NAME/, prints the commands of npgpt that do the work, and runs
them. The last three begin from a small model of English, the preset quick, which is trained first where it is
not there yet: too small to talk sense. --base NAME begins from another: a run, a model's folder, a GGUF file.
--small does the same with little of everything, to see that it works.
"""

import argparse
import json
import random
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from npgpt.cli.main import main as npgpt

Rows = list[dict[str, Any]]
HELD_BACK = 0.1         # of the records, to measure on


def arithmetic(folder: Path, small: bool, _: str | None) -> None:
    """Numbers have all their digits, 085 + 440 = 0525, so that each place has its own; and the sum's are
    written from the last to the first, as one adds by hand: so each follows from two digits and a carry (Lee
    et al. 2023, "Teaching arithmetic to small transformers")."""
    chosen = random.Random(0).sample(range(1_000_000), 500 if small else 51_000)
    rows   = [{"prompt": f"{a:03}+{b:03}=", "completion": f"{a + b:04}"[::-1]}
              for a, b in (divmod(n, 1000) for n in chosen)]
    test   = 100 if small else 1000
    write(folder / "train.jsonl", rows[test:])
    write(folder / "test.jsonl", rows[:test])
    run("train", "--data", folder / "train.jsonl", "--val-fraction", "0.01", "--vocab-size", 257,
        "--block-size", 128, "--batch-size", 4, "--n-layer", 3, "--n-embd", 128, "--dropout", 0,
        "--learning-rate", 2e-3, "--max-iters", 20 if small else 5000,
        "--eval-interval", 10 if small else 500, "--out-dir", folder / "run")
    evaluate(folder, "generation", "--max-new-tokens", 6)


def digits(folder: Path, small: bool, _: str | None) -> None:
    """An image of 8 × 8 is 8 lines of letters, a for white to q for black. To learn from, each is there five
    times: as it is, and moved by one place to every side."""
    from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    rows = different({"prompt": "".join("".join("abcdefghijklmnopq"[int(ink)] for ink in line) + "\n"
                                        for line in image.reshape(8, 8)), "completion": str(label)}
                     for image, label in zip(images, labels, strict=True))[:200 if small else None]
    held = round(HELD_BACK * len(rows))
    write(folder / "test.jsonl", rows[:held])
    write(folder / "val.jsonl", rows[held:2 * held])
    write(folder / "train.jsonl", [row | {"prompt": image} for row in rows[2 * held:]
                                   for image in moved(row["prompt"])])
    run("train", "--data", folder / "train.jsonl", "--val-data", folder / "val.jsonl", "--vocab-size", 257,
        "--block-size", 80, "--n-layer", 3, "--n-embd", 128, "--dropout", 0.1, "--learning-rate", 1e-3,
        "--max-iters", 10 if small else 3000, "--eval-interval", 10 if small else 500,
        "--out-dir", folder / "run")
    evaluate(folder, "generation", "--max-new-tokens", 2)


def topics(folder: Path, small: bool, model: str | None) -> None:
    """A classifier of questions and answers by the file of chatterbot-corpus that they are from."""
    names = ("ai", "coding", "tech_support", "trivia")
    rows  = [{"text": text, "label": name} for name in names for talk in conversations(name) for text in talk]
    split(folder, different(rows)[:60 if small else None])
    finetune(folder, small, model, 1e-3, 8, "--dropout", 0.1, "--early-stopping-patience", 4)
    evaluate(folder, "classification")


def dialogue(folder: Path, small: bool, model: str | None) -> None:
    names = ("ai", "botprofile", "conversations", "emotion", "food", "gossip", "greetings", "humor",
             "psychology")
    rows  = [{"messages": [{"role": role, "content": text}
                           for role, text in zip(("user", "assistant"), talk, strict=False)]}
             for name in names for talk in conversations(name)]
    split(folder, different(rows)[:60 if small else None])
    finetune(folder, small, model, 3e-3, 10, "--lora-rank", 16, "--lora-alpha", 32,
             "--early-stopping-patience", 3)
    evaluate(folder, "generation", "--max-new-tokens", 40)


def translation(folder: Path, small: bool, model: str | None) -> None:
    import polib
    files = sorted(Path(str(resources.files("django"))).rglob("locale/fr/LC_MESSAGES/*.po"))
    rows  = [{"prompt": f"English: {entry.msgid}\nFrench:", "completion": f" {entry.msgstr}"}
             for file in files for entry in polib.pofile(str(file)).translated_entries() if entry.msgstr]
    split(folder, different(rows)[:60 if small else None])
    finetune(folder, small, model, 2e-3, 20, "--dropout", 0.1, "--early-stopping-patience", 3)
    evaluate(folder, "generation", "--max-new-tokens", 60)


EXAMPLES: dict[str, Callable[[Path, bool, str | None], None]] = {
    "arithmetic": arithmetic, "digits": digits, "topics": topics, "dialogue": dialogue,
    "translation": translation}


def conversations(name: str) -> Iterator[list[str]]:
    """Of chatterbot-corpus: each a list of what was said, two lines at least."""
    import yaml
    text = (resources.files("chatterbot_corpus") / "data" / "english" / f"{name}.yml").read_text("utf-8")
    for talk in yaml.safe_load(text)["conversations"]:
        if len(talk) > 1:
            yield [str(line).strip() for line in talk]


def moved(image: str) -> Iterator[str]:
    """An image of `digits` where it is, and one place further up, down, left and right."""
    lines, white = image.split(), ["a" * 8]
    for there in (lines, lines[1:] + white, white + lines[:-1], [line[1:] + "a" for line in lines],
                  ["a" + line[:-1] for line in lines]):
        yield "".join(f"{line}\n" for line in there)


def different(rows: Iterable[dict[str, Any]]) -> Rows:
    """In an order that is always the same, and each but once."""
    unique = {json.dumps(row): row for row in rows}
    names  = sorted(unique)
    random.Random(0).shuffle(names)
    return [unique[name] for name in names]


def split(folder: Path, rows: Rows) -> None:
    test = max(1, round(HELD_BACK * len(rows)))
    write(folder / "train.jsonl", rows[test:])
    write(folder / "test.jsonl", rows[:test])


def write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def base(folder: Path, small: bool) -> Path:
    """A small model of English, trained once for all examples."""
    path = folder.parent / ("base-small" if small else "base")
    little = ["--max-iters", 5, "--n-layer", 1, "--n-embd", 32, "--eval-interval", 5]
    if not path.exists():
        run("train", *(little if small else []), "--out-dir", path)
    return path


def finetune(folder: Path, small: bool, model: str | None, learning_rate: float, epochs: int,
             *words: Any) -> None:
    """model: what was named by --base, or None. It is taken to be a larger one, which wants smaller steps."""
    run("finetune", model or base(folder, small), "--data", folder / "train.jsonl", "--block-size", 128,
        "--learning-rate", learning_rate / 5 if model else learning_rate,
        "--epochs", 1 if small else epochs, *words, "--out-dir", folder / "run")


def evaluate(folder: Path, task: str, *words: Any) -> None:
    run("evaluate", folder / "run", "--task", task, "--data", folder / "test.jsonl", *words,
        "--predictions", folder / "predictions.jsonl", "--out", folder / "result.json")


def run(*words: Any) -> None:
    command = [str(word) for word in words]
    print(f"\n$ npgpt {shlex.join(command)}\n", flush=True)
    status = npgpt(command)
    if status:
        sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("--out-dir", type=Path, default=Path("runs/examples"),
                        help="where its folder is made")
    parser.add_argument("--base", help="what the last three fine-tune, if not the preset quick")
    parser.add_argument("--small", action="store_true", help="little of everything, to see that it works")
    options = parser.parse_args(arguments)
    folder  = options.out_dir / options.example
    if folder.exists():
        parser.error(f"{folder} is there already: remove it, or choose another --out-dir")
    try:
        EXAMPLES[options.example](folder, options.small, options.base)
    except ModuleNotFoundError as error:
        shutil.rmtree(folder, ignore_errors=True)
        parser.error(f"this example needs the package {error.name}: install it by pip")


if __name__ == "__main__":
    main()
