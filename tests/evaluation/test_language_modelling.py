"""Loss, perplexity and bits per byte, against the model asked token by token, and against numbers by hand."""

import hashlib
import math

import numpy as np
import preparing
import pytest
import strict_cupy
from model_folders import random_model

from npgpt import BPETokenizer, CharacterTokenizer, GPTConfig
from npgpt.errors import CheckpointError, ConfigError, DataError
from npgpt.evaluation import documents as sources
from npgpt.evaluation import scoring
from npgpt.evaluation.bootstrap import mean_interval, ratio_interval, resampled
from npgpt.evaluation.language_modelling import measure, windows
from npgpt.evaluation.scoring import Span, batch_size_for, surprisals
from npgpt.tokenizers import load_tokenizer

V, CONTEXT = 13, 6
CONFIG = GPTConfig(vocab_size=V, block_size=8, n_layer=2, n_head=2, n_embd=6)
LENGTHS = np.arange(1, V + 1)                               # token n stands for n + 1 bytes


class Uniform:
    """Every token is as likely as any; remembers what it was given."""

    def __init__(self, vocab_size=V, dtype="float32"):
        self.vocab_size, self.dtype, self.read = vocab_size, dtype, []

    def forward(self, tokens):
        self.read.append(tokens.copy())
        return np.full((*tokens.shape, self.vocab_size), 3, self.dtype), ()


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, "float64")


def documents(*lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, V, length) for length in lengths]


DOCUMENTS = documents(1, 2, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 1, 20)


