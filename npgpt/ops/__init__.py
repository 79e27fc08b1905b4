"""The mathematics: each op is a pair of pure functions, `<name>_forward` and `<name>_backward`, in one file.

Forward returns (y, saved), backward takes (dy, saved) and returns the gradients of those of forward's
arguments that have one, in their order. The derivation stands at the head of each file. Single functions are
adamw, weight_gradient and sum_of_squares.

What a derivation takes as known.  Training lowers one number, the loss L. dx is ∂L/∂x, of x's shape: how much
L rises for each little that an element of x does; training goes the other way. Backward is handed dy and
needs to know no more of L, for an element of x moves L only by the elements of y that it goes into (the chain
rule):

    dxᵢ = Σⱼ dyⱼ ∂yⱼ/∂xᵢ

All the ∂yⱼ/∂xᵢ at once, numbers of y times numbers of x, are never made: each file finds a short form of
the sum. Two things follow from it, and all files use them:
    What goes into several places gets the sum over all of them: a bias that is added to every row,
    dbⱼ = Σₙ dyₙⱼ; x in y = x + f(x). Broadcast in forward is a sum in backward.
    What is computed in steps, h = f(x) and y = g(h), is gone back from the last: dh from dy, then dx from dh.

How it is written.  δᵢⱼ is 1 where i = j, else 0; [a statement] is 1 where it is true, else 0.
    x W, Q Kᵀ       a product with a matrix, which has a capital letter or is transposed
    γ x̂, dy x̂       any other two arrays are multiplied element by element, a row (C,) with every row;
                    P ⊙ dP says so of two matrices
    mean, Σ         within a row, over its C channels; where it is over the N rows, that is said
    T, S, C, D, …   axes: B batch, T time (queries), S source (keys), C channels, H heads, D head size,
                    V vocabulary; (..., C) are N rows of C, however many axes they stand in

From plain to hard: residual, linear, embedding, relu, gelu, swiglu, softmax, cross_entropy, rmsnorm,
layernorm, dropout, rotary, attention. `npgpt gradcheck NAME` compares a backward with differences of its
forward.
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
