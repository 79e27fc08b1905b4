"""What is seen in a model is what it computes: attention, lens, surprisal and saliency against transformers,
the model's own predictions, npgpt evaluate's scores and differences of its forward pass alone.
"""

import gpt_options
import numpy as np
import pytest
from model_folders import random_model

from npgpt import GPT, GPTConfig
from npgpt.errors import CheckpointError, ConfigError, DataError
from npgpt.evaluation.scoring import Span, surprisals
from npgpt.inspection import logit_lens as logit_lens_module
from npgpt.inspection.attention_maps import attention_maps
from npgpt.inspection.logit_lens import logit_lens
from npgpt.inspection.residual_stream import residual_stream
from npgpt.inspection.saliency import TOKENS_AT_ONCE, saliency
from npgpt.layers import Module, SelfAttention

TOKENS  = np.array([3, 0, 7, 3, 10, 1, 4])
OPTIONS = [{}, *gpt_options.ALONE, *gpt_options.together(12)]


def build(options, dtype="float64"):
    return random_model(GPTConfig(**gpt_options.SHAPE | options), dtype)


def log_probabilities(logits):
    return logits - logits.max(-1, keepdims=True) - np.log(
        np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))


@pytest.mark.parametrize("options", OPTIONS, ids=gpt_options.label)
def test_every_option_of_a_model_is_looked_into(options):
    """The stream ends in the model's own logits; maps are the weights by which its attention mixes values."""
    model, T = build(options), len(TOKENS)
    before = model.flat.data.copy()
    stream = residual_stream(model, TOKENS[None])
    logits, _ = model.forward(TOKENS[None])
    lens   = logit_lens(model, stream, TOKENS)
    expected = log_probabilities(logits[0])
    assert lens.tokens.shape == lens.probability.shape == (model.config.n_layer + 1, T, 5)
    np.testing.assert_array_equal(lens.tokens[-1], np.argsort(-expected, -1)[:, :5])
    np.testing.assert_allclose(np.log(lens.probability[-1]), -np.sort(-expected, -1)[:, :5], atol=1e-12)

    seen = surprisals(model, [Span(TOKENS, T - 1)])[0] / np.log(2)
    np.testing.assert_allclose(lens.surprisal, seen, rtol=1e-12)
    np.testing.assert_allclose(lens.bits[-1, -1], -expected[-1].max() / np.log(2), rtol=1e-12)
    came = np.take_along_axis(expected[:-1], TOKENS[1:, None], -1)
    np.testing.assert_array_equal(lens.rank[-1, :-1], (expected[:-1] > came).sum(-1))
    assert lens.rank[-1, -1] == 0

    maps = list(attention_maps(model, stream))
    assert len(maps) == model.config.n_layer
    for p in maps:
        assert p.shape == (1, 4, T, T) and (p >= 0).all() and not np.triu(p, 1).any()
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.flat.data, before)
    assert_mixes(model, stream, maps)


