"""All settings of a training run, and where they come from: a preset, then a file, then flags."""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

from npgpt.errors import ConfigError
from npgpt.models import GPTConfig
from npgpt.ranges import check_range, check_types
from npgpt.tensor.precision import NARROW
from npgpt.tokenizers.checks import has_surrogates
from npgpt.training.schedule import learning_rate


@dataclass(frozen=True)
class Settings:
    """Settings that a TOML file holds."""

    def __post_init__(self):
        """Raises ConfigError for a value of the wrong type, or a text that can be no name."""
        check_types(self)
        for name, value in vars(self).items():
            if isinstance(value, str) and "\0" in value:
                raise ConfigError(f"{name} has a zero byte, which no name may have: {value!r}")

    @classmethod
    def parse(cls, settings: Mapping[str, Any], source: str, base: Self | None = None) -> Self:
        """`base` (by default the defaults) with these settings over it; `source` is named in errors.

        `-` in a name counts as `_`. Raises ConfigError for an unknown name, which tells the nearest known
        one, and for a value that cannot be.
        """
        fields  = {field.name for field in dataclasses.fields(cls)}
        changes = {}
        for key, value in settings.items():
            name = key.replace("-", "_")
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
                raise ConfigError(f"{source}: unknown setting {key!r}; the nearest known one is {near[0]!r}")
            changes[name] = value
        try:
            return dataclasses.replace(base or cls(), **changes)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_toml(self) -> str:
        """One line a setting; what is None is left out. Raises ConfigError for a text that is not UTF-8."""
        lines = []
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, str) and has_surrogates(value):
                raise ConfigError(f"{name} = {value!r} is no UTF-8, and cannot be kept with the settings: "
                                  "give it another name")
            if value is not None:                          # as in JSON, but that TOML forbids U+007F
                lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f"))
        return "".join(lines)


@dataclass(frozen=True)
class ModelSettings(Settings):
    """What a new model learns from, and its shape."""

    # Data
    data: str = "python-docs"
    """What to learn from: python-docs (the language reference that comes with Python), a text file or a
    folder of text files, UTF-8, packed (.gz, .zst) or not; a .jsonl or .json file of examples, as npgpt
    finetune takes; or a folder that npgpt prepare made, which brings its own tokenizer and its own split:
    then val_fraction, tokenizer and vocab_size are not asked."""
    val_fraction: float = 0.1
    """The share of the text held back for validation."""
    packing: bool = True
    """Of examples: several share a row of block_size tokens, without seeing each other."""
    val_data: str = ""
    """What to validate on, of the same kind; by default a part of data is held back."""
    tokenizer: str = "bpe"
    """bpe (byte-level byte-pair encoding, trained on the text), character, the folder or file of a
    tokenizer, or the name of one on Hugging Face's hub."""
    vocab_size: int = 1024
    """Tokens that bpe may use: 256 bytes, one special token, the rest learned merges. The other tokenizers
    bring their own."""

    # Model
    block_size: int = 128
    """Context: the longest sequence the model reads, in tokens."""
    n_layer: int = 4
    """Blocks."""
    n_head: int = 4
    """Attention heads; n_embd must be a multiple."""
    n_embd: int = 192
    """Channels."""
    n_kv_head: int | None = None
    """Key and value heads, each shared by n_head / n_kv_head queries (grouped-query attention); by default
    n_head."""
    head_dim: int | None = None
    """Channels of a head; by default n_embd / n_head."""
    n_inner: int | None = None
    """Width inside the feed-forward layer; by default 4 n_embd. For swiglu 8/3 n_embd is as many
    weights."""
    dropout: float = 0.1
    """The chance of each element to be dropped, on the embeddings and on what each block adds."""
    attention_dropout: float = 0.0
    """The same on attention's probabilities."""
    bias: bool = True
    """Biases in linear maps and layer norms."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values; by default as bias."""
    attn_proj_bias: bool | None = None
    """Bias of attention's output map; by default as bias."""
    norm: str = "layernorm"
    """layernorm or rmsnorm."""
    norm_eps: float = 1e-5
    """What the norms add to the variance."""
    block: str = "pre"
    """Where the norm stands: pre (GPT-2, Llama), post (the first Transformer), parallel (GPT-J, PaLM) or
    parallel_post."""
    activation: str = "gelu_tanh"
    """gelu_tanh (GPT-2's), gelu_erf, relu or swiglu (Llama's)."""
    qk_norm: bool = False
    """An RMSNorm over each head's queries and keys."""
    position: str = "learned"
    """learned (GPT-2's), sinusoidal, rotary (Llama's) or none."""
    rope_theta: float = 10000.0
    """Base of the rotary rates: the larger, the slower the slowest pair turns."""
    rope_interleaved: bool = False
    """Rotary pairs are neighbouring channels, not channels half a head apart."""
    rope_scaling: str = "none"
    """Slower rotary rates, for contexts longer than the model was trained on: none, linear or llama3."""
    rope_factor: float = 1.0
    """How much slower."""
    rope_low_freq_factor: float = 1.0
    """llama3: pairs that turn less often within the original context are slowed down in full."""
    rope_high_freq_factor: float = 4.0
    """llama3: pairs that turn more often are not slowed down."""
    rope_original_block_size: int = 8192
    """llama3: the original context, in tokens."""
    tie_word_embeddings: bool = True
    """The head scores tokens by the vectors of the embedding."""
    logit_softcap: float = 0.0
    """Logits are bent to stay within ± this; 0: no cap."""
    gradient_checkpointing: bool = False
    """Keep only each block's input for backward and run the block again: less memory, a third more work."""


