"""npgpt: a GPT that can be read down to the last derivative and really trained, in NumPy and CuPy alone."""

from npgpt.errors import NpgptError
from npgpt.inspection.gradient_check import GradientError, check_gradients
from npgpt.models.gpt import GPT, GPTConfig

__version__ = "0.1.0"

__all__ = ["GPT", "GPTConfig", "GradientError", "NpgptError", "check_gradients"]
