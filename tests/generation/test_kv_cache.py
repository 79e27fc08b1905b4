"""Decoding with a cache is decoding without one, one position at a time."""

import functools
import itertools

import gpt_options
import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.errors import ConfigError, DataError
from npgpt.generation import decoding
from npgpt.generation.kv_cache import KVCache, LayerCache
from npgpt.layers import SelfAttention
from npgpt.tensor import Key

V, BLOCK = 11, 8
CONFIG = {"vocab_size": V, "block_size": BLOCK, "n_layer": 3, "n_head": 2, "n_embd": 12}
MODELS = pytest.mark.parametrize("options", [
    {},
    {"bias": False, "position": "sinusoidal", "activation": "relu"},
    {"position": "sinusoidal", "gradient_checkpointing": True, "n_head": 3},
    {"gradient_checkpointing": True, "dropout": 0.4, "bias": False},
    {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "n_kv_head": 1},
    {"block": "parallel", "attention_dropout": 0.3, "qk_norm": True, "tie_word_embeddings": False},
], ids=lambda options: " ".join(options) or "plain")


def gpt(dtype="float64", **options):
    """With matrices of order 1, so that everything in the model acts and what is generated varies."""
    model = GPT(GPTConfig(**CONFIG | options), seed=3, dtype=dtype)
    rng = np.random.default_rng(17)
    for parameter in model.parameters.values():
        parameter.data += (1 if parameter.data.ndim == 2 else 0.1) * rng.standard_normal(parameter.shape)
    return model


def new_cache(model):
    return KVCache(len(model.h), BLOCK)


def decoder(model):
    """The next logits of one batch of sequences, asked for again as they grow."""
    return functools.partial(model.next_logits, kv_cache=new_cache(model))


def tokens(B=3, T=BLOCK, seed=0):
    return np.random.default_rng(seed).integers(0, V, (B, T))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(a, b):
    return np.allclose(a, b, rtol=0, atol=1e-10)


def lengths_read(model, monkeypatch):
    """How many positions each later pass of the model runs through its first block, its last and its end."""
    read = []
    first, last = (getattr(block, "layer", block) for block in (model.h[0], model.h[-1]))
    for layer in (first, last.mlp, model.ln_f):
        def forward(x, *inputs, original=layer.forward, **options):
            read.append(x.shape[1])
            return original(x, *inputs, **options)
        monkeypatch.setattr(layer, "forward", forward)
    return read


# ---- logits ----

@MODELS
@pytest.mark.parametrize("lengths", [[1] * 8, [3, 1, 1, 1, 1, 1], [7, 1], [8], [5, 3], [1, 7], [2, 4, 2]],
                         ids=lambda lengths: "+".join(map(str, lengths)))
def test_a_sequence_read_in_parts_has_the_logits_of_one_pass(lengths, options):
    model, x = gpt(**options), tokens()
    expected, _ = model.forward(x)
    cache, start = new_cache(model), 0
    for length in lengths:
        logits, _ = model.forward(x[:, start:start + length], kv_cache=cache)
        assert close(logits, expected[:, start:start + length])
        start += length
        assert cache.length == start
    assert np.abs(expected[:, 1:] - expected[:, :-1]).max() > 1


@pytest.mark.parametrize("options", [*gpt_options.ALONE, *gpt_options.together(20, seed=3)],
                         ids=gpt_options.label)
def test_with_every_option_a_sequence_read_one_by_one_has_the_logits_of_one_pass(options):
    model, x = gpt(**gpt_options.SHAPE | options), tokens()
    expected, _ = model.forward(x)
    cache = new_cache(model)
    for t in range(BLOCK):
        assert close(model.forward(x[:, t:t + 1], kv_cache=cache)[0], expected[:, t:t + 1]), t