def assert_mixes(model, stream, maps):
    """Attention's own forward, told to write only values of one head, gives that head's map times values."""
    for block, x, p in zip(model.h, stream.states[:-1], maps, strict=True):
        block = getattr(block, "layer", block)
        attn  = block.attn
        read  = block.ln_1.forward(x)[0] if model.config.block in ("pre", "parallel") else x
        H, G, _ = attn.heads
        D     = model.config.head_size
        qkv   = attn.c_attn.forward(read)[0]
        v     = qkv[0, :, (H + G) * D:].reshape(-1, G, D)                     # (T, G, D)
        mixed = np.stack([p[0, h] @ v[:, h // (H // G)] for h in range(H)], 1).reshape(1, len(TOKENS), H * D)
        np.testing.assert_allclose(attn.forward(read, rotation=stream.rotation)[0],
                                   attn.c_proj.forward(mixed)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=gpt_options.label)
def test_saliency_is_the_slope_of_the_log_probability(options):
    """Along random directions of each embedding, by the model's own forward pass."""
    model, T = build(options), len(TOKENS)
    model.flat.grad[...] = 5
    targets = [(3, 3), (T, 9), (1, 0), (5, int(TOKENS[5]))]
    found   = saliency(model, TOKENS, targets)
    assert (model.flat.grad == 5).all(), "the model's own gradients were touched"
    embedded = model.wte.weight.data[TOKENS]                                  # (T, C)
    C, h     = embedded.shape[1], 1e-5
    single   = h * np.eye(T * C).reshape(T * C, T, C)                         # one number of one embedding
    whole    = h * np.eye(T)[:, :, None] * embedded                           # a part of one embedding
    steps    = np.concatenate([single, whole])
    up, down = (forward_from(model, embedded + sign * steps) for sign in (1, -1))
    for row, (position, token) in enumerate(targets):
        slopes  = (up - down)[:, position - 1, token] / (2 * h)
        lengths = np.linalg.norm(slopes[:T * C].reshape(T, C), axis=-1)
        np.testing.assert_allclose(found.sensitivity[row], lengths, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.contribution[row], slopes[T * C:], rtol=1e-6, atol=1e-6)
        assert not found.sensitivity[row, position:].any() and not found.contribution[row, position:].any()
        assert found.sensitivity[row, :position].max() > 1e-4


def forward_from(model, embedded):
    """The model's own forward pass from these embeddings, (N, T, C) → log-probabilities (N, T, V)"""
    model.wte.forward = lambda tokens: (embedded, None)
    try:
        return log_probabilities(model.forward(np.tile(TOKENS, (len(embedded), 1)))[0])
    finally:
        del model.wte.forward


def test_many_targets_go_through_in_parts_in_any_order_and_tell_how_far_they_are():
    model  = random_model(GPTConfig(11, 64, 1, 2, 8), "float64")
    tokens = np.random.default_rng(0).integers(0, 11, 40)
    assert 2 * TOKENS_AT_ONCE < 40 * 41 // 2
    targets = [(int(n), int(n) % 11) for n in np.random.default_rng(1).permutation(40) + 1]
    told    = []
    together = saliency(model, tokens, targets, lambda done, total: told.append((done, total)))
    assert len(told) > 2 and told[-1] == (40, 40) and told == sorted(told)
    for row, target in enumerate(targets):
        alone = saliency(model, tokens[:target[0]], [target])
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_allclose(all_of_them[row, :target[0]], one[0], rtol=1e-9, atol=1e-12)
            assert not all_of_them[row, target[0]:].any()


def test_the_lens_reads_early_layers_through_the_final_norm_and_the_head():
    model  = random_model(GPTConfig(11, 8, 2, 2, 8, tie_word_embeddings=False, logit_softcap=3.0), "float64")
    stream = residual_stream(model, TOKENS[None])
    lens   = logit_lens(model, stream, TOKENS, best=99)
    assert lens.tokens.shape == (3, 7, 11)
    x = model.wte.weight.data[TOKENS] + model.wpe.weight.data[:7]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * model.ln_f.weight.data + model.ln_f.bias.data
    expected = log_probabilities(3 * np.tanh(x @ model.lm_head.weight.data.T / 3))
    np.testing.assert_allclose(np.log(lens.probability[0]), -np.sort(-expected, -1), atol=1e-12)
    assert abs(lens.probability[1] - lens.probability[0]).max() > 0.01


def test_the_lens_is_the_same_where_logits_come_in_parts(monkeypatch):
    model  = build({})
    stream = residual_stream(model, TOKENS[None])
    whole  = logit_lens(model, stream, TOKENS)
    monkeypatch.setattr(logit_lens_module, "LOGITS_AT_ONCE", 3 * 11)
    for part, of_parts in zip(whole, logit_lens(model, stream, TOKENS), strict=True):
        np.testing.assert_allclose(of_parts, part, rtol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-6), ("float32", 1e-5)])
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_attention_maps_are_those_of_transformers(kind, dtype, tolerance, tmp_path):
    torch        = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=37, n_positions=16, n_embd=12, n_layer=2, n_head=3, bos_token_id=None,
        eos_token_id=None) if kind == "GPT2" else transformers.LlamaConfig(
        vocab_size=37, max_position_embeddings=32, hidden_size=16, intermediate_size=20,
        num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, bos_token_id=None,
        eos_token_id=None)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + (parameter.ndim == 1) * 0.7)
    theirs.save_pretrained(tmp_path)
    ours   = GPT.from_pretrained(tmp_path, dtype=dtype)
    tokens = np.random.default_rng(1).integers(0, 37, (3, 13))
    with torch.no_grad():
        told = theirs.to(getattr(torch, dtype))(torch.tensor(tokens), output_attentions=True,
                                                output_hidden_states=True)
    stream = residual_stream(ours, tokens)
    maps   = list(attention_maps(ours, stream))
    assert len(maps) == len(told.attentions) == 2
    for mine, other in zip(maps, told.attentions, strict=True):
        assert mine.dtype == dtype and other.numpy().max() > 0.5
        np.testing.assert_allclose(mine, other.numpy(), rtol=0, atol=tolerance)
    for mine, other in zip(stream.states[:-1], told.hidden_states[:-1], strict=True):
        np.testing.assert_allclose(mine, other.numpy(), rtol=0, atol=10 * tolerance)


