"""Generation is transformers': the same tokens, and the same distributions to draw from.

transformers' GPT-2 gets the parameters of npgpt's, so both choose by logits that differ in their last bits.
"""

import numpy as np
import pytest
from generating import random_gpt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from npgpt.generation.processors import process, processors  # noqa: E402
from npgpt.generation.sampling import narrowed, softmax  # noqa: E402
from npgpt.generation.settings import GenerationSettings  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

V, BLOCK = 23, 32
DRAWS, CHUNK = 240, 20          # settings, and those of one test


@pytest.fixture(scope="module", autouse=True)
def quiet_and_on_one_thread():
    """So small a model only waits for more threads; and transformers tells of every unused setting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models():
    """npgpt's model and transformers', by type. In float32, layer norms make 1e-4 of the last bits' 1e-7."""
    return {dtype: pair(dtype) for dtype in ("float32", "float64")}


def pair(dtype):
    shape = {"vocab_size": V, "n_layer": 2, "n_head": 2, "n_embd": 16}
    ours  = random_gpt(dtype, block_size=BLOCK, **shape)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_positions=BLOCK, **shape, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=None, eos_token_id=None)).to(getattr(torch, dtype))
    state = {f"transformer.{name}": torch.from_numpy(parameter.data.copy())
             for name, parameter in ours.parameters.items()}
    theirs.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})
    return ours, theirs.eval()


def drawn(rng):
    """prompts, attention_mask and settings.

    Not drawn is what transformers does otherwise: it takes padding for a token where it looks for n-grams and
    bad words, so nobody but padding is that token here; and in beam search it fills up with eos if pad is 0.
    """
    def maybe(chance, **some):
        return some if rng.random() < chance else {}

    B, T, new = (int(rng.integers(1, most)) for most in (4, 8, 15))
    beams = int(rng.choice([1, 2, 3, 5], p=[0.25, 0.25, 0.25, 0.25]))
    eos   = [None, [3], [17, 20], [0, 4, 9]][rng.integers(4)]                 # which are often the likeliest
    pad   = V - 1 if rng.random() < 0.7 or eos is None else eos[0]
    settings = {"num_beams": beams, "eos_token_id": eos, "pad_token_id": pad}
    settings |= {"max_new_tokens": new} if rng.random() < 0.7 else {"max_length": T + new}
    settings |= maybe(0.4, repetition_penalty=float(rng.choice([0.7, 1.3, 2.0])))
    settings |= maybe(0.4, no_repeat_ngram_size=int(rng.choice([2, 3, 4])))
    settings |= maybe(0.3, min_new_tokens=int(rng.integers(0, new + 1)))
    settings |= maybe(0.3, min_length=int(rng.integers(0, T + new + 1)))
    words = [[pad], *maybe(0.5, words=[[19], [20, 17], [3, 3], [3], [17, 4, 20]]).get("words", [])]
    settings |= {"bad_words_ids": words}
    if beams > 1:
        settings |= {"length_penalty": float(rng.choice([-1.0, 0.0, 0.5, 1.0, 2.5])),
                     "early_stopping": [False, True, "never"][rng.integers(3)],
                     "num_return_sequences": int(rng.integers(1, beams + 1))}
    tokens = rng.integers(0, V - 1, (B, T))
    tokens[tokens == pad] += 1
    mask = np.arange(T) >= rng.integers(0, T, (B, 1)) if rng.random() < 0.5 else np.ones((B, T), bool)
    return np.where(mask, tokens, pad), mask.astype(int), settings


@pytest.mark.parametrize("first", range(0, DRAWS, CHUNK))
def test_greedy_and_beam_search_give_the_same_tokens_scores_and_beams(first, models):
    for draw in range(first, first + CHUNK):
        dtype = ("float64", "float32")[draw % 2]
        ours, theirs = models[dtype]
        tokens, mask, settings = drawn(np.random.default_rng(draw))
        settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        mine = ours.generate(tokens, attention_mask=mask, use_cache=draw % 8 < 6, **settings)
        with torch.no_grad():
            other = theirs.generate(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask),
                                    **settings)
        assert np.array_equal(mine.sequences, other.sequences.numpy()), (draw, settings)
        assert len(mine.scores) == len(mine.logits) == len(other.scores)
        if settings["num_beams"] > 1:
            assert np.array_equal(mine.beam_indices, other.beam_indices.numpy()), (draw, settings)
            assert close(mine.sequences_scores, other.sequences_scores, dtype)
        for n, (score, logits) in enumerate(zip(mine.scores, mine.logits, strict=True)):
            running = rows_that_count(mine, n, tokens.shape[1], settings)
            assert close(score[running], other.scores[n].numpy()[running], dtype)
            assert close(logits[running], other.logits[n].numpy()[running], dtype)