def brute_force(model, document, context, stride, prefix):
    """The surprisal of each token, asked for alone: the token n lies in the window that ends at the first of
    context, context + stride, … that is not before it, or at the text's end."""
    tokens = document if prefix is None else np.array([prefix, *document])
    result = []
    for n in range(1, len(tokens)):
        end   = n if n <= context else min(context + -(-(n - context) // stride) * stride, len(tokens) - 1)
        start = 0 if n <= context else end - context
        z     = model.forward(tokens[None, start:n])[0][0, -1]
        result.append(math.log(math.fsum(np.exp(z))) - z[tokens[n]])
    return result


@pytest.mark.parametrize("stride", range(1, CONTEXT + 1))
@pytest.mark.parametrize("prefix", [None, 4])
def test_the_loss_is_that_of_the_model_asked_token_by_token(model, stride, prefix):
    result   = measure(model, DOCUMENTS, LENGTHS, CONTEXT, stride, prefix, batch_size=3)
    expected = [brute_force(model, tokens, CONTEXT, stride, prefix) for tokens in DOCUMENTS]
    scored   = [own for own in expected if own]
    assert [len(own) for own in result.surprisals] == [len(own) for own in scored]
    for own, theirs in zip(result.surprisals, scored, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)
    total, count = math.fsum(map(math.fsum, scored)), sum(map(len, scored))
    assert result.tokens == count
    assert abs(result.loss * count - total) <= 1e-10
    assert result.perplexity == math.exp(result.loss)
    first = 0 if prefix is not None else 1
    assert result.bytes == sum(int(token) + 1 for tokens in DOCUMENTS for token in tokens[first:])
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / result.bytes, rel=1e-13)


@pytest.mark.parametrize("context", [1, 2, 5, 8])
def test_every_token_is_scored_once_with_enough_before_it(context):
    for stride in range(1, context + 1):
        for length in range(30):
            scored = []
            for start, stop, count in windows(length, context, stride):
                assert 0 <= start < stop - count < stop <= length and stop - start <= context + 1
                scored += range(stop - count, stop)
                assert stop - count - start >= min(stop - count, context - stride)
            assert scored == list(range(1, length))


def test_a_smaller_stride_reads_no_more_than_the_context_and_works_in_batches():
    model = Uniform()
    measure(model, documents(40, 3), LENGTHS, 5, 2, prefix=1, batch_size=4)
    assert max(read.shape[1] for read in model.read) == 5
    assert max(read.shape[0] for read in model.read) == 4
    assert model.read[0][0, 0] == 1 == model.read[-1][-1, 0]         # the first window and the short document
    model.read.clear()
    measure(model, documents(900, *range(3, 40)), LENGTHS, 500, 100, prefix=1)
    assert [read.shape for read in model.read] == [(1, 500), (8, 500), (33, 35)]
    assert batch_size_for(1024, 50257) == 1 and batch_size_for(64, 65) == 64


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_uniform_model_has_the_loss_ln_v(dtype):
    result = measure(Uniform(dtype=dtype), DOCUMENTS, LENGTHS, CONTEXT, 2)
    assert result.loss == pytest.approx(math.log(V), rel=1e-14)
    assert result.perplexity == pytest.approx(V, rel=1e-13)
    for own in result.surprisals:
        np.testing.assert_allclose(own, math.log(V), rtol=1e-14)


def test_a_gpt_of_zeros_is_uniform():
    model = random_model(CONFIG)
    model.flat.data[...] = 0
    assert measure(model, DOCUMENTS, LENGTHS, CONTEXT, 3).loss == pytest.approx(math.log(V), rel=1e-14)


def test_batches_change_nothing(model, monkeypatch):
    alone = measure(model, DOCUMENTS, LENGTHS, CONTEXT, 2, prefix=0, batch_size=1)
    for batch_size in (2, 3, 7, 1000, None):
        batch = measure(model, DOCUMENTS, LENGTHS, CONTEXT, 2, prefix=0, batch_size=batch_size)
        for one, other in zip(alone.surprisals, batch.surprisals, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
        assert batch.intervals["loss"] == pytest.approx(alone.intervals["loss"], rel=1e-12)
    for at_once in (1, 2 * V, 5 * V):                               # some of the logits at a time, in float64
        monkeypatch.setattr(scoring, "WIDENED_AT_ONCE", at_once)
        some = measure(model, DOCUMENTS, LENGTHS, CONTEXT, 2, prefix=0)
        for one, other in zip(alone.surprisals, some.surprisals, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_bits_per_byte_by_hand():
    """a, é, € and an emoji are 1, 2, 3 and 4 bytes. Of nothing but uniform tokens: n log₂ V bits."""
    text = "aé€😀"
    character = CharacterTokenizer.train([text])
    ids = np.array(character.encode_ordinary(text))
    result = measure(Uniform(4), [ids], sources.byte_lengths([ids], character), 4, 4)
    assert (result.tokens, result.bytes) == (3, 9)                  # nothing stands before the a
    assert result.bits_per_byte == pytest.approx(3 * 2 / 9, rel=1e-14)

    bytewise = BPETokenizer(())
    ids = np.array(bytewise.encode_ordinary(text))
    lengths = sources.byte_lengths([ids], bytewise)
    result = measure(Uniform(257), [ids], lengths, 4, 4, bytewise.eos_token_id)
    assert (result.tokens, result.bytes) == (10, 10)
    assert result.bits_per_byte == pytest.approx(math.log2(257), rel=1e-14)

    special = np.array([97, bytewise.eos_token_id])                 # stands for no byte of a text
    assert sources.byte_lengths([special], bytewise)[special].tolist() == [1, 0]
    nothing = measure(Uniform(257), [special], sources.byte_lengths([special], bytewise), 4, 4)
    assert nothing.bits_per_byte is None and nothing.intervals["bits_per_byte"] is None


def test_the_bootstrap_draws_documents_or_stretches(model):
    few  = measure(model, documents(20, 9), LENGTHS, CONTEXT, 1, prefix=0)
    assert few.units == ("stretches of 6 tokens", 4 + 2)            # whatever the stride
    many = measure(model, documents(*[7] * 29, 30), LENGTHS, CONTEXT, 3, prefix=0)
    assert many.units == ("documents", 30)
    for result in (few, many):
        low, high = result.intervals["loss"]
        assert low < result.loss < high
        assert result.intervals["perplexity"] == (math.exp(low), math.exp(high))
        low, high = result.intervals["bits_per_byte"]
        assert low < result.bits_per_byte < high
    sums, counts = [own.sum() for own in many.surprisals], [len(own) for own in many.surprisals]
    for settings in ({}, {"seed": 3, "resamples": 20}):
        result = measure(model, documents(*[7] * 29, 30), LENGTHS, CONTEXT, 3, 0, **settings)
        assert result.intervals["loss"] == pytest.approx(
            ratio_interval(np.array(sums), np.array(counts), **settings))
    assert measure(model, documents(5), LENGTHS, CONTEXT, 1, prefix=0).intervals["loss"] is None


def test_an_interval_covers_what_it_says_it_does():
    random, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(300):
        counts = random.integers(1, 9, 60)
        sums   = counts * 2.0 + random.normal(size=60) * counts       # the ratio's expectation is 2
        low, high = ratio_interval(sums, counts, resamples=300)
        covered += low <= 2 <= high
        widths.append(high - low)
    assert 0.90 <= covered / 300 <= 0.98                              # by chance alone ± 0.025
    spread = np.sqrt((counts**2).sum()) / counts.sum()                # of the last sums: standard deviation
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_an_interval_holds_the_middle_95_percent_of_the_numbers():
    values = np.random.default_rng(0).normal(size=50)
    numbers: list[float] = []
    (low, high), = resampled(lambda drawn: numbers.append(values[drawn].mean()) or numbers[-1:], 50)
    assert [sum(x < low for x in numbers), sum(x > high for x in numbers), len(numbers)] == [25, 25, 1000]


def test_an_interval_is_a_function_of_its_seed():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, 3) == mean_interval(values, 3) != mean_interval(values, 4)
    assert mean_interval(values[:1]) is None
    assert mean_interval(np.array([0, 1])) == (0, 1)                 # of two units there is one
    assert mean_interval(np.ones(9)) == (1, 1)
    assert ratio_interval(np.ones(3), np.array([1, 0, 2])) is None   # a unit without bytes, drawn alone: 1/0


def test_large_logits_do_not_overflow_and_broken_ones_are_told():
    class Fixed:
        def __init__(self, *logits):
            self.logits = np.array(logits, np.float32)

        def forward(self, tokens):
            return np.broadcast_to(self.logits, (*tokens.shape, len(self.logits))), ()

    span = [Span(np.array([0, 1, 0]), 2)]
    assert surprisals(Fixed(2**127, 2**126), span, 1)[0].tolist() == [2.0**126, 0]
    assert measure(Fixed(0, -2000), [np.array([0, 1])], LENGTHS, 2, 2).perplexity == math.inf
    for wrong in (np.nan, np.inf):
        with pytest.raises(CheckpointError, match="no number"):
            surprisals(Fixed(0, wrong), span, 1)
    with pytest.raises(DataError, match="token 2 is not in the model's vocabulary of 2"):
        surprisals(Fixed(0, 1), [Span(np.array([0, 2]), 1)], 1)


def test_surprisals_are_the_losses_of_single_tokens():
    model, rows = random_model(GPTConfig(11, 8, 1, 2, 8), "float64"), [[3, 0, 7, 3], [1, 1, 10, 2]]
    for row, nats in zip(rows, surprisals(model, [Span(row, 3) for row in rows]), strict=True):
        for place in range(3):
            targets = np.full((1, 3), -100)
            targets[0, place] = row[place + 1]
            assert math.isclose(nats[place], model.loss([row[:3]], targets)[0], rel_tol=1e-12)
    for tokens, scored in ((rows[0], 4), (rows[0], 0), (rows, 1), ([3], 1), ([0.5, 1.5], 1), (rows[0], 1.5),
                           (rows[0], None)):
        with pytest.raises(DataError, match=r"the last 1 to n are scored: span 1 has tokens of shape"):
            surprisals(model, [Span(rows[0], 3), Span(tokens, scored)])
    for spans in (rows, rows[0], np.array(rows), None):
        with pytest.raises(DataError, match=r"surprisals\(model, \[Span\(row, len\(row\) - 1\) for"):
            surprisals(model, spans)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not -1"):
        surprisals(model, [Span(rows[0], 3)], -1)


def test_logits_may_lie_on_a_gpu(model, monkeypatch):
    """The stand-in for CuPy refuses what that would; only the surprisals are fetched, not the logits."""
    expected = measure(model, DOCUMENTS, LENGTHS, CONTEXT, 2, batch_size=2)
    cupy = strict_cupy.install(monkeypatch)

    class OnGPU:
        def forward(self, tokens):
            return cupy.asarray(model.forward(tokens)[0]), ()

    result = measure(OnGPU(), DOCUMENTS, LENGTHS, CONTEXT, 2, batch_size=2)
    for own, theirs in zip(result.surprisals, expected.surprisals, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-13)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"stride": 0}, "stride must be 1 to the context of 6"),
    ({"stride": 7}, "stride must be 1 to the context of 6")])
