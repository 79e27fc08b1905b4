"""The mathematics: each op is a pair of pure functions, `<name>_forward` and `<name>_backward`, in one file.

Forward returns (y, saved), backward takes (dy, saved) and returns the gradients in the order of forward's
arguments. The derivation stands at the head of each file. Single functions are adamw, weight_gradient and
sum_of_squares.
"""

from npgpt.ops.adamw import adamw
from npgpt.ops.attention import attention_backward, attention_forward
from npgpt.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from npgpt.ops.dropout import dropout_backward, dropout_forward
from npgpt.ops.embedding import embedding_backward, embedding_forward
from npgpt.ops.gelu import gelu_erf_backward, gelu_erf_forward, gelu_tanh_backward, gelu_tanh_forward
from npgpt.ops.layernorm import layernorm_backward, layernorm_forward
from npgpt.ops.linear import linear_backward, linear_forward, weight_gradient
from npgpt.ops.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from npgpt.ops.lora import lora_backward, lora_forward
from npgpt.ops.penalty import penalty_backward, penalty_forward
from npgpt.ops.relu import relu_backward, relu_forward
from npgpt.ops.residual import residual_backward, residual_forward
from npgpt.ops.residual_norm import (
    residual_layernorm_backward,
    residual_layernorm_forward,
    residual_rmsnorm_backward,
    residual_rmsnorm_forward,
)
from npgpt.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npgpt.ops.rotary import rotary_backward, rotary_forward
from npgpt.ops.softcap import softcap_backward, softcap_forward
from npgpt.ops.softmax import softmax_backward, softmax_forward
from npgpt.ops.sum_of_squares import sum_of_squares
from npgpt.ops.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "adamw",
    "attention_backward", "attention_forward",
    "cross_entropy_backward", "cross_entropy_forward",
    "dropout_backward", "dropout_forward",
    "embedding_backward", "embedding_forward",
    "gelu_erf_backward", "gelu_erf_forward", "gelu_tanh_backward", "gelu_tanh_forward",
    "layernorm_backward", "layernorm_forward",
    "linear_backward", "linear_forward", "weight_gradient",
    "linear_cross_entropy_backward", "linear_cross_entropy_forward",
    "lora_backward", "lora_forward",
    "penalty_backward", "penalty_forward",
    "relu_backward", "relu_forward",
    "residual_backward", "residual_forward",
    "residual_layernorm_backward", "residual_layernorm_forward",
    "residual_rmsnorm_backward", "residual_rmsnorm_forward",
    "rmsnorm_backward", "rmsnorm_forward",
    "rotary_backward", "rotary_forward",
    "softcap_backward", "softcap_forward",
    "softmax_backward", "softmax_forward",
    "sum_of_squares",
    "swiglu_backward", "swiglu_forward",
]