def rows_that_count(output, n, T, settings):
    """The rows of step n whose sequence has not ended before: in beam search, those that became a result."""
    if output.beam_indices is not None:
        rows = output.beam_indices[:, n] if n < output.beam_indices.shape[1] else []
        return [row for row in rows if row >= 0]
    written = output.sequences[:, T:T + n]
    return np.flatnonzero(~np.isin(written, settings["eos_token_id"] or ()).any(-1))


def close(a, b, dtype):
    """transformers' own scores are float32 always, and sums of many."""
    return np.allclose(a, b, rtol=2e-6, atol=1e-3 if dtype == "float32" else 2e-5)


def test_the_draws_end_early_and_late_and_use_every_setting(models):
    used, lengths = set(), set()
    for draw in range(DRAWS):
        tokens, mask, settings = drawn(np.random.default_rng(draw))
        used |= settings.keys() | ({"padding"} if not mask.all() else set())
        if draw % 8 == 0:
            _, most = GenerationSettings.of(**settings).new_tokens(tokens.shape[1])
            result = models["float64"][0].generate(tokens, attention_mask=mask, **settings)
            lengths.add(result.shape[1] - tokens.shape[1] - most)
    assert used >= {"padding", "num_return_sequences", "early_stopping", "length_penalty", "min_length",
                    "max_length", "min_new_tokens", "max_new_tokens", "repetition_penalty",
                    "no_repeat_ngram_size"}
    assert 0 in lengths and min(lengths) < -3


@pytest.mark.parametrize("seed", range(60))
def test_the_distribution_to_draw_from_is_that_of_the_processors_and_warpers(seed, models):
    rng = np.random.default_rng(seed)
    sequences, logits = rng.integers(0, V, (3, 12)), (4 * rng.standard_normal((3, V))).astype("float32")
    settings = {"do_sample": True, "eos_token_id": [2, 3], "pad_token_id": 0, "max_new_tokens": 9,
                "temperature": float(rng.choice([0.5, 1.0, 1.7])), "top_k": int(rng.choice([0, 1, 5, 50])),
                "top_p": float(rng.choice([0.3, 0.9, 1.0])), "min_p": [None, 0.05, 0.3][rng.integers(3)],
                "repetition_penalty": float(rng.choice([1.0, 1.4])),
                "no_repeat_ngram_size": int(rng.choice([0, 1, 2])),
                "min_new_tokens": int(rng.choice([0, 3, 9])), "num_beams": int(rng.choice([1, 3])),
                "bad_words_ids": [[5], [int(sequences[0, -1]), 8], [*map(int, sequences[1, -2:]), 9]]}
    s, T = GenerationSettings.of(**settings), 7
    ours = narrowed(process(processors(s, T), sequences, logits), s.temperature, s.top_k, s.top_p, s.min_p,
                    least=1 if s.num_beams == 1 else 3)
    config = transformers.GenerationConfig(**settings)
    models["float32"][1]._prepare_special_tokens(config, device="cpu")
    prompts = torch.from_numpy(sequences[:, :T])
    warp    = models["float32"][1]._get_logits_processor(config, T, prompts, device="cpu")
    theirs  = warp(torch.from_numpy(sequences), torch.from_numpy(logits))
    assert np.array_equal(np.isfinite(ours), np.isfinite(theirs.numpy()))
    assert np.allclose(softmax(ours), torch.softmax(theirs.double(), -1).numpy(), rtol=0, atol=1e-6)


class Recorder(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.put_in = []

    def put(self, value):
        self.put_in.append(np.asarray(value).tolist())

    def end(self):
        self.put_in.append("end")


def test_a_streamer_is_told_the_same(models):
    tokens = np.array([[1, 2], [4, 6], [8, 8]])
    settings = {"eos_token_id": [3], "pad_token_id": 0, "max_new_tokens": 9}
    mine, other = Recorder(), Recorder()
    models["float64"][0].generate(tokens, streamer=mine, **settings)
    prompts = torch.from_numpy(tokens)
    models["float64"][1].generate(prompts, attention_mask=torch.ones_like(prompts), streamer=other,
                                  **settings)
    assert mine.put_in == other.put_in and mine.put_in[0] == tokens.tolist() and mine.put_in[-1] == "end"
    assert any(0 in step for step in mine.put_in[1:-1])
