"""npgpt: a GPT that can be read down to the last derivative and really trained, in NumPy and CuPy alone."""

from pathlib import Path
from typing import Any

from npgpt.errors import NpgptError
from npgpt.inspection.gradient_check import GradientError, check_gradients
from npgpt.layers import add_lora, merge_lora
from npgpt.models import GPT, GPTConfig, SequenceClassifier
from npgpt.tensor import Key
from npgpt.terminal import warn
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, load_tokenizer
from npgpt.training.optimizer import AdamW, clip_grad_norm

__version__ = "0.1.0"

__all__ = ["GPT", "AdamW", "BPETokenizer", "CharacterTokenizer", "GPTConfig", "GradientError", "Key",
           "NpgptError", "SequenceClassifier", "add_lora", "check_gradients", "clip_grad_norm", "load",
           "load_tokenizer", "merge_lora"]


def load(path: str | Path, checkpoint: str = "best", device: str = "cpu") -> tuple[Any, Any]:
    """A model and its tokenizer: of a run's folder, a model's in Hugging Face's layout or its name on the
    hub, or a GGUF file.

    checkpoint: of a run, best (lowest validation loss), latest, or a step's number; LoRA is merged.  Raises
    TrainingError for a folder that is none of these, ConfigError, CheckpointError, TokenizerError.
    """
    from npgpt.training.loading import load_any  # on demand: with it comes all that reads files

    model, tokenizer, *_ = load_any(path, checkpoint, device, warn)
    return model, tokenizer