@dataclass(frozen=True)
class StepSettings(Settings):
    """What every training is told: how to make its steps, what to say of them, on which machine."""

    # Optimisation
    batch_size: int = 16
    """Sequences that go through the model at once."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are added up before each update."""
    max_iters: int = 800
    """Updates."""
    learning_rate: float = 3e-3
    """The highest learning rate, reached after the warm-up."""
    warmup_iters: int = 100
    """Updates over which the learning rate rises."""
    lr_decay_iters: int | None = None
    """The update at which the learning rate arrives at min_lr; by default max_iters."""
    min_lr: float | None = None
    """The lowest learning rate; by default a tenth of the highest."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.99
    """AdamW's memory of the gradient's square."""
    grad_clip: float = 1.0
    """The longest gradient; longer ones are scaled down. 0 leaves them."""
    l1: float = 0.0
    """Penalty added to the loss, times the sum of all |w| in matrices."""
    l2: float = 0.0
    """Penalty added to the loss, times the sum of all w² in matrices."""

    # Evaluation
    eval_interval: int = 200
    """Updates between two evaluations; each saves a checkpoint."""
    eval_iters: int = 50
    """Batches of an evaluation, at most."""
    early_stopping_patience: int = 0
    """Stop after so many evaluations in a row without a better one; 0: never."""
    log_interval: int = 10
    """Updates between two lines of metrics."""
    sample_tokens: int = 64
    """Tokens the model writes after each evaluation, to be looked at; 0 for none."""

    # Run
    seed: int = 1337
    """Everything random is a function of it."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    workers: int | None = None
    """Ranks that share each batch on the CPU: processes with the cores shared out among them. By default the
    physical cores, or as many as there are sequences in a step; under mpiexec its processes are the ranks."""
    dtype: str = "float32"
    """float32 or float64; on a GPU also bfloat16 or float16, whose weights follow float32 masters."""
    tf32: bool = False
    """On a GPU, multiply matrices of float32 several times faster, their numbers rounded to TF32, 10 bits."""
    out_dir: str | None = None
    """The run's folder, new or empty; by default runs/ and the name of the preset, or of the model that is
    fine-tuned, with a number if that is taken."""

    @property
    def sequences_per_update(self) -> int:
        """On all ranks together."""
        return self.batch_size * self.gradient_accumulation_steps

    def rate(self, step: int) -> float:
        """The learning rate of update number `step`, from 0."""
        least = self.learning_rate / 10 if self.min_lr is None else self.min_lr
        return learning_rate(step, self.learning_rate, self.warmup_iters,
                             self.lr_decay_iters or self.max_iters, least)

    def __post_init__(self):
        """Raises ConfigError for a value that cannot be."""
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{field.name} must be a finite number, not {value}")
        for name in ("batch_size", "gradient_accumulation_steps", "eval_iters", "log_interval"):
            check_range(name, getattr(self, name), least=1)
        check_range("batch_size", self.batch_size, most=2**31 - 1)
        for name in ("learning_rate", "warmup_iters", "weight_decay", "grad_clip", "l1", "l2",
                     "sample_tokens", "early_stopping_patience"):
            check_range(name, getattr(self, name), least=0)
        for name in ("beta1", "beta2"):
            check_range(name, getattr(self, name), least=0, below=1)
        check_range("seed", self.seed, least=0, below=2**64)
        if self.lr_decay_iters is not None:
            check_range("lr_decay_iters", self.lr_decay_iters, least=1)
        sequences = self.sequences_per_update
        self._need(self.workers is None or 1 <= self.workers <= sequences, "workers",
                   f"1 to {sequences}, a sequence of the step for each")
        self._need(self.workers in (None, 1) or self.device == "cpu", "workers", "1 on a GPU")
        self._need(self.dtype in ("float32", "float64", *NARROW), "dtype",
                   "float32 or float64, or on a GPU bfloat16 or float16")
        self._need(self.dtype not in NARROW or self.device != "cpu", "dtype", "float32 or float64 on the CPU")
        self._need(not self.tf32 or (self.device != "cpu" and self.dtype == "float32"), "tf32",
                   "false but in float32 on a GPU")
        self._need(self.min_lr is None or 0 <= self.min_lr <= self.learning_rate, "min_lr",
                   "at least 0 and at most learning_rate")

    def _need(self, fine: bool, name: str, what: str) -> None:
        if not fine:
            raise ConfigError(f"{name} must be {what}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class TrainConfig(StepSettings, ModelSettings):
    """The defaults are those of the preset quick; the names are nanoGPT's."""

    def __post_init__(self):
        """Raises ConfigError for a value that cannot be."""
        super().__post_init__()
        for name in ("max_iters", "eval_interval"):
            check_range(name, getattr(self, name), least=1)
        check_range("val_fraction", self.val_fraction, above=0, below=1)
        self.model(self.vocab_size)

    def model(self, vocab_size: int) -> GPTConfig:
        """The model's shape, for a vocabulary of this size."""
        shared = {field.name for field in dataclasses.fields(GPTConfig)} - {"vocab_size"}
        return GPTConfig(vocab_size, **{name: getattr(self, name) for name in shared})


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in resources.files("npgpt.presets").iterdir()
                  if entry.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset. Raises ConfigError for an unknown name."""
    if name not in preset_names():
        raise ConfigError(f"unknown preset {name!r}: use one of {', '.join(preset_names())}")
    return tomllib.loads((resources.files("npgpt.presets") / f"{name}.toml").read_text(encoding="utf-8"))


def read_settings(preset: str, file: str | None) -> TrainConfig:
    """A preset, and the settings of a TOML file over it. Raises ConfigError."""
    settings = TrainConfig.parse(read_preset(preset), f"preset {preset}")
    return TrainConfig.parse(read_config_file(Path(file)), file, settings) if file else settings


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file. Raises ConfigError if it cannot be read."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:          # also thousands of digits or of open brackets
        raise ConfigError(f"{path} is not TOML: {error}") from error