@pytest.mark.parametrize("options", [{}, *gpt_options.together(12, seed=4)], ids=gpt_options.label)
def test_padded_prompts_read_in_parts_have_the_logits_of_each_alone(options):
    model, x = gpt(**gpt_options.SHAPE | options), tokens()
    padding = np.array([0, 2, 5])
    mask = np.arange(BLOCK) >= padding[:, None]
    cache = new_cache(model)
    read = [model.forward(x[:, part], kv_cache=cache, attention_mask=mask[:, :part.stop])[0]
            for part in (slice(0, 4), slice(4, 7), slice(7, 8))]
    for b, pad in enumerate(padding):
        alone, _ = model.forward(x[b:b + 1, pad:])
        assert close(np.concatenate(read, 1)[b, pad:], alone[0]), b


@MODELS
@pytest.mark.parametrize("prompt", [1, 3, BLOCK - 1, BLOCK, BLOCK + 3])
def test_the_decoder_of_a_growing_sequence_gives_the_next_logits_past_the_block_too(prompt, options):
    model, x = gpt(**options), tokens(T=BLOCK + 5)
    decode = decoder(model)
    for T in range(prompt, BLOCK + 6):
        assert close(decode(x[:, :T]), model.next_logits(x[:, :T])), T


def test_a_decoder_asked_at_some_lengths_only_reads_all_between():
    model, x = gpt(), tokens()
    decode = decoder(model)
    for T in (2, 5, 6, 8):
        assert close(decode(x[:, :T]), model.next_logits(x[:, :T])), T


@MODELS
def test_a_cache_that_is_cut_forgets_what_followed(options):
    model, x = gpt(**options), tokens()
    cache = new_cache(model)
    model.forward(x[:, ::-1], kv_cache=cache)
    cache.length = 0
    model.forward(np.concatenate([x[:, :4], x[:, :2]], 1), kv_cache=cache)
    cache.length = 4
    assert cache.length == 4
    assert close(model.forward(x[:, 4:], kv_cache=cache)[0], model.forward(x)[0][:, 4:])
    for wrong in (-1, x.shape[1] + 1):
        with pytest.raises(DataError, match="can be cut to 0 to"):
            cache.length = wrong


def test_float32_stays_float32():
    model, x = gpt("float32"), tokens()
    cache = new_cache(model)
    for part in (x[:, :5], x[:, 5:]):
        logits, _ = model.forward(part, kv_cache=cache)
        assert logits.dtype == np.float32
    assert {array.dtype for layer in cache.layers for array in (layer.keys, layer.values)} == {np.dtype("f4")}
    assert np.allclose(logits, model.forward(x)[0][:, 5:], rtol=0, atol=2e-5)


# ---- generation ----

@MODELS
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 1.5, "top_k": 7, "seed": 5}],
                         ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompt", [1, 4, BLOCK, BLOCK + 2])
def test_generation_is_that_of_the_model_without_a_cache(prompt, settings, options):
    model, x = gpt(**options), tokens(T=prompt)
    expected = model.generate(x, BLOCK + 4, use_cache=False, **settings)
    assert np.array_equal(model.generate(x, BLOCK + 4, **settings), expected)
    assert len(np.unique(expected[:, prompt:])) > 4


def test_sequences_that_have_ended_do_not_disturb_the_others():
    model, x = gpt(), tokens(T=2)
    end = model.generate(x, 4)[0, 3]
    expected = model.generate(x, BLOCK, eos_token_id=end, use_cache=False)
    assert np.array_equal(model.generate(x, BLOCK, eos_token_id=end), expected)
    assert (expected[0, 3:] == end).all() and not (expected[:, -1] == end).all()


def test_each_generation_has_a_cache_of_its_own():
    model, first, second = gpt(), tokens(T=3), tokens(B=2, T=5, seed=1)
    expected = model.generate(first, 5)
    model.generate(second, 3)
    assert np.array_equal(model.generate(first, 5), expected)


def test_two_generations_at_once_do_not_mix():
    model, prompts = gpt(), [tokens(T=3), tokens(T=3, seed=1)]
    streams = [decoding.stream(model, prompt, max_new_tokens=5) for prompt in prompts]
    mixed = list(zip(*streams, strict=True))
    for n, prompt in enumerate(prompts):
        assert np.array_equal(np.stack([pair[n] for pair in mixed], 1), model.generate(prompt, 5)[:, 3:])


