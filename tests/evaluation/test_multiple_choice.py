"""Endings scored in batches against each asked for alone; accuracies by hand; lines that are no question."""

import gzip
import hashlib
import json
import math

import numpy as np
import pytest
from model_folders import random_model

from npgpt import BPETokenizer, CharacterTokenizer, GPTConfig
from npgpt.errors import DataError
from npgpt.evaluation.bootstrap import mean_interval
from npgpt.evaluation.multiple_choice import Question, encode_pair, measure, read_questions

TOKENIZER = BPETokenizer.train(["the cat sat on the mat, the dog ran to the cat " * 3], 280)
END = TOKENIZER.eos_token_id
CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=12, n_layer=2, n_head=2, n_embd=6)
QUESTIONS = [
    Question("the cat", ("sat", "ran to the dog", "é"), 1, "q:1"),
    Question("the dog sat on the mat, on the mat and the cat sat on it  ", ("the mat", "to"), 0, "q:2"),
    Question("", ("cat", "dog", "mat on", "the"), 3, "q:3"),
]


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, "float64")


class Fixed:
    """Each token's logit, whatever stood before it."""

    def __init__(self, logits):
        self.logits = logits

    def forward(self, tokens):
        return np.broadcast_to(self.logits, (*tokens.shape, len(self.logits))), ()


def brute_force(model, question, ending, context, delimiter=" "):
    """Token by token, each asked for alone after all that the model may read before it in this question."""
    bare   = question.context.rstrip(" ")
    before = TOKENIZER.encode_ordinary(bare)
    whole  = TOKENIZER.encode_ordinary(question.context + delimiter + ending)
    after  = whole[len(before):]
    tokens = ((before or [END]) + after)[-context - 1:]
    total  = []
    for n in range(len(tokens) - len(after), len(tokens)):
        z = model.forward(np.array([tokens[:n]]))[0][0, -1]
        total.append(z[tokens[n]] - math.log(math.fsum(np.exp(z))))
    return math.fsum(total)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100, None])
def test_batches_give_what_each_ending_gives_alone(model, batch_size):
    result = measure(model, QUESTIONS, TOKENIZER, 12, END, batch_size=batch_size)
    hits   = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for own, question in zip(result.log_likelihoods, QUESTIONS, strict=True):
        alone = [brute_force(model, question, ending, 12) for ending in question.endings]
        np.testing.assert_allclose(own, alone, rtol=0, atol=1e-10)
        for name, lengths in (("acc", [1] * len(alone)), ("acc_norm", map(len, question.endings)),
                              ("acc_bytes", [len(ending.encode()) for ending in question.endings])):
            ratios = [x / length for x, length in zip(alone, lengths, strict=True)]
            hits[name].append(ratios.index(max(ratios)) == question.answer)
    assert result.numbers == {name: pytest.approx(sum(own) / 3) for name, own in hits.items()}
    assert result.truncated == 2                                     # both endings of the second question


def test_the_accuracies_by_hand():
    """A byte a token; every e costs 1, all others 2, but for a constant that all share."""
    tokenizer = BPETokenizer(())
    logits = np.zeros(tokenizer.vocab_size)
    logits[tokenizer.encode_ordinary("e")] = 1
    lse = math.log(256 + math.e)
    questions = [Question("x", ("eee", "n"), 1, ""),      # 4 lse − 3 against 2 lse; by length: eee
                 Question("x", ("eee", "n"), 0, ""),
                 Question("x", ("ééé", "abcd"), 0, ""),   # 7 and 5 tokens: 7/3 > 5/4, but 7/6 < 5/4
                 Question("x", ("ééé", "abcd"), 1, "")]
    result = measure(Fixed(logits), questions, tokenizer, 20)
    assert result.log_likelihoods[0] == pytest.approx([3 - 4 * lse, -2 * lse], rel=1e-14)
    assert result.log_likelihoods[2] == pytest.approx([-7 * lse, -5 * lse], rel=1e-14)
    assert result.tokens == 2 * (4 + 2 + 7 + 5)
    answers = {"acc": [1, 0, 0, 1], "acc_norm": [0, 1, 0, 1], "acc_bytes": [0, 1, 1, 0]}
    assert result.numbers == {name: np.mean(hits) for name, hits in answers.items()}
    assert result.numbers == {"acc": 0.5, "acc_norm": 0.5, "acc_bytes": 0.5}
    for n, wins in enumerate(zip(*answers.values(), strict=True)):
        alone = measure(Fixed(logits), questions[n:n + 1], tokenizer, 20)
        assert tuple(alone.numbers.values()) == wins
        assert alone.intervals["acc"] is None
    low, high = result.intervals["acc"]
    assert 0 <= low < 0.5 < high <= 1
    again = measure(Fixed(logits), questions, tokenizer, 20, seed=3, resamples=30)
    for name, hits in answers.items():
        assert result.intervals[name] == mean_interval(np.array(hits))
        assert again.intervals[name] == mean_interval(np.array(hits), 3, 30)


