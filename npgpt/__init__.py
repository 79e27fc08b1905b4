"""npgpt: a GPT that can be read down to the last derivative and really trained, in NumPy and CuPy alone."""

from npgpt.errors import NpgptError
from npgpt.inspection.gradient_check import GradientError, check_gradients
from npgpt.layers import add_lora, merge_lora
from npgpt.models import GPT, GPTConfig, SequenceClassifier
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, load_tokenizer
from npgpt.training.optimizer import AdamW, clip_grad_norm

__version__ = "0.1.0"

__all__ = ["GPT", "AdamW", "BPETokenizer", "CharacterTokenizer", "GPTConfig", "GradientError", "NpgptError",
           "SequenceClassifier", "add_lora", "check_gradients", "clip_grad_norm", "load_tokenizer",
           "merge_lora"]
