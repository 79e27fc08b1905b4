"""Models: layers put together."""

from npgpt.models.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
