"""Examples: of a record only its answers count, to the token; what is left out is counted."""

import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from npgpt import BPETokenizer
from npgpt.data.examples import (
    encode_records,
    open_examples,
    prompts_and_answers,
    save_examples,
    split_records,
)
from npgpt.data.records import Dialogue, Labelled, Pair, Text
from npgpt.errors import ConfigError, DataError

TOKENIZER = BPETokenizer((), ("<|endoftext|>", "<|say|>"))      # bytes and these two: 256 and 257
END, SAY  = 256, 257
A, B, C, D = TOKENIZER.encode("abcd")


def render(messages, add_generation_prompt=True):
    text = "".join(f"<|say|>{m['role'][0]}:{m['content']}<|endoftext|>\n" for m in messages)
    return text + "<|say|>a:" * add_generation_prompt


def said(*texts):
    """A conversation; a text beginning with - is the assistant's."""
    return Dialogue(tuple({"role": "assistant" if text[:1] == "-" else "user", "content": text.lstrip("-")}
                          for text in texts))


def encoded(*records, block_size=100, render=render, labels=(), ends=(END,)):
    return encode_records(records, TOKENIZER, block_size, ends, render, labels)


def one(record):
    """Its tokens, and the text of those that count, with | between stretches."""
    examples, left_out = encoded(record)
    assert len(examples) == 1 and not left_out and examples.starts.tolist() == [0, examples.tokens.size]
    stretches, before = [], False
    for token, counted in zip(examples.tokens.tolist(), examples.counted.tolist(), strict=True):
        if counted:
            stretches = stretches if before else [*stretches, []]
            stretches[-1].append(token)
        before = counted
    return examples.tokens.tolist(), "|".join(TOKENIZER.decode(stretch) for stretch in stretches)


def test_of_a_pair_the_completion_and_its_end_count():
    assert one(Pair("ab", ("cd", "never"))) == ([A, B, C, D, END], "cd<|endoftext|>")


def test_an_empty_prompt_is_the_end_of_another_text():
    assert one(Pair("", ("c",))) == ([END, C, END], "c<|endoftext|>")


def test_of_a_text_all_counts():
    assert one(Text("abc")) == ([END, A, B, C, END], "abc<|endoftext|>")


def test_ids_above_16_bits_stay_what_they_are():
    examples, _ = encode_records([Text("a")], TOKENIZER, 9, [150_000], None)
    assert examples.tokens.tolist() == [150_000, A, 150_000]


def test_of_a_conversation_each_answer_counts_to_its_end():
    tokens, counted = one(said("x", "-yes", "z", "-no"))
    assert TOKENIZER.decode(tokens) == render(said("x", "-yes", "z", "-no").messages, False)
    assert tokens.count(SAY) == 4 and tokens.count(END) == 4
    assert counted == "yes<|endoftext|>|no<|endoftext|>"


@pytest.mark.parametrize(("after", "ends", "counted"), [
    ("<|endoftext|>\n", (SAY, END), "yes<|endoftext|>"), ("<|endoftext|>\n", (END, SAY), "yes<|endoftext|>"),
    ("<|say|>\n<|endoftext|>", (SAY, END), "yes<|say|>\n<|endoftext|>"),
    ("<|endoftext|>\n", (999,), "yes<|endoftext|>\n")])
def test_an_answer_ends_with_any_of_the_ends(after, ends, counted):
    """Often the first of them ends a text, and another an answer."""
    examples, _ = encoded(said("x", "-yes"), ends=ends, render=lambda messages, speaks: "x:" if speaks else
                          "x:yes" + after)
    assert TOKENIZER.decode(examples.tokens[examples.counted]) == counted


def test_what_was_answered_in_a_prompt_of_messages_is_given():
    tokens, counted = one(said("x", "-yes", "z", "-no", "y", "-so")._replace(given=3))
    assert TOKENIZER.decode(tokens).count("<|say|>") == 6
    assert counted == "no<|endoftext|>|so<|endoftext|>"
    assert encoded(said("x", "-yes", "z")._replace(given=3))[1] == {"without an answer": 1}


