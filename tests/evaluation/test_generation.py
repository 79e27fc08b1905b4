"""What is written after prompts: batches against each prompt alone, and where a text ends."""

import numpy as np
import pytest
from generating import random_gpt

from npgpt import BPETokenizer
from npgpt.evaluation.generation import Written, cut_at_end, write_on
from npgpt.generation.decoding import generate

TOKENIZER = BPETokenizer(())                                         # a byte a token
END       = TOKENIZER.eos_token_id
PROMPTS   = [[7, 8], [1], [3, 1, 4, 1, 5, 9], [2, 7, 1, 8], [5, 5], [66, 67, 68]]


def ids(text):
    return TOKENIZER.encode_ordinary(text)


@pytest.fixture(scope="module")
def model():
    return random_gpt(vocab_size=TOKENIZER.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=8)


class Scripted:
    """Writes the script that belongs to a prompt's last token; counts what it is asked."""

    def __init__(self, scripts):
        self.scripts, self.batches, self.steps = scripts, [], 0

    def generate(self, prompts, max_new_tokens, **settings):
        self.batches.append([len(prompt) for prompt in prompts])

        class Model:
            def new_cache(self, max_length):
                return None

            def next_logits(inner, tokens, kv_cache=None, attention_mask=None):
                self.steps += 1
                T = max(map(len, prompts))
                logits = np.zeros((len(tokens), TOKENIZER.vocab_size))
                for row, own in enumerate(tokens):
                    script = self.scripts[int(own[T - 1])]
                    logits[row, script[min(len(own) - T, len(script) - 1)]] = 1
                return logits

        return generate(Model(), prompts, max_new_tokens=max_new_tokens, **settings)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4, None])
def test_batches_write_what_each_prompt_gets_alone(model, batch_size, num_beams):
    told  = []
    found = write_on(model, TOKENIZER, PROMPTS, 6, num_beams, (END,), (), batch_size,
                     lambda done, total: told.append((done, total)))
    for prompt, own in zip(PROMPTS, found, strict=True):
        alone = model.generate(np.array([prompt]), max_new_tokens=6, num_beams=num_beams, eos_token_id=END)
        new   = alone[0, len(prompt):].tolist()
        new   = new[:new.index(END)] if END in new else new
        assert own.text == TOKENIZER.decode(new)
    assert len({own.text for own in found}) > 3
    assert told[-1] == (6, 6) and {total for _, total in told} == {6}


def test_texts_end_at_an_end_a_string_or_for_want_of_room():
    a, b, c, d = ids("abcd")
    other = ids("z")[0]
    model = Scripted({a: [*ids("one"), END], b: ids("two words"), c: [*ids("x"), other],
                      d: ids("stop. go on")})
    found = write_on(model, TOKENIZER, [[a], [b, b, b], [c], [d, d]], 8, 1, (END, other), (" w", ". "), 2)
    assert found == [Written("one", True), Written("two", True), Written("x", True), Written("stop", True)]
    assert model.batches == [[3, 2], [1, 1]]                         # the longest first
    short = write_on(model, TOKENIZER, [[a], [b]], 3, ends=(END,))
    assert short == [Written("one", False), Written("two", False)]
    assert write_on(model, TOKENIZER, [[a]], 4, ends=(END,)) == [Written("one", True)]


def test_no_token_is_made_after_the_end():
    a, = ids("a")
    for script, settings in (([*ids("one"), END], {"ends": (END,)}), (ids("one, two"), {"stops": ("e",)})):
        model = Scripted({a: script})
        write_on(model, TOKENIZER, [[a]], 30, **settings)
        assert model.steps == script.index(END if END in script else ids("e")[0]) + 1


def test_batches_of_themselves_hold_no_more_tokens_than_a_few_thousand():
    model = Scripted({1: [END]})
    write_on(model, TOKENIZER, [[1] * 24] * 300, 8, ends=(END,))
    assert [len(batch) for batch in model.batches] == [128, 128, 44]
    model = Scripted({1: [END]})
    write_on(model, TOKENIZER, [[1] * 24] * 40, 8, 4, ends=(END,))
    assert [len(batch) for batch in model.batches] == [32, 8]
    model = Scripted({1: [END]})
    write_on(model, TOKENIZER, [[1] * 4089] * 2, 8, ends=(END,))     # one prompt is always a batch
    assert model.batches == [[4089]] * 2


def test_where_there_is_no_end_padding_is_no_text():
    """A string ends the first text, and its row is filled up with token 0, which is a letter, while the
    second goes on."""
    a, b   = ids("ab")
    script = {a: ids("1,2"), b: ids("123456")}
    found  = write_on(Scripted(script), TOKENIZER, [[a], [b]], 6, stops=(",",))
    assert found == [Written("1", True), Written("123456", False)]


@pytest.mark.parametrize(("prompt", "new", "stops", "text", "ended"), [
    ("Q", "ab\nUser: c", ("\nUser:",), "ab", True), ("Q", "ab\nUse", ("\nUser:",), "ab\nUse", False),
    ("x\nUser: y", "ab", ("\nUser:",), "ab", False),                 # in the prompt it ends nothing
    ("x\nUs", "er: ab", ("\nUser:",), "", True),                     # but a new token may complete it
    ("x;", ";b", (";;",), "", True), (";", ";b", (";;",), "", True),
    ("x;", "b;;c;", (";;",), "b", True), ("x;;", "b", (";;",), "b", False),
    ("Q", "a, b; c", ("; ", ", "), "a", True), ("Q", "é€", ("€",), "é", True),
    ("€", "é€", ("€",), "é", True)])
def test_strings_that_end_a_text(prompt, new, stops, text, ended):
    assert cut_at_end(ids(prompt), ids(new), TOKENIZER, (END,), stops) == Written(text, ended)
    assert cut_at_end(ids(prompt), [*ids(new), END, *ids("more")], TOKENIZER, (END,), stops) == \
        Written(text, True)