# ---- what a step costs ----

@MODELS
def test_after_the_prompt_each_step_runs_one_position_and_past_the_block_all(options, monkeypatch):
    model = gpt(**options)
    read = lengths_read(model, monkeypatch)
    model.generate(tokens(T=4), 8)
    expected = [4, 1, 1, 1, 1, BLOCK, BLOCK, BLOCK]                          # of 4, 5, … 11 tokens
    assert read == list(itertools.chain.from_iterable([length] * 3 for length in expected))


def test_without_a_cache_all_positions_run(monkeypatch):
    model = gpt()
    read = lengths_read(model, monkeypatch)
    model.generate(tokens(T=4), 3, use_cache=False)
    assert read == [4, 4, 4, 5, 5, 5, 6, 6, 6]


# ---- layers ----

def test_attention_asks_the_keys_of_the_past_and_none_of_the_future():
    attention = SelfAttention(6, 2, proj_std=1.0).initialise(dtype="float64")
    attention.c_attn.weight.data[...] = normal(6, 18)
    x = normal(2, 7, 6, seed=1)
    expected, _ = attention.forward(x)
    cache = LayerCache(9)
    for part in (slice(0, 2), slice(2, 6), slice(6, 7)):
        y, _ = attention.forward(x[:, part], kv_cache=cache)
        assert np.allclose(y, expected[:, part], rtol=0, atol=1e-13)


def test_a_hidden_position_of_the_past_is_not_attended_to():
    attention = SelfAttention(6, 2, proj_std=1.0).initialise(dtype="float64")
    x, mask = normal(2, 5, 6), np.array([[True, True, False, True, True], [False, True, True, True, True]])
    expected, _ = attention.forward(x, key_mask=mask)
    cache = LayerCache(5)
    attention.forward(x[:, :3], key_mask=mask[:, :3], kv_cache=cache)
    y, _ = attention.forward(x[:, 3:], key_mask=mask, kv_cache=cache)
    assert np.allclose(y, expected[:, 3:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_generating_between_a_forward_and_its_backward_changes_no_gradient(gradient_checkpointing):
    model, x = gpt(dropout=0.3, gradient_checkpointing=gradient_checkpointing), tokens()
    gradients = []
    for generated in (0, BLOCK):
        model.zero_grad()
        _, saved = model.loss(x, tokens(seed=1), Key(1))
        model.generate(x[:, :3], generated)
        model.backward(saved)
        gradients.append(model.flat.grad.copy())
    assert np.array_equal(*gradients)


# ---- the cache itself ----

def test_all_that_was_appended_comes_back_in_order_and_the_past_is_not_copied():
    k, v, cache = normal(2, 3, 7, 4), normal(2, 3, 7, 4, seed=1), LayerCache(7)
    keys, values = cache.append(k[:, :, :2], v[:, :, :2])
    for start, stop in ((2, 3), (3, 6), (6, 7)):
        more_keys, more_values = cache.append(k[:, :, start:stop], v[:, :, start:stop])
        assert np.array_equal(more_keys, k[:, :, :stop]) and np.array_equal(more_values, v[:, :, :stop])
        assert np.shares_memory(keys, more_keys) and np.shares_memory(values, more_values)
        assert cache.length == stop
    assert not np.shares_memory(keys, k)


@pytest.mark.parametrize(("shape", "words"), [
    ((2, 3, 3, 4), "a cache for 6 positions holds 4 already and has no room for 3 more"),
    ((1, 3, 1, 4), r"a cache of keys \(2, 3, 6, 4\) has no place for keys \(1, 3, 1, 4\).* another batch"),
    ((2, 1, 1, 4), "no place"),
    ((2, 3, 1, 1), "no place"),
])
def test_what_does_not_fit_is_refused_and_changes_nothing(shape, words):
    k, v, cache = normal(2, 3, 6, 4), normal(2, 3, 6, 4, seed=1), LayerCache(6)
    cache.append(k[:, :, :4], v[:, :, :4])
    with pytest.raises(DataError, match=words):
        cache.append(normal(*shape), normal(*shape))
    assert cache.length == 4
    keys, values = cache.append(k[:, :, 4:], v[:, :, 4:])
    assert np.array_equal(keys, k) and np.array_equal(values, v)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 1, 0], [1, 1, 0], [2], [0, 0, 1, 2, 2, 1]], ids=str)