def test_context_and_ending_are_cut_as_the_harness_cuts_them():
    """Spaces at the context's end belong to the ending, and the two are encoded as one text."""
    def pair(context, ending):
        return tuple(TOKENIZER.decode(ids) for ids in encode_pair(context, ending, TOKENIZER))

    assert pair("the cat", " sat") == ("the cat", " sat")
    assert pair("the cat ", "sat") == ("the cat", " sat")
    assert encode_pair("the cat ", "sat", TOKENIZER) == encode_pair("the cat", " sat", TOKENIZER)
    assert pair("the cat\n ", "sat") == ("the cat", "\n sat")
    assert pair("  ", "sat") == ("", "  sat")
    before, after = encode_pair("the c", "at", TOKENIZER)            # one token, "cat", in the whole
    whole = TOKENIZER.encode_ordinary("the cat")
    assert (before, after) == (TOKENIZER.encode_ordinary("the c"), whole[len(before):])
    assert after != TOKENIZER.encode_ordinary("at")


def test_the_delimiter_goes_before_the_ending(model):
    question = Question("the cat", ("sat", "ran"), 0, "")
    for delimiter in ("", " ", ": "):
        own = measure(model, [question], TOKENIZER, 12, delimiter=delimiter).log_likelihoods[0]
        assert own[1] == pytest.approx(brute_force(model, question, "ran", 12, delimiter), abs=1e-10)


def test_endings_that_cannot_be_scored(model):
    character = CharacterTokenizer.train(["abc "])
    for question, tokenizer, delimiter, sentence in (
            (Question("", ("a", "b"), 0, "f:7"), character, " ", "ending 0 at f:7 has no context"),
            (Question("a", ("b", "c" * 12), 0, "f:8"), character, " ", "ending 1 at f:8 has 13 tokens, more"),
            (Question("the c", ("at", "x"), 0, "f:9"), TOKENIZER, "", "ending 0 at f:9 has no token of its")):
        with pytest.raises(DataError, match=sentence):
            measure(model, [question], tokenizer, 12, delimiter=delimiter)
    whole = measure(model, [Question("a", ("b", "c" * 11), 0, "")], character, 12)
    assert whole.truncated == 0 and whole.tokens == 2 + 12
    assert measure(model, [Question("aa", ("b", "c" * 11), 0, "")], character, 12).truncated == 1


# Files

GOOD = {"ctx": "a", "endings": ["b", "c"], "label": 1}


def write(tmp_path, *lines):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode()
                                for line in lines))
    return path


def test_questions_are_read_in_both_layouts(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD | {"id": 3}).encode(), b"", b" \r",
                 {"query": "d", "choices": ["e", "f", "g"], "gold": 2, "ctx": "unused"},
                 GOOD | {"label": "0", "ctx": "\ud800"})
    questions, digest = read_questions(path)
    assert questions == [Question("a", ("b", "c"), 1, f"{path}:1"),
                         Question("d", ("e", "f", "g"), 2, f"{path}:4"),
                         Question("\ufffd", ("b", "c"), 0, f"{path}:5")]
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_questions(path, limit=2) == (questions[:2], digest)


@pytest.mark.parametrize(("line", "sentence"), [
    (b'{"ctx": "a", ', "is no JSON: .* in column 14"), (b"\xff", "is no JSON"), (b"[" * 100000, "is no JSON"),
    ([1], "it must be a JSON object"), ({"endings": ["b", "c"], "label": 1}, "has neither 'query' nor 'ctx'"),
    ({"ctx": "a", "label": 1}, "has neither 'choices' nor 'endings'"),
    ({"ctx": "a", "endings": ["b", "c"]}, "has neither 'gold' nor 'label'"),
    (GOOD | {"ctx": 5}, "the context must be a text"),
    (GOOD | {"endings": "bc"}, "the endings must be a list"),
    (GOOD | {"endings": ["b"]}, "two texts or more"), (GOOD | {"endings": ["b", ""]}, "none of them empty"),
    (GOOD | {"endings": ["b", 1]}, "two texts or more"),
    *[(GOOD | {"label": label}, "the answer must be a number from 0 to 1, for there are 2 endings")
      for label in (2, -1, True, 1.0, None, "x", "-1", "", "²", "1000000000", "9" * 5000)]])
def test_lines_that_are_no_question(tmp_path, line, sentence):
    path = write(tmp_path, GOOD, b"", line, GOOD)
    with pytest.raises(DataError, match=f"questions.jsonl:3.*{sentence}"):
        read_questions(path)
    assert len(read_questions(path, limit=1).questions) == 1         # what is not asked for is not looked at


def test_questions_may_be_packed(tmp_path):
    path   = write(tmp_path, GOOD, GOOD)
    packed = tmp_path / "questions.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    one, other = read_questions(packed), read_questions(path)
    assert len(one.questions) == 2 and one.sha256 == other.sha256


def test_files_that_hold_no_question(tmp_path):
    with pytest.raises(DataError, match="has no question"):
        read_questions(write(tmp_path, b"\n"))
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "a\0b"):
        with pytest.raises(DataError, match="cannot read "):
            read_questions(path)
