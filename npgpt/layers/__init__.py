"""Layers own parameters and compose ops: forward(x) → (y, saved), backward(dy, saved) → dx."""

from npgpt.layers.attention import SelfAttention
from npgpt.layers.block import Block, ParallelBlock, ParallelPostNormBlock, PostNormBlock
from npgpt.layers.checkpointing import Checkpointed
from npgpt.layers.dropout import Dropout
from npgpt.layers.embedding import Embedding
from npgpt.layers.feed_forward import FeedForward
from npgpt.layers.head import LanguageModelHead
from npgpt.layers.linear import Linear
from npgpt.layers.lora import LoRALinear, add_lora, lora_layers, merge_lora
from npgpt.layers.module import Module, Parameter
from npgpt.layers.norm import LayerNorm, RMSNorm
from npgpt.layers.position import LearnedPosition, RotaryPosition, SinusoidalPosition

__all__ = ["Block", "Checkpointed", "Dropout", "Embedding", "FeedForward", "LanguageModelHead", "LayerNorm",
           "LearnedPosition", "Linear", "LoRALinear", "Module", "ParallelBlock", "ParallelPostNormBlock",
           "Parameter", "PostNormBlock", "RMSNorm", "RotaryPosition", "SelfAttention", "SinusoidalPosition",
           "add_lora", "lora_layers", "merge_lora"]
