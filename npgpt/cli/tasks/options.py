"""What `npgpt evaluate` is told, and which of it belongs to which task."""

from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import tyro

from npgpt.errors import ConfigError
from npgpt.files import check_output
from npgpt.ranges import check_range
from npgpt.training.runs import run_of

TASKS_OF = {
    "context": ("language-modelling", "multiple-choice"), "stride": ("language-modelling",),
    "surprisal": ("language-modelling",), "delimiter": ("multiple-choice",),
    "predictions": ("generation", "classification"), "max_new_tokens": ("generation",),
    "num_beams": ("generation",), "stop_strings": ("generation",), "use_stemmer": ("generation",)}
"""Options that not every task has."""

ASKED = {"multiple-choice": "in which file the questions are, JSONL in HellaSwag's layout",
         "generation":      "in which JSONL file the prompts are, with what ought to come after them",
         "classification":  "in which JSONL file the texts are, each with its label"}
"""What the tasks are told by --data that cannot do without."""


@dataclass(frozen=True)
class Options:
    """Measure how well a GPT foretells a text (loss, perplexity, bits per byte), finds the right ending
    (accuracy), writes what others wrote (exact match, F1, BLEU, chrF, ROUGE) or knows a text's class
    (accuracy, precision, recall, F1), each number with its 95 % interval by bootstrap."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model in Hugging Face's layout, the name of one on its hub, or a GGUF
    file."""
    data: str = ""
    """A text file, a folder of texts, python-docs, or a folder that npgpt prepare made (its validation
    tokens). By default a run's own validation tokens. JSONL with prompt and completion, or messages: only the
    answers are scored. For multiple-choice: JSONL in HellaSwag's layout. For generation: JSONL with prompt
    and completion (or completions), or messages. For classification: JSONL with text and label."""
    task: Literal["language-modelling", "multiple-choice", "generation", "classification"] = \
        "language-modelling"
    """What to measure."""
    context: int | None = None
    """Tokens read at once; by default the model's block_size, and at most 2048."""
    stride: int | None = None
    """By how many tokens the window slides on; by default half the context. A small one gives each token more
    to go by, and takes longer."""
    delimiter: str = " "
    """Of multiple-choice: what stands between a context and an ending."""
    max_new_tokens: int | None = None
    """Of generation: tokens to write, at most; by default 128, and at most half the model's block_size."""
    num_beams: int = 1
    """Of generation: search for the likeliest text among so many at a time; 1 takes the likeliest token."""
    stop_strings: tuple[str, ...] = ()
    """Of generation: end as soon as one of these was written; \\n is a newline."""
    use_stemmer: bool = False
    """Of generation: ROUGE compares words without their endings, as Porter's stemmer cuts them."""
    limit: int | None = None
    """Score only so many tokens, questions, prompts or texts, the first."""
    batch_size: int | None = None
    """Windows, endings, prompts or texts that go through the model at once; by default as many as need little
    memory."""
    surprisal: Path | None = None
    """Write each scored token's surprisal in bits into this file, as JSONL; of language-modelling."""
    predictions: Path | None = None
    """Write what the model wrote, or which class it chose, into this file, as JSONL with the numbers of each
    record; of generation and classification."""
    out: Path | None = None
    """Write the result into this file, as JSON."""
    resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0
    """The same seed gives the same intervals."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), latest, or the number of a step."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""

    @property
    def files(self) -> dict[str, Path]:
        """The files to be written, by the option that asks for them."""
        return {name: path for name in ("out", "surprisal", "predictions")
                if (path := getattr(self, name)) is not None}


def check(options: Options) -> None:
    """Raises ConfigError for what would otherwise be told only after the work."""
    for name in ("context", "stride", "limit", "batch_size", "resamples", "max_new_tokens", "num_beams"):
        if getattr(options, name) is not None:
            check_range(name, getattr(options, name), least=1)
    check_range("seed", options.seed, least=0, below=2**64)
    for field in fields(options):
        tasks = TASKS_OF.get(field.name, (options.task,))
        if options.task not in tasks and getattr(options, field.name) != field.default:
            raise ConfigError(f"{field.name} is of {' and '.join(tasks)}: leave it out with "
                              f"--task {options.task}")
    if not all(options.stop_strings):
        raise ConfigError("stop_strings must not be empty")
    if options.task in ASKED and not options.data:
        raise ConfigError(f"say by --data {ASKED[options.task]}")
    for path in options.files.values():
        check_output(path)
    named = options.files | ({"data": Path(options.data)} if options.data else {})
    for (one, path), (other, same) in combinations(named.items(), 2):
        if path.resolve() == same.resolve():
            raise ConfigError(f"{one} and {other} are both {path}: give two files")
    if not (options.data or (Path(options.model) / "config.toml").exists() or run_of(Path(options.model))):
        raise ConfigError(f"{options.model} is not a run's folder, so it has no validation tokens of its "
                          "own: say by --data what to evaluate on")
