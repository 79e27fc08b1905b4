"""Models: layers put together."""

from npgpt.models.classifier import SequenceClassifier
from npgpt.models.config import GPTConfig
from npgpt.models.gpt import GPT

__all__ = ["GPT", "GPTConfig", "SequenceClassifier"]
