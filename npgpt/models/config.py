"""The shape of a GPT, and the options by which its descendants differ from it."""

from dataclasses import dataclass

from npgpt.errors import ConfigError
from npgpt.layers.feed_forward import ACTIVATIONS
from npgpt.layers.position import ROPE_SCALINGS
from npgpt.ranges import FINITE, check_range, check_types

ALLOWED = {
    "norm": ("layernorm", "rmsnorm"),
    "block": ("pre", "post", "parallel", "parallel_post"),
    "activation": tuple(ACTIVATIONS),
    "position": ("learned", "sinusoidal", "rotary", "none"),
    "rope_scaling": ROPE_SCALINGS,
}

DEEPEST = 10_000            # blocks: more would fill memory one by one, before any array is too large


@dataclass(frozen=True)
class GPTConfig:
    """The defaults are GPT-2 124M. Raises ConfigError for a shape that cannot be.

    Llama: norm="rmsnorm", activation="swiglu", position="rotary", bias=False, tie_word_embeddings=False and
    its own n_kv_head, n_inner, norm_eps and rope_theta.
    """

    vocab_size: int = 50257
    block_size: int = 1024                  # the longest sequence, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_kv_head: int | None = None            # key and value heads, shared by n_head / n_kv_head queries; all
    head_dim: int | None = None             # n_embd / n_head
    n_inner: int | None = None              # width inside the feed-forward layer; 4 n_embd

    dropout: float = 0.0                    # on the embeddings and on what attention and feed-forward add
    attention_dropout: float = 0.0          # on attention's probabilities

    bias: bool = True                       # in linear maps and layer norms
    qkv_bias: bool | None = None            # in attention's map to queries, keys and values; as bias
    attn_proj_bias: bool | None = None      # in attention's map back; as bias

    norm: str = "layernorm"                 # or rmsnorm
    norm_eps: float = 1e-5
    block: str = "pre"                      # post, parallel, parallel_post: npgpt/layers/block.py
    activation: str = "gelu_tanh"           # or gelu_erf, relu, swiglu
    qk_norm: bool = False                   # an RMSNorm over each head's queries and keys

    position: str = "learned"               # or sinusoidal, rotary, none
    rope_theta: float = 10000.0             # base of the rotary rates
    rope_interleaved: bool = False          # pairs are neighbours, not half a head apart: npgpt/ops/rotary.py
    rope_scaling: str = "none"              # or linear, llama3: npgpt.layers.RotaryPosition
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_block_size: int = 8192

    tie_word_embeddings: bool = True        # the head scores tokens by the vectors of the embedding
    logit_softcap: float = 0.0              # logits stay within ± this; 0: no cap

    gradient_checkpointing: bool = False    # keep each block's input only: less memory, a third more work

    def __post_init__(self):
        check_types(self)
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "head_dim",
                     "n_inner", "rope_original_block_size"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), least=1)
        check_range("n_layer", self.n_layer, most=DEEPEST)
        for name in ("norm_eps", "rope_theta", "rope_factor"):
            check_range(name, getattr(self, name), above=0, most=FINITE)
        for name in ("dropout", "attention_dropout"):
            check_range(name, getattr(self, name), least=0, below=1)
        check_range("logit_softcap", self.logit_softcap, least=0, most=FINITE)
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ConfigError(f"n_embd must be a multiple of n_head, so that heads are of one size: "
                              f"{self.n_embd} is no multiple of {self.n_head}")
        if self.n_head % self.kv_heads:
            raise ConfigError(f"n_head must be a multiple of n_kv_head, so that equally many queries share "
                              f"a key: {self.n_head} is no multiple of {self.kv_heads}")
        if self.position == "rotary" and self.head_size % 2:
            raise ConfigError(f"rotary positions turn pairs of channels, and heads of {self.head_size} have "
                              "no pairs: give an even head_dim")
        if not self.rope_low_freq_factor < self.rope_high_freq_factor:
            raise ConfigError(f"rope_low_freq_factor must be below rope_high_freq_factor, not "
                              f"{self.rope_low_freq_factor} and {self.rope_high_freq_factor}")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @property
    def flops_per_token(self) -> int:
        """Operations of forward and backward, a token of a sequence of block_size tokens: 6 for each weight
        of a matrix product, and attention's 12 H D T, as if nothing were hidden (Chowdhery et al. 2022, B).
        """
        C, D, H = self.n_embd, self.head_size, self.n_head
        attention    = C * (H + 2 * self.kv_heads) * D + H * D * C
        feed_forward = (3 if self.activation == "swiglu" else 2) * C * self.inner_size
        weights      = self.n_layer * (attention + feed_forward) + self.vocab_size * C
        return 6 * weights + self.n_layer * 12 * H * D * self.block_size