def test_sequences_are_chosen_dropped_and_repeated(rows):
    cache = KVCache(2, 5)
    cache.select(np.array(rows))                                             # there is nothing to choose yet
    k, v = normal(2, 3, 2, 5, 4), normal(2, 3, 2, 5, 4, seed=1)              # (layer, B, H, T, D)
    for layer, keys, values in zip(cache.layers, k, v, strict=True):
        layer.append(keys[:, :, :3], values[:, :, :3])
    cache.select(np.array(rows))
    assert cache.length == 3
    for layer, keys, values in zip(cache.layers, k[:, rows], v[:, rows], strict=True):
        all_keys, all_values = layer.append(keys[:, :, 3:], values[:, :, 3:])
        assert np.array_equal(all_keys, keys) and np.array_equal(all_values, values)


def test_a_first_append_that_is_too_long_is_refused():
    with pytest.raises(DataError, match="holds 0 already and has no room for 5 more"):
        LayerCache(4).append(normal(1, 1, 5, 2), normal(1, 1, 5, 2))


# ---- errors of the model ----

def test_more_than_the_block_is_refused_with_what_is_in_the_cache():
    model, x = gpt(), tokens(T=BLOCK + 1)
    cache = KVCache(3, 2 * BLOCK)
    model.forward(x[:, :6], kv_cache=cache)
    with pytest.raises(DataError, match="1 to block_size = 8 long, not 3 after 6 in the cache"):
        model.forward(x[:, 6:], kv_cache=cache)
    assert cache.length == 6 and close(model.next_logits(x[:, :7], cache), model.next_logits(x[:, :7]))


def test_dropout_with_a_cache_is_refused():
    with pytest.raises(ConfigError, match="a KV cache is for decoding, and a key turns"):
        gpt().forward(tokens(), Key(1), KVCache(3, BLOCK))


def test_a_sequence_with_nothing_new_is_refused():
    decode, x = decoder(gpt()), tokens(T=4)
    decode(x)
    with pytest.raises(DataError, match="not 0 after 4 in the cache"):
        decode(x)


def test_another_batch_is_refused():
    decode = decoder(gpt())
    decode(tokens(B=3, T=2))
    with pytest.raises(DataError, match="another batch"):
        decode(tokens(B=1, T=3))


def test_after_a_pass_that_broke_off_the_cache_is_refused(monkeypatch):
    model, x = gpt(), tokens()
    decode = decoder(model)
    decode(x[:, :2])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        def interrupted(*_, **__):
            raise KeyboardInterrupt
        patch.setattr(model.h[1], "forward", interrupted)
        decode(x[:, :3])
    with pytest.raises(DataError, match="broke off with 3 positions in one layer .* 2 in another"):
        decode(x[:, :3])
    assert close(decoder(model)(x[:, :3]), model.next_logits(x[:, :3]))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "none"])
def test_several_texts_in_a_row_go_on_with_a_cache(position):
    """attention_mask numbers the texts: a token sees only those of its own, and counts from its beginning."""
    model, ids = gpt(position=position), tokens(B=2, T=8)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 2]])
    whole, _ = model.forward(ids, attention_mask=segments)
    cache, parts = new_cache(model), []
    for first, end in ((0, 5), (5, 7), (7, 8)):
        parts.append(model.forward(ids[:, first:end], kv_cache=cache, attention_mask=segments[:, :end])[0])
    assert close(np.concatenate(parts, 1), whole)