def test_what_the_assistant_says_first_is_given():
    """There is nothing to ask the template for: Qwen2.5's fails without a message."""
    def looking(messages, add_generation_prompt=True):
        assert messages[0]
        return render(messages, add_generation_prompt)
    talk = said("-hello", "x", "-yes")
    examples, left_out = encoded(talk, render=looking)
    assert not left_out and TOKENIZER.decode(examples.tokens) == render(talk.messages, False)
    assert TOKENIZER.decode(examples.tokens[examples.counted]) == "yes<|endoftext|>"
    assert encoded(said("-hello", "x"))[1] == {"without an answer": 1}


def test_a_conversation_that_the_template_refuses_is_left_out():
    def strict(messages, add_generation_prompt=True):
        if messages[0]["content"] == "!":
            raise ConfigError("the model's chat template refuses the conversation: no !")
        return render(messages, add_generation_prompt)
    examples, left_out = encoded(said("x", "-y"), said("!", "-y"), said("!", "-z"), render=strict)
    assert len(examples) == 1
    assert left_out == {"where the model's chat template refuses the conversation: no !": 2}


def test_what_comes_after_the_last_answer_is_not_read():
    assert one(said("x", "-yes", "and then?")) == one(said("x", "-yes"))


def most_memory(call):
    """Bytes that were in use at once."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_of_a_long_conversation_not_all_its_beginnings_are_in_memory():
    talk = said(*["x" * 100, "-" + "y" * 100] * 100)
    text = len(render(talk.messages))
    assert most_memory(lambda: encoded(talk, block_size=10**6)) < 50 * text         # 100 turns have 200 texts
    assert most_memory(lambda: encoded(talk, render=without_older_answers)) < 50 * text


def test_examples_are_gathered_in_few_bytes_a_token():
    pairs = [Pair("x" * 100, ("y" * 100,))] * 1000
    assert most_memory(lambda: encoded(*pairs, block_size=1000)) < 18 * 1000 * 201


def test_text_of_a_special_token_is_text_in_a_pair():
    tokens, _ = one(Pair("<|say|>", ("b",)))
    assert tokens == [*TOKENIZER.encode_ordinary("<|say|>"), B, END] and SAY not in tokens


def test_what_is_left_out_is_counted_by_its_reason():
    records = [Pair("a", ("",)), said("x"), said("x", "- "), Pair("a" * 5, ("b" * 5,)), Pair("a", ("b",)),
               said("<|say|>", "-y"), said("x", "-<|endoftext|>"),
               Dialogue((*said("x").messages, {"role": "assistant", "content": "y", "calls": ["<|say|>"]}))]
    examples, left_out = encoded(*records, block_size=10 - 1)
    assert len(examples) == 1 and examples.tokens.tolist() == [A, B, END]
    assert left_out == {"without an answer": 3, "longer than the context": 1,
                        "with the text of a special token in a message": 3}
    assert encoded(said("x", "-y", "z", "-w"), block_size=9)[1] == {"longer than the context": 1}


def without_history(messages, add_generation_prompt=True):
    return render(messages[-2:], add_generation_prompt)


def without_older_answers(messages, add_generation_prompt=True):
    return render([m if n == len(messages) - 1 or m["role"] == "user" else m | {"content": ""}
                   for n, m in enumerate(messages)], add_generation_prompt)


def test_where_the_template_takes_back_what_it_wrote_each_answer_is_an_example():
    """After what the model is given when it is to say it."""
    talk = said("x", "-yes", "z", "-no")
    examples, left_out = encoded(talk, said("x", "-y"), render=without_older_answers)
    assert not left_out and len(examples) == 3
    for n, (prompt, answer) in enumerate([*prompts_and_answers(examples)][:2]):
        assert TOKENIZER.decode(prompt) == without_older_answers(talk.messages[:2 * n + 1])
        assert TOKENIZER.decode(answer) == ("yes<|endoftext|>", "no<|endoftext|>")[n]
    assert TOKENIZER.decode(examples.tokens[:examples.starts[2]]) == "".join(
        without_older_answers(talk.messages[:n], False) for n in (2, 4))
    assert examples.counted.sum() == 4 + 3 + 2
    short = examples.starts[1]
    assert encoded(talk, render=without_older_answers, block_size=short)[1] == {"longer than the context": 1}


def without_first_question(messages, add_generation_prompt=True):
    return render(messages if len(messages) == 1 else messages[1:], add_generation_prompt)


@pytest.mark.parametrize("template, kept", [(without_history, 2), (without_first_question, 4)])
def test_an_answer_before_which_the_template_writes_something_else_is_left_out(template, kept):
    talk = said("x", "-y", "z", "-w")
    examples, left_out = encoded(talk, render=template)
    assert TOKENIZER.decode(examples.tokens) == template(talk.messages[:kept], False) and len(examples) == 1
    assert left_out == {"before which the chat template writes something else once it is said": 1}


@pytest.mark.parametrize("length, fits", [(7, True), (8, False)])
def test_an_example_as_long_as_the_context_fits(length, fits):
    """Of prompt, completion and end the model reads all but the last."""
    assert len(encoded(Pair("a", ("b" * length,)), block_size=8)[0]) == fits
    assert len(encoded(Labelled("b" * (length + 1), "x"), block_size=8, labels=["x", "y"])[0]) == fits


def test_labels_are_numbered_and_nothing_else_counts():
    examples, left_out = encoded(Labelled("ab", "good"), Labelled("", "bad"), Labelled("c", "bad"),
                                 labels=["bad", "good"])
    assert examples.labels.tolist() == [1, 0] and not examples.counted.any()
    assert examples.tokens.tolist() == [A, B, C] and examples.inputs.tolist() == [2, 1]
    assert left_out == Counter({"without text": 1})
    with pytest.raises(DataError, match="the label 'ugly' is none of bad, good"):
        encoded(Labelled("a", "ugly"), labels=["bad", "good"])


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(DataError, match="has no token that ends a text"):
        encode_records([Pair("a", ("b",))], TOKENIZER, 8, (), None)


def test_the_masked_ratio_is_of_all_tokens():
    assert encoded(Pair("abc", ("d",)), Pair("a", ("bcd",)))[0].masked_ratio == 4 / 10
    assert encoded(Pair("abc", ("",)))[0].masked_ratio == 0              # there are none


def test_prompts_and_first_answers_come_back():
    examples, _ = encoded(Pair("ab", ("cd",)), said("x", "-yes", "z", "-no"))
    texts = [(TOKENIZER.decode(prompt), TOKENIZER.decode(answer))
             for prompt, answer in prompts_and_answers(examples)]
    assert texts == [("ab", "cd<|endoftext|>"), ("<|say|>u:x<|endoftext|>\n<|say|>a:", "yes<|endoftext|>")]


def test_a_split_keeps_copies_together_and_gives_each_side_something():
    records = [Pair(str(n % 20), ("a",)) for n in range(60)]
    train, val = split_records(records, 0.25, seed=3)
    assert len(val) == 15 and len(train) == 45 and not set(train) & set(val)
    assert split_records(records, 0.25, seed=3) == (train, val) != split_records(records, 0.25, seed=4)
    for fraction in (0.001, 0.999):
        assert all(len(side) >= 1 for side in split_records(records[:2], fraction, seed=0))
    with pytest.raises(DataError, match="there is but one record, 2 times, and none to validate on"):
        split_records([Text("a"), Text("a")], 0.5, seed=0)
    with pytest.raises(DataError, match="there is but one record, and none to validate on"):
        split_records([Text("a")], 0.5, seed=0)


def test_examples_are_read_as_they_were_written_and_damage_is_refused(tmp_path):
    written, _ = encoded(Pair("ab", ("cd",)), said("x", "-y"))
    save_examples(tmp_path / "a.safetensors", written)
    read = open_examples(tmp_path / "a.safetensors")
    for name, array in vars(written).items():
        assert np.array_equal(vars(read)[name], array) and vars(read)[name].dtype == array.dtype
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-3])
    with pytest.raises(DataError, match="cut.safetensors cannot be read"):
        open_examples(tmp_path / "cut.safetensors")
    starts, counted = written.starts, written.counted
    for damage in ({"starts": starts * [1, 0, 1]}, {"starts": np.maximum(starts, 1)}, {"starts": starts[:-1]},
                   {"starts": starts * [1, 1, 2]}, {"labels": np.arange(3)}, {"counted": counted[:-1]}):
        save_examples(tmp_path / "b.safetensors", replace(written, **damage))
        with pytest.raises(DataError, match="b.safetensors are damaged"):
            open_examples(tmp_path / "b.safetensors")
    labelled, _ = encoded(Labelled("a", "x"), Labelled("b", "y"), labels=["x", "y"])
    save_examples(tmp_path / "c.safetensors", labelled)                 # of one token each
    assert open_examples(tmp_path / "c.safetensors").labels.tolist() == [0, 1]
