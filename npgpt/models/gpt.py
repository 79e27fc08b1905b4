"""GPT (Radford et al. 2018, 2019) and its descendants: causal blocks that predict each next token.

    x = wte[token] + wpe[place]        x = hₙ₋₁(… h₀(x))        logits = ln_f(x) wteᵀ        n: n_layer

All but the head is npgpt/models/decoder.py. wte is read at both ends, and its two gradients add.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from npgpt.errors import ConfigError, DataError
from npgpt.generation import decoding
from npgpt.generation.kv_cache import KVCache
from npgpt.interop.huggingface import find_folder, read_model
from npgpt.interop.huggingface_writing import write_model
from npgpt.layers import LanguageModelHead, Parameter
from npgpt.models.config import GPTConfig
from npgpt.models.decoder import CACHED, SAVE_INSTEAD, Decoder, take
from npgpt.ranges import FINITE, check_range
from npgpt.tensor import array_module, to_numpy

PROBED = 256        # tokens, by which it is found out whether a part of one's own keeps to the KV cache


class GPT(Decoder):
    """tokens: integers (B, T), T ≤ block_size.  `forward` gives logits, `loss` their cross-entropy.

    key, attention_mask: as in Decoder.
    """

    def __init__(self, config: GPTConfig, seed: int | None = 1337, device: str = "cpu",
                 dtype: str = "float32"):
        super().__init__(config)
        self.lm_head = LanguageModelHead(self.wte.weight if config.tie_word_embeddings else
                                         Parameter(config.vocab_size, config.n_embd, std=0.02),
                                         config.logit_softcap)
        self.initialise(seed, device, dtype)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, device: str = "cpu", dtype: str = "float32") -> "GPT":
        """The model in a Hugging Face folder, or of that name on the hub: npgpt/interop/huggingface.py.

        Raises ConfigError, CheckpointError, naming file and entry or tensor.
        """
        config, tensors = read_model(find_folder(path_or_name), GPTConfig)
        model = cls(config, None, device, dtype)
        model.flat.load(tensors)
        return model

    def save_pretrained(self, path: str | Path, dtype: str | None = None,
                        max_shard_size: int | str = "5GB") -> None:
        """Writes such a folder, whole or not at all. dtype, max_shard_size: see `write_model`.

        Raises ConfigError for a model with parts of your own, of which no such folder tells.
        """
        self.check_as_configured(SAVE_INSTEAD)
        arrays = {name: parameter.data for name, parameter in self.parameters.items()}
        write_model(path, asdict(self.config), arrays, dtype, max_shard_size)

    def _head_shapes(self):
        c = self.config
        return {} if c.tie_word_embeddings else {"lm_head.weight": (c.vocab_size, c.n_embd)}

    def forward(self, tokens, key=None, kv_cache: KVCache | None = None, attention_mask=None):
        """tokens: (B, T), or embeddings  →  logits: (B, T, vocab_size), saved for `backward_logits`

        kv_cache: holds what earlier calls read; the tokens are those that follow, and join it. It is for
        decoding: without a key, and with no backward.
        """
        tokens = self.checked(tokens, kv_cache=kv_cache)
        x, body = self.body_forward(tokens, key, kv_cache, attention_mask)
        logits, head = self.lm_head.forward(x)
        like = logits.shape, logits.dtype
        return logits, ["forward", body, head, like] if kv_cache is None else [CACHED]

    def backward_logits(self, dlogits, saved, after_block=None):
        """dlogits: (B, T, vocab_size), saved: from `forward`, which is used up.  Adds to every gradient.

        after_block, what is returned: as `body_backward`.  Raises DataError for dlogits of another shape.
        """
        self.flat.make_current()
        body, head, like = take(saved, "forward")
        dx = self.lm_head.backward(self.checked_gradient(dlogits, like, "dlogits"), head)
        del head
        return self.body_backward(dx, body, after_block)

    def loss(self, tokens, targets, key=None, num_items_in_batch: int | None = None, attention_mask=None):
        """tokens (or embeddings), targets: (B, T)  →  mean cross-entropy over targets ≠ −100: 0-d, nats;
        saved for `backward`

        num_items_in_batch: what to divide the sum by instead, where the batch is part of a larger one. The
        losses and gradients of the parts then add up to those of the whole.
        """
        tokens, targets = self.checked(tokens), self.checked(targets, "target")
        if tokens.shape[:2] != targets.shape:
            raise DataError(f"targets must have the shape of tokens, {tokens.shape[:2]}, not {targets.shape}")
        if num_items_in_batch is not None:
            check_range("num_items_in_batch", num_items_in_batch, least=0, most=FINITE)
        x, body = self.body_forward(tokens, key, None, attention_mask)
        loss, head = self.lm_head.loss(x, targets, num_items_in_batch and int(num_items_in_batch))
        return loss, ["loss", body, head]

    def backward(self, saved, dloss=1.0, after_block=None):
        """saved: from `loss`, which is used up.  Adds to every gradient.  after_block, what is returned: as
        `body_backward`.
        """
        self.flat.make_current()
        body, head = take(saved, "loss")
        dloss = array_module(self.flat.data).asarray(1.0 if dloss is None else dloss, self.flat.grad_dtype)
        dx    = self.lm_head.loss_backward(dloss, head)
        del head                                                              # the logits
        return self.body_backward(dx, body, after_block)

    def next_logits(self, tokens, kv_cache: KVCache | None = None, attention_mask=None):
        """tokens: (B, T), of which the last block_size are read  →  logits of the next token: NumPy (B, V)

        kv_cache: holds what earlier calls read of the same sequence; only the tokens after that are read, and
        join it. A sequence longer than block_size is read without it: each further token moves all that are
        read to other places, and the keys held were computed in the old ones.
        attention_mask: (B, T), as in `forward`. Padding counts in T.
        """
        if getattr(tokens, "ndim", 0) != 2:
            tokens = self.checked(tokens)
        if tokens.shape[1] > self.config.block_size:
            tokens, kv_cache = tokens[:, -self.config.block_size:], None
            attention_mask = None if attention_mask is None else attention_mask[:, -self.config.block_size:]
        elif kv_cache:
            tokens = tokens[:, kv_cache.length:]
        tokens = self.checked(tokens, kv_cache=kv_cache)
        x, _ = self.body_forward(tokens, None, kv_cache, attention_mask)
        logits, _ = self.lm_head.forward(x[:, -1:])
        return to_numpy(logits)[:, 0]

    def new_cache(self, max_length: int) -> KVCache:
        """An empty cache for a batch of sequences of up to max_length tokens, and at most block_size.

        Raises ConfigError where a part of yours would compute something else with it than without.
        """
        length = min(max_length, self.config.block_size)
        if length > 1 and self.own_part():
            self._check_cached(min(length, PROBED))
        return KVCache(self.config.n_layer, length)

    def _check_cached(self, length: int) -> None:
        """With a cache a layer is shown the last token alone. Attention finds the others there; a convolution
        or a recurrence would take that token for the first, and nobody would notice.
        """
        cache, tokens = KVCache(self.config.n_layer, length), np.arange(length)[None] % self.config.vocab_size
        self.next_logits(tokens[:, :-1], cache)
        if all(layer.length == cache.layers[0].length for layer in cache.layers):
            cached, whole = self.next_logits(tokens, cache), self.next_logits(tokens)
            if not abs(cached - whole).max() > (0.1 if whole.itemsize == 2 else 1e-3) * abs(whole).max():
                return
        raise ConfigError("a part of yours looks at other places than its own, and does not keep what it saw "
                          "there in the KV cache: generate with use_cache=False")

    def generate(self, tokens, max_new_tokens: int | None = None, **settings):
        """tokens: (B, T), or B lists of ids of different lengths  →  (B, T + new): prompts and continuations

        The settings are transformers': max_length, do_sample, temperature, top_k, top_p, num_beams,
        eos_token_id, attention_mask, streamer, …; see npgpt.generation.settings and decoding.generate.
        """
        return decoding.generate(self, tokens, max_new_tokens=max_new_tokens, **settings)