def test_settings_that_cannot_be_used(model, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        measure(model, DOCUMENTS, LENGTHS, CONTEXT, **{"stride": 1} | settings)


def test_nothing_to_score(model):
    with pytest.raises(DataError, match="no token to score"):
        measure(model, documents(1, 1), LENGTHS, CONTEXT, 1)
    assert measure(model, documents(1), LENGTHS, CONTEXT, 1, prefix=0).tokens == 1


def test_progress_counts_scored_tokens(model):
    told = []
    measure(model, DOCUMENTS, LENGTHS, CONTEXT, 2, batch_size=2, progress=lambda *counts: told.append(counts))
    assert told[-1] == (49, 49) and len(told) > 3 and told == sorted(told)
    assert {total for _, total in told} == {49}


# Where the tokens come from

def test_shards_are_cut_at_the_end_of_text():
    stream = np.array([9, 1, 2, 9, 9, 3, 9])
    assert [own.tolist() for own in sources.split(stream, {9})] == [[1, 2], [3]]
    assert [own.tolist() for own in sources.split(stream[1:3], {9})] == [[1, 2]]
    assert [own.tolist() for own in sources.split(stream, {9, 2})] == [[1], [3]]
    assert [own.tolist() for own in sources.split(stream, ())] == [stream.tolist()]
    assert sources.split(np.array([9, 9]), {9}) == sources.split(stream[:0], ()) == []


@pytest.mark.parametrize("limit", [None, *range(1, 9)])
def test_a_limit_is_of_scored_tokens(limit):
    given = documents(3, 1, 4)
    for first_is_scored, scored in ((True, 8), (False, 5)):
        kept = sources.limited(given, limit, first_is_scored)
        assert sum(len(own) - (not first_is_scored) for own in kept) == min(scored, limit or 99)
        everything = [tokens for tokens in given if first_is_scored or len(tokens) > 1]
        assert all((own == whole[:len(own)]).all() for own, whole in zip(kept, everything, strict=False))


def test_a_text_and_a_prepared_folder_of_it_give_the_same(tmp_path):
    """The validation side of the prepared folder, written out as files, is the same documents."""
    preparing.write_corpus(tmp_path / "corpus")
    preparing.run(tmp_path / "corpus", tmp_path / "prepared", shard_tokens=1000)
    tokenizer = load_tokenizer(tmp_path / "prepared" / "tokenizer")
    prepared  = sources.read(str(tmp_path / "prepared"), tokenizer)
    assert len(prepared.tokens) > 3 and prepared.kind == "prepared"
    hashes = [hashlib.sha256(file.read_bytes()) for file in sorted((tmp_path / "prepared").glob("val-*.bin"))]
    assert len(hashes) > 1
    assert prepared.sha256 == hashlib.sha256(b"".join(each.digest() for each in hashes)).hexdigest()
    (tmp_path / "texts").mkdir()
    for n, own in enumerate(prepared.tokens):
        (tmp_path / "texts" / f"{n:02}.txt").write_bytes(tokenizer.decode(own.tolist()).encode())
    texts = sources.read(str(tmp_path / "texts"), tokenizer)
    assert texts.kind == "text"
    assert [own.tolist() for own in texts.tokens] == [own.tolist() for own in prepared.tokens]
    assert sum(sources.byte_lengths(texts.tokens, tokenizer)[own].sum() for own in texts.tokens) == sum(
        file.stat().st_size for file in (tmp_path / "texts").iterdir())
    few = sources.read(str(tmp_path / "texts"), tokenizer, limit=10)
    assert len(few.tokens) == 1 and few.sha256 == texts.sha256      # the hash is of all the data

    with pytest.raises(DataError, match="another tokenizer"):
        sources.read(str(tmp_path / "prepared"), BPETokenizer(((0, 1),)))
    other = BPETokenizer.train([" ".join(map(str, range(3000)))], tokenizer.vocab_size)
    assert other.vocab_size == tokenizer.vocab_size and other.special_tokens == tokenizer.special_tokens
    end, more = tokenizer.eos_token_id, dict(tokenizer.vocabulary)
    alike = (BPETokenizer(tokenizer.merges, (), vocabulary=more | {end: b"<|endoftext|>"}),
             BPETokenizer(tokenizer.merges, {"<|endoftext|>": end}, vocabulary=more | {end + 1: b"more"}))
    for wrong in (other, *alike):                                   # the bytes of these ids are the same
        with pytest.raises(DataError, match="another tokenizer"):
            sources.read(str(tmp_path / "prepared"), wrong)


def test_a_prepared_folder_without_validation_tokens_is_refused(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("hello world " * 20)
    preparing.run(tmp_path / "corpus", tmp_path / "prepared", val_fraction=0.0, vocab_size=258)
    with pytest.raises(DataError, match="prepared has no validation tokens: prepare it with a val_fraction"):
        sources.read(str(tmp_path / "prepared"), BPETokenizer(()))


def test_as_many_texts_are_encoded_as_have_so_many_scored_tokens():
    """The first token of each may have nothing before it."""
    for limit, texts in ((1, 1), (2, 2), (3, 3), (9, 4), (None, 4)):
        found = sources.read_texts(["ab", "ab", "ab", "ab"], BPETokenizer(()), limit)
        assert len(found.tokens) == texts, limit
    found = sources.read_texts(["a", "", "ab", "ab", "ab"], BPETokenizer(()), 2)      # two have none
    assert len(found.tokens) == 4


def test_the_hash_is_of_the_text_or_of_the_hashes_of_several():
    one, two = (hashlib.sha256(text.encode()) for text in ("é", "b"))
    assert sources.read_texts(["é"], BPETokenizer(())).sha256 == one.hexdigest()
    several = hashlib.sha256(one.digest() + two.digest()).hexdigest()
    assert sources.read_texts(["é", "b"], BPETokenizer(())).sha256 == several
