"""Fine-tuning: a model that is there learns on: all of it, a part, or adapters beside its weights (LoRA).

The run's folder keeps what it began from in base/, in Hugging Face's layout with tokenizer and chat template,
so that it depends on nothing outside. Its checkpoints hold what is learned and nothing else: with LoRA or
--trainable that is little.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from npgpt.errors import ConfigError
from npgpt.interop.beside_models import Carried
from npgpt.interop.huggingface import is_classifier, read_classifier, read_model
from npgpt.layers import add_lora
from npgpt.models import GPT, GPTConfig, SequenceClassifier
from npgpt.ranges import check_range
from npgpt.tokenizers.files import Tokenizer
from npgpt.training.config import Settings, StepSettings

BASE    = "base"
LONGEST = 1024          # tokens of context where nobody says: a Llama's 131,072 at once fit no memory


class Loaded(NamedTuple):
    """A model to use, or to begin from.

    model: a GPT, or from `load_any` a SequenceClassifier.  eos_token_ids: each ends a text.
    chat_template: in Jinja, or None.  named_tokens: the texts of the tokens that are its bos_token,
    eos_token and so on, as far as there are such.  carried: what its files say further, to be written again.
    """

    model: Any
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]
    chat_template: str | None
    named_tokens: Mapping[str, str]
    carried: Carried

    @property
    def bos_token_id(self) -> int | None:
        return self.tokenizer.special_tokens.get(self.named_tokens.get("bos_token", ""))


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """What is learned, and how much of the model learns."""

    # Data
    model: str = ""
    """What to begin from: the folder of a run or of a model in Hugging Face's layout, the name of one on its
    hub, or a GGUF file."""
    checkpoint: str = "best"
    """Of a run to begin from: best (lowest validation loss), latest, or the number of a step."""
    data: str = ""
    """What to learn: a .jsonl file with a record a line, or a .json file with a list of them, packed (.gz,
    .zst) or not: messages, prompt and completion (of both the answers alone are learned), ShareGPT's
    conversations, Alpaca's instruction, input and output, text and label (a classifier), or text; or texts
    as for npgpt train."""
    val_data: str = ""
    """The same to validate on; by default a part of data is held back."""
    val_fraction: float = 0.1
    """How much of it."""
    packing: bool = True
    """Several examples share a row of block_size tokens, without seeing each other."""
    block_size: int = 0
    """Context, in tokens; longer examples are left out, and counted. 0: the model's, and at most 1024."""
    epochs: float = 3.0
    """How often all of data is read, unless max_iters says how many updates to make."""

    # Model
    trainable: str = "*"
    """Parameters that learn, by patterns with commas between: 'h.10.*,h.11.*,ln_f.*' are the last two blocks
    of twelve and the last norm. The head of a classifier always learns."""
    lora_rank: int = 0
    """The rank of LoRA's adapters, which then learn in the place of the weights; 0: no adapters."""
    lora_alpha: float = 16.0
    """What adapters add is scaled by lora_alpha / lora_rank."""
    lora_targets: str = "attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj"
    """The linear maps of each block that get adapters."""
    dropout: float = 0.0
    """The chance of each element to be dropped, on the embeddings and on what each block adds."""
    attention_dropout: float = 0.0
    """The same on attention's probabilities."""
    gradient_checkpointing: bool = False
    """Keep only each block's input for backward and run the block again: less memory, a third more work."""


@dataclass(frozen=True)
class FinetuneConfig(StepSettings, FinetuneSettings):
    """All settings of a fine-tuning."""

    batch_size: int = 8
    """Rows that go through the model at once: examples, or of packed ones block_size tokens."""
    max_iters: int = 0
    """Updates; 0: as many as the epochs take."""
    learning_rate: float = 1e-4
    """The highest learning rate, reached after the warm-up. Adapters take ten times as much as all weights
    do, and small models more than large ones."""
    warmup_iters: int = 10
    """Updates over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's decay, on matrices only."""
    eval_interval: int = 0
    """Updates between two evaluations; each saves a checkpoint. 0: ten evaluations in all."""
    eval_iters: int = 100
    """Batches of an evaluation, at most."""

    def __post_init__(self):
        """Raises ConfigError for a value that cannot be."""
        super().__post_init__()
        check_range("val_fraction", self.val_fraction, above=0, below=1)
        for name in ("max_iters", "eval_interval", "block_size", "lora_rank"):
            check_range(name, getattr(self, name), least=0)
        for name in ("epochs", "lora_alpha"):
            check_range(name, getattr(self, name), above=0)
        for name in ("dropout", "attention_dropout"):
            check_range(name, getattr(self, name), least=0, below=1)
        if self.lora_rank and self.trainable != "*":
            raise ConfigError("lora_rank and trainable both say what learns: give one of them")

    def resolved(self, rows: int) -> "FinetuneConfig":
        """With the numbers that depend on how many rows there are."""
        updates = self.max_iters or max(1, round(self.epochs * rows / self.sequences_per_update))
        return dataclasses.replace(self, max_iters=updates,
                                   eval_interval=self.eval_interval or max(1, updates // 10))


def finetuned_model(base: Path, config: FinetuneConfig) -> GPT | SequenceClassifier:
    """The model of base/ with everything in place that learns, before it has learned anything.

    Raises ConfigError, CheckpointError.
    """
    def shape(**settings: Any) -> GPTConfig:
        return GPTConfig(**settings | {name: getattr(config, name) for name in (
            "dropout", "attention_dropout", "gradient_checkpointing")})

    model: GPT | SequenceClassifier
    if is_classifier(base):
        found, labels, tensors = read_classifier(base, shape)
        model = SequenceClassifier(found, labels.names, None, config.device, config.dtype,
                                   labels.pad_token_id)
    else:
        found, tensors = read_model(base, shape)
        model = GPT(found, None, config.device, config.dtype)
    model.flat.load(tensors)
    prepare(model, config)
    return model


def prepare(model: GPT | SequenceClassifier, config: FinetuneConfig) -> None:
    """Puts in LoRA's adapters, or freezes what does not learn; a classifier's head always does."""
    def head(name: str) -> bool:
        return name.startswith("score.")

    if config.lora_rank:
        add_lora(model, config.lora_rank, config.lora_alpha, _parts(config.lora_targets), config.seed, head)
    elif config.trainable != "*":
        names = list(model.parameters)
        for pattern in _parts(config.trainable):
            if not fnmatch.filter(names, pattern):
                raise ConfigError(f"trainable: {pattern!r} is the name of no parameter; they are called "
                                  f"{names[0]}, {names[-2]}, {names[-1]}, …")
        model.freeze(lambda name: head(name) or any(fnmatch.fnmatchcase(name, pattern)
                                                    for pattern in _parts(config.trainable)))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
