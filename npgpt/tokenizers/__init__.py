"""Text to token ids and back: byte-level BPE and single characters, and reading either from its folder."""

from npgpt.tokenizers.byte_pair import BPETokenizer
from npgpt.tokenizers.character import CharacterTokenizer
from npgpt.tokenizers.files import load_tokenizer

__all__ = ["BPETokenizer", "CharacterTokenizer", "load_tokenizer"]