def test_maps_of_attention_that_may_look_elsewhere_are_refused():
    class Windowed(SelfAttention):
        def forward(self, x, key=None, **context):
            return super().forward(x[:, :1], key, **context)

    model  = build({})
    stream = residual_stream(model, TOKENS[None])
    model.h[1].attn.__class__ = Windowed
    with pytest.raises(ConfigError, match="h.1.attn is a Windowed, and may look elsewhere"):
        list(attention_maps(model, stream))


def test_maps_of_a_wrapped_block_are_refused_and_a_stream_goes_through_it():
    class Tap(Module):
        def __init__(self, block):
            self.block = block

        def forward(self, x, key=None, **context):
            return self.block.forward(x, key, **context)

    model   = build({})
    states  = residual_stream(model, TOKENS[None]).states
    model.h[1] = Tap(model.h[1])
    stream  = residual_stream(model, TOKENS[None])
    np.testing.assert_array_equal(np.stack(stream.states), np.stack(states))
    with pytest.raises(ConfigError, match="h.1 is a Tap, and what attention reads in it is not known"):
        list(attention_maps(model, stream))


def test_a_list_of_tokens_will_do():
    model, tokens = build({}), TOKENS.tolist()
    stream = residual_stream(model, [tokens])
    for one, other in ((stream.states, residual_stream(model, TOKENS[None]).states),
                       (logit_lens(model, stream, tokens), logit_lens(model, stream, TOKENS)),
                       (saliency(model, tokens, [(2, 1)]), saliency(model, TOKENS, [(2, 1)]))):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)
    for look, fine, shape in ((residual_stream, [tokens], r"\(B, T\)"),
                              (lambda *of: saliency(*of, [(1, 0)]), tokens, r"\(T,\)"),
                              (lambda model, tokens: logit_lens(model, stream, tokens), tokens, r"\(T,\)")):
        for wrong in (np.array(fine) + 0.5, [fine]):
            with pytest.raises(DataError, match=f"tokens must be integers of shape {shape}, not "):
                look(model, wrong)


def test_bad_texts_targets_and_weights_are_one_sentence():
    model = build({})
    for tokens, sentence in (([], "the text is empty"),
                             (range(9), "has 9 tokens, and the model reads at most 8"),
                             ([3, 11], "token 11 is not in the model's vocabulary of 11"),
                             ([-1], "token -1 is not")):
        for look in (residual_stream, lambda *of: saliency(of[0], of[1][0], [(1, 0)])):
            with pytest.raises(DataError, match=sentence):
                look(model, np.array(tokens, np.int64)[None])
    assert len(residual_stream(model, np.zeros((1, 8), np.int64)).states) == 3     # as many as it reads
    for target, sentence in (((0, 1), "position must be 1 to 7, for the text has 7 tokens, not 0"),
                             ((8, 1), "not 8"), ((2, 11), "token 11"), ((2, -1), "token -1")):
        with pytest.raises(DataError, match=sentence):
            saliency(model, TOKENS, [target])
    stream = residual_stream(model, TOKENS[None])
    for tokens, other in ((TOKENS[:1], stream), (TOKENS, residual_stream(model, TOKENS[None].repeat(2, 0)))):
        with pytest.raises(DataError, match=r"stream is of tokens \(\d, 7\), and not of this text's \(1,"):
            logit_lens(model, other, tokens)
    for best in (0, -1, None):
        with pytest.raises(ConfigError, match="best must be"):
            logit_lens(model, stream, TOKENS, best)
    for number in (np.nan, np.inf):
        model.lm_head.weight.data[3, 0] = number
        with pytest.raises(CheckpointError, match="its weights are damaged"):
            logit_lens(model, residual_stream(model, TOKENS[None][:, 1:3]), TOKENS[1:3])
