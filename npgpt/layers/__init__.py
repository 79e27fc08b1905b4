"""Layers own parameters and compose ops: forward(x) → (y, saved), backward(dy, saved) → dx."""

from npgpt.layers.attention import SelfAttention
from npgpt.layers.block import Block
from npgpt.layers.checkpointing import Checkpointed
from npgpt.layers.dropout import Dropout
from npgpt.layers.embedding import Embedding
from npgpt.layers.feed_forward import FeedForward
from npgpt.layers.linear import Linear
from npgpt.layers.module import Module, Parameter
from npgpt.layers.norm import LayerNorm
from npgpt.layers.position import LearnedPosition, SinusoidalPosition

__all__ = ["Block", "Checkpointed", "Dropout", "Embedding", "FeedForward", "LayerNorm", "LearnedPosition",
           "Linear", "Module", "Parameter", "SelfAttention", "SinusoidalPosition"]
