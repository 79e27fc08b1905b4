"""Records as prompts with references, and the loss on their answers alone, against each token by itself."""

import math

import numpy as np
import pytest
from model_folders import random_model

from npgpt import BPETokenizer, GPTConfig
from npgpt.data.examples import encode_records
from npgpt.data.records import Dialogue, Labelled, Pair, Text
from npgpt.errors import ConfigError, DataError
from npgpt.evaluation.answers import answers_of, measure
from npgpt.evaluation.bootstrap import ratio_interval
from npgpt.evaluation.documents import byte_lengths
from npgpt.evaluation.prompts import make_prompts, render_for

TOKENIZER = BPETokenizer((), special_tokens=("<|endoftext|>", "<|turn|>"))
END, TURN = TOKENIZER.special_tokens["<|endoftext|>"], TOKENIZER.special_tokens["<|turn|>"]
TEMPLATE  = ("{% for message in messages %}{{ message.role[0] }}>{{ message.content }}<|turn|>{% endfor %}"
             "{% if add_generation_prompt %}a>{% endif %}")


def talk(*words):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return Dialogue(tuple({"role": roles[word[0]], "content": word[2:]} for word in words))


def prompts(*records, template=TEMPLATE, prefix=END, tokenizer=TOKENIZER):
    render = render_for(records, template, {"eos_token": tokenizer.decode([TURN])}, tokenizer)
    return list(make_prompts(records, tokenizer, render, prefix, "f.jsonl"))


def ids(text):
    return TOKENIZER.encode_ordinary(text)


def test_pairs_are_given_as_they_are():
    one, other = prompts(Pair("2+2=", ("4", " ", "four")), Pair("<|turn|>", (" x",)))
    assert (one.record, one.text, one.tokens) == (1, "2+2=", ids("2+2="))
    assert one.references == ("4", "four")
    assert other.tokens == ids("<|turn|>") and TURN not in other.tokens           # ordinary text
    assert prompts(Pair("", ("x",)))[0].tokens == [END]


def test_the_last_answer_of_a_conversation_is_the_reference():
    pytest.importorskip("jinja2")
    one, = prompts(talk("s:S", "u:1", "a:2", "u:3", "a: 4 ", "u:5"))
    assert one.text == "s>S<|turn|>u>1<|turn|>a>2<|turn|>u>3<|turn|>a>"
    assert one.tokens == [*ids("s>S"), TURN, *ids("u>1"), TURN, *ids("a>2"), TURN, *ids("u>3"), TURN,
                          *ids("a>")]
    assert one.references == (" 4 ",)
    ended, = prompts(talk("u:1", "a:2"), template="{{ messages[0].content }}{{ eos_token }}")
    assert ended.tokens == [*ids("1"), TURN]
    plain, = prompts(talk("u:1", "a:2", "u:3", "a:4"), template=None)            # writes no token's text
    assert (plain.text, plain.references) == ("User: 1\nAssistant: 2\nUser: 3\nAssistant:", ("4",))


def test_records_without_an_answer_are_passed_over():
    pytest.importorskip("jinja2")
    kept = prompts(talk("u:1"), talk("a:1"), talk("u:1", "a:\n"), Pair("x", (" ", "")), talk("u:1", "a:2"),
                   talk("u:1", "a:2", "u:3", "a:"))
    assert [(one.record, one.references) for one in kept] == [(5, ("2",)), (6, ("2",))]


def test_records_that_are_no_prompts():
    pytest.importorskip("jinja2")
    for record, sentence in (
            (Text("x"), "record 2 of f.jsonl has no answer to a prompt"),
            (Labelled("x", "y"), "record 2 .* no answer"),
            (talk("u:say <|turn|>", "a:x"), r"record 2 of f.jsonl has the special token '<\|turn\|>'"),
            (Dialogue(({"role": "user", "content": "x", "name": "<|turn|>"}, *talk("a:x").messages)),
             r"record 2 of f.jsonl has the special token '<\|turn\|>'"),
            (talk("s:<|endoftext|>", "u:x", "a:x"), r"record 2 .* special token '<\|endoftext\|>'")):
        with pytest.raises(DataError, match=sentence):
            prompts(Pair("x", ("y",)), record)
    with pytest.raises(DataError, match="the prompt of record 1 of f.jsonl is empty"):
        prompts(Pair("", ("x",)), prefix=None)
    with pytest.raises(DataError, match="record 2 of f.jsonl: the model's chat template refuses .*: no"):
        prompts(Pair("x", ("y",)), talk("u:x", "a:y"), template="{{ raise_exception('no') }}")
    assert prompts(talk("u:x", "a:<|turn|>"))                        # the reference is only compared


