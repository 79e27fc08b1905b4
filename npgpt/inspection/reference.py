"""Reference curves: how a preset's loss falls for several seeds, stored beside the preset as
NAME.reference.json.

Three curves of each seed, at every so many steps:

    val_loss      as evaluated at that step
    train_loss    the mean of the losses logged in the `window` steps up to it: one batch alone tells little
    grad_norm     the geometric mean of the norms before clipping over the same steps, since norms differ by
    factors

and the `beginning`, the first logged losses and norms as they are. tools/make_reference.py makes the files.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from npgpt.inspection.metrics import Curve
from npgpt.tokenizers.files import Tokenizer

SUFFIX = ".reference.json"
QUANTITIES = {"val_loss": "validation loss", "train_loss": "training loss", "grad_norm": "gradient norm"}
IGNORED = {             # what cannot change a curve but by rounding, or is in the settings in another form
    "seed", "data", "out_dir", "workers", "device", "gradient_checkpointing", "log_interval", "eval_interval",
    "sample_tokens", "early_stopping_patience", "packing", "max_iters", "batch_size",
    "gradient_accumulation_steps", "eval_iters", "tf32"}


class Text(NamedTuple):
    """What a run learns from, whatever its seed: its data's name, how many characters, and their hash."""

    data: str
    characters: int
    sha256: str


class Reference(NamedTuple):
    """The curves of a preset for several seeds.

    settings: as `settings_that_matter` gives them.  one_split: whether all seeds hold back the same
    validation text; else most of the spread of their validation losses is that of the texts.  steps: (S,).
    curves: QUANTITIES → (n, S), NaN where there is none; the norms by their logarithms.  logged_every,
    window: the steps between two logged losses, and those that are averaged.  beginning_steps: (b,).
    beginning: train_loss, grad_norm → (n, b)
    """

    preset: str
    npgpt: str
    settings: dict[str, Any]
    text: Text
    one_split: bool
    seeds: tuple[int, ...]
    logged_every: int
    window: int
    steps: np.ndarray
    curves: dict[str, np.ndarray]
    beginning_steps: np.ndarray
    beginning: dict[str, np.ndarray]


def reference_names() -> list[str]:
    """The presets that have a stored curve."""
    return sorted(entry.name.removesuffix(SUFFIX) for entry in resources.files("npgpt.presets").iterdir()
                  if entry.name.endswith(SUFFIX))


def read_reference(preset: str) -> Reference:
    """The stored curves of one of `reference_names`."""
    file   = resources.files("npgpt.presets") / f"{preset}{SUFFIX}"
    stored = json.loads(file.read_text(encoding="utf-8"))
    arrays = {part: {name: np.array(rows, float) for name, rows in stored[part].items()}        # null is NaN
              for part in ("curves", "beginning")}
    return Reference(**stored | arrays | {
        "text": Text(**stored["text"]), "seeds": tuple(stored["seeds"]),
        "steps": np.array(stored["steps"]), "beginning_steps": np.array(stored["beginning_steps"])})


def write_reference(reference: Reference) -> str:
    """The JSON that `read_reference` reads: a line a key, in `curves` and `beginning` a line a seed."""
    def rows(array: np.ndarray) -> str:
        numbers = [[None if np.isnan(x) else round(float(x), 5) for x in row] for row in array]
        return ",\n   ".join(map(json.dumps, numbers))

    lines = []
    for key, value in reference._asdict().items():
        if isinstance(value, dict) and key != "settings":
            inner = ",\n  ".join(f"{json.dumps(name)}: [\n   {rows(array)}]" for name, array in value.items())
            lines.append(f"{json.dumps(key)}: {{\n  {inner}}}")
            continue
        if isinstance(value, Text):
            value = value._asdict()
        elif isinstance(value, np.ndarray):
            value = value.tolist()
        lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def settings_that_matter(config: Any, vocab_size: int) -> dict[str, Any]:
    """What of a TrainConfig decides the curve, in a form in which equal trainings are equal.

    vocab_size: of the run's tokenizer.  What None stands for is written out; the schedule is told by where
    the learning rate decays to, not by max_iters; a step by its sequences, whether they go through the model
    at once or not; float64 trains as float32 does, and TF32 is a type of its own.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in IGNORED}
    model = config.model(vocab_size)
    settings |= {
        "vocab_size": vocab_size,
        "n_kv_head": model.kv_heads, "head_dim": model.head_size, "n_inner": model.inner_size,
        "lr_decay_iters": config.lr_decay_iters or config.max_iters,
        "min_lr": config.learning_rate / 10 if config.min_lr is None else config.min_lr,
        "batch_size × gradient_accumulation_steps": config.sequences_per_update,
        "batch_size × eval_iters": config.batch_size * config.eval_iters,
        "dtype": "tf32" if config.tf32 else "float32" if config.dtype == "float64" else config.dtype,
    }
    for name in ("qkv_bias", "attn_proj_bias"):
        settings[name] = config.bias if settings[name] is None else settings[name]
    return settings


def text_of(data: str, tokenizer: Tokenizer, *sides: np.ndarray) -> Text:
    """The identity of a run's text, from its tokens (training, validation), whatever seed split and encoded
    them.

    The hash is that of the sorted hashes of the documents of both sides.
    """
    texts = [text for tokens in sides for text in _documents(tokenizer, tokens)]
    parts = sorted(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    return Text(data, sum(map(len, texts)), hashlib.sha256(b"".join(parts)).hexdigest())


def _documents(tokenizer: Tokenizer, tokens: np.ndarray) -> Iterator[str]:
    end  = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    ids  = np.asarray(tokens, np.int64)
    for part in np.split(ids, np.flatnonzero(ids == end) + 1):
        if len(part := part[part != end]):
            yield tokenizer.decode(part.tolist())


def sample_like(reference: Reference, curves: Mapping[str, Curve]) -> dict[str, np.ndarray]:
    """A run's curves at the reference's steps, averaged as there."""
    return sample_curves(curves, reference.steps, reference.logged_every, reference.window)


def sample_curves(curves: Mapping[str, Curve], steps: Sequence[int] | np.ndarray, logged_every: int,
                  window: int) -> dict[str, np.ndarray]:
    """A run's QUANTITIES at these steps, (S,) each; NaN where the run has not all that one needs.

    train_loss and grad_norm take the values logged at the multiples of `logged_every` in the `window` steps
    up to each.
    """
    def known(name: str) -> dict[float, float]:
        return dict(zip(curves[name].step, curves[name].value, strict=True)) if name in curves else {}

    def means(values: Mapping[float, float]) -> np.ndarray:
        missing = float("nan")
        logged  = [np.arange(max(0, step - window) + logged_every, step + 1, logged_every) for step in steps]
        return np.array([np.mean([values.get(float(s), missing) for s in some]) if len(some) else missing
                         for some in logged])

    val   = known("val_loss")
    norms = {step: float(np.log(value)) for step, value in known("grad_norm").items() if value > 0}
    return {"val_loss": np.array([val.get(float(step), float("nan")) for step in steps]),
            "train_loss": means(known("train_loss")), "grad_norm": means(norms)}
