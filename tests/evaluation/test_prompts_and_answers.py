"""Records as prompts with references, and the loss on their answers alone, against each token by itself."""

import math

import numpy as np
import pytest
from model_folders import random_model

from npgpt import BPETokenizer, CharacterTokenizer, GPTConfig
from npgpt.data.records import Dialogue, Labelled, Pair, Text
from npgpt.errors import ConfigError, DataError
from npgpt.evaluation.answers import encode_answers, measure
from npgpt.evaluation.documents import byte_lengths
from npgpt.evaluation.prompts import make_prompts

TOKENIZER = BPETokenizer((), special_tokens=("<|endoftext|>", "<|turn|>"))
END, TURN = TOKENIZER.special_tokens["<|endoftext|>"], TOKENIZER.special_tokens["<|turn|>"]
TEMPLATE  = ("{% for message in messages %}{{ message.role[0] }}>{{ message.content }}<|turn|>{% endfor %}"
             "{% if add_generation_prompt %}a>{% endif %}")


def talk(*words):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return Dialogue(tuple({"role": roles[word[0]], "content": word[2:]} for word in words))


def prompts(*records, template=TEMPLATE, prefix=END, tokenizer=TOKENIZER):
    return list(make_prompts(records, tokenizer, template, prefix, "f.jsonl"))


def ids(text):
    return TOKENIZER.encode_ordinary(text)


def test_pairs_are_given_as_they_are():
    one, other = prompts(Pair("2+2=", ("4", " ", "four")), Pair("<|turn|>", (" x",)))
    assert (one.record, one.text, one.tokens) == (1, "2+2=", ids("2+2="))
    assert (one.references, one.answer) == (("4", "four"), "4")
    assert other.tokens == ids("<|turn|>") and TURN not in other.tokens           # ordinary text
    assert prompts(Pair("", ("x",)))[0].tokens == [END]


def test_the_last_answer_of_a_conversation_is_the_reference():
    pytest.importorskip("jinja2")
    one, = prompts(talk("s:S", "u:1", "a:2", "u:3", "a: 4 ", "u:5"))
    assert one.text == "s>S<|turn|>u>1<|turn|>a>2<|turn|>u>3<|turn|>a>"
    assert one.tokens == [*ids("s>S"), TURN, *ids("u>1"), TURN, *ids("a>2"), TURN, *ids("u>3"), TURN,
                          *ids("a>")]
    assert (one.references, one.answer) == ((" 4 ",), " 4 ")
    plain, = prompts(talk("u:1", "a:2"), template=None)
    assert (plain.text, plain.answer, plain.references) == ("User: 1\nAssistant:", " 2", ("2",))


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
            (talk("s:<|endoftext|>", "u:x", "a:x"), r"record 2 .* special token '<\|endoftext\|>'")):
        with pytest.raises(DataError, match=sentence):
            prompts(Pair("x", ("y",)), record)
    with pytest.raises(DataError, match="the prompt of record 1 of f.jsonl is empty"):
        prompts(Pair("", ("x",)), prefix=None)
    with pytest.raises(ConfigError, match="chat template refuses"):
        prompts(talk("u:x", "a:y"), template="{{ raise_exception('no') }}")
    assert prompts(talk("u:x", "a:<|turn|>"))                        # the reference is only compared


def test_conversations_alone_need_the_template():
    assert prompts(Pair("x", ("y",)), template="{% nonsense")
    pytest.importorskip("jinja2")
    with pytest.raises(ConfigError, match="is no template"):
        prompts(talk("u:x", "a:y"), template="{% nonsense")


# Answers

CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=12, n_layer=2, n_head=2, n_embd=6)
PAIRS  = [Pair("2+2=", ("4",)), Pair("a", ("bé", "x")), Pair("", ("word",)), Pair("too long", ("of it",)),
          Pair("exactly", ("fits.",))]


def by_hand(model, pairs):
    """−ln p of each token after a prompt, the end too, asked for alone."""
    nats = []
    for prompt, (answer, *_) in pairs:
        tokens = [*(ids(prompt) or [END]), *ids(answer), END]
        for n in range(len(ids(prompt) or [END]), len(tokens)):
            z = model.forward(np.array([tokens[:n]]))[0][0, -1]
            nats.append(math.log(math.fsum(np.exp(z))) - z[tokens[n]])
    return nats


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_the_loss_is_that_of_the_answers_and_their_ends(batch_size):
    model   = random_model(CONFIG, "float64")
    answers = encode_answers(prompts(*PAIRS), TOKENIZER, END, 12)
    kept    = [pair for pair in PAIRS if pair.prompt != "too long"]
    assert answers.too_long == 1                                     # 14 tokens, of which it would read 13
    assert [span.scored for span in answers.spans] == [2, 4, 5, 6]
    counted = sum(len(ids(prompt) or [END]) for prompt, _ in kept), 2 + 4 + 5 + 6
    assert answers.masked_ratio == pytest.approx(counted[0] / sum(counted))
    tokens  = [span.tokens for span in answers.spans]
    result  = measure(model, answers.spans, byte_lengths(tokens, TOKENIZER), batch_size, 0, 50)
    nats    = by_hand(model, kept)
    assert result.loss == pytest.approx(math.fsum(nats) / 17, abs=1e-12)
    assert np.concatenate(result.surprisals) == pytest.approx(nats, abs=1e-10)
    assert (result.tokens, result.bytes) == (17, 1 + 3 + 4 + 5)      # an end stands for no bytes
    assert result.bits_per_byte == pytest.approx(math.fsum(nats) / math.log(2) / 13, abs=1e-12)
    assert result.units == ("answers", 4)
    low, high = result.intervals["loss"]
    assert low < result.loss < high


def test_limit_counts_scored_tokens():
    for limit, scored in ((1, [1]), (2, [2]), (3, [2, 1]), (8, [2, 4, 2]), (100, [2, 4, 5, 6])):
        answers = encode_answers(prompts(*PAIRS), TOKENIZER, END, 12, limit)
        assert [span.scored for span in answers.spans] == scored, limit
        assert answers.spans[-1].tokens[-scored[-1] - 1] == (
            answers.spans[-1].tokens[len(prompts(*PAIRS)[(0, 1, 2, 4)[len(scored) - 1]].tokens) - 1])


def test_a_model_without_an_end_is_scored_to_the_last_letter():
    tokenizer = CharacterTokenizer.train(["abc"])
    given     = prompts(Pair("a", ("bc",)), tokenizer=tokenizer, prefix=None)
    answers   = encode_answers(given, tokenizer, None, 8)
    assert [(span.tokens.tolist(), span.scored) for span in answers.spans] == [([0, 1, 2], 2)]
    assert answers.masked_ratio == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="of 1, 1 are longer with their prompts than the 1 tokens"):
        encode_answers(prompts(Pair("a", ("bc",))), TOKENIZER, None, 1)