def test_conversations_alone_need_the_template():
    assert prompts(Pair("x", ("y",)), template="{% nonsense")
    pytest.importorskip("jinja2")
    with pytest.raises(ConfigError, match="is no template"):
        prompts(talk("u:x", "a:y"), template="{% nonsense")


# Answers

CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=24, n_layer=2, n_head=2, n_embd=6)
PAIRS  = [Pair("2+2=", ("4",)), Pair("a", ("bé", "x")), Pair("", ("word",)),
          Pair("too long of a prompt", ("for it.",)), Pair("no answer", ("",))]


def encoded(*records, context=24, limit=None):
    render = render_for(records, TEMPLATE, {"eos_token": TOKENIZER.decode([END])}, TOKENIZER)
    examples, left_out = encode_records(records, TOKENIZER, context, [END], render)
    return answers_of(examples, limit), left_out


def alone(model, tokens, n):
    """−ln p of one token after those before it."""
    z = model.forward(np.array([tokens[:n]]))[0][0, -1]
    return math.log(math.fsum(np.exp(z))) - z[tokens[n]]


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_the_loss_is_that_of_the_answers_and_their_ends(batch_size):
    pytest.importorskip("jinja2")
    model  = random_model(CONFIG, "float64")
    answers, left_out = encoded(*PAIRS, talk("u:1", "a:no", "u:2", "a:ø"))
    assert left_out == {"longer than the context": 1, "without an answer": 1}
    talked = [*ids("u>1"), TURN, *ids("a>no"), TURN, *ids("u>2"), TURN, *ids("a>ø"), TURN]
    tokens = [[*ids("2+2="), *ids("4"), END], [*ids("a"), *ids("bé"), END], [END, *ids("word"), END], talked]
    places = [[4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5], [6, 7, 8, 15, 16, 17]]
    assert [own.tolist() for own in answers.tokens] == tokens
    assert [np.flatnonzero(own).tolist() for own in answers.counted] == places
    assert answers.masked_ratio == pytest.approx(1 - 17 / (6 + 5 + 6 + 18))
    result = measure(model, answers, byte_lengths(answers.tokens, TOKENIZER), batch_size, 3, 50)
    nats   = [[alone(model, own, n) for n in where] for own, where in zip(tokens, places, strict=True)]
    for own, theirs in zip(result.surprisals, nats, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)
    total  = math.fsum(map(math.fsum, nats))
    assert result.loss == pytest.approx(total / 17, abs=1e-12)
    assert (result.tokens, result.bytes) == (17, 1 + 3 + 4 + 2 + 2)  # an end stands for no bytes
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / 12, abs=1e-12)
    assert result.units == ("records", 4)
    low, high = result.intervals["loss"]
    assert low < result.loss < high
    sums, counts = np.array([sum(own) for own in nats]), np.array([len(own) for own in nats])
    assert (low, high) == pytest.approx(ratio_interval(sums, counts, 3, 50))


def test_limit_counts_scored_tokens():
    for limit, scored in ((1, [1]), (2, [2]), (3, [2, 1]), (8, [2, 4, 2]), (100, [2, 4, 5])):
        answers, _ = encoded(*PAIRS, limit=limit)
        assert [int(own.sum()) for own in answers.counted] == scored, limit
        assert all(own[-1] for own in answers.counted)               # nothing after it is read
    given = answers.masked_ratio
    assert given == pytest.approx(1 - 11 / 17) and encoded(PAIRS[0], limit=1)[0].masked_ratio == 0.8


def test_records_without_an_answer_that_fits_are_refused():
    with pytest.raises(DataError, match="there is no answer to score"):
        encoded(*PAIRS, context=2)
