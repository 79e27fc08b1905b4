import random

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt import errors
from npgpt.tokenizers.patterns import SPLIT_PATTERNS, splitter


@pytest.mark.parametrize("text, pieces", [
    ("Hello, world!", "Hello|,| world|!"),
    ("it's we've I'll you're I'd I'm don't", "it|'s| we|'ve| I|'ll| you|'re| I|'d| I|'m| don|'t"),
    ("IT'S 'LL it’s 'tis", "IT|'|S| '|LL| it|’|s| '|tis"),
    ("x1 22,5 ½٣", "x|1| 22|,|5| ½٣"),
    ("a  b   c", "a| | b|  | c"),
    ("a\n\n\tb \n c  ", "a|\n\n|\t|b| \n| c|  "),
    ("naïve Жук 你好世界", "naïve| Жук| 你好世界"),
    ("a\u0301b\x1c\x00", "a|\u0301|b|\x1c\x00"),
    ("?!... --🤖", "?!...| --🤖")])
def test_gpt2_cuts_where_it_should(text, pieces):
    assert splitter("gpt2")(text) == pieces.split("|")


# By hand, after the published patterns.
@pytest.mark.parametrize("name, text, pieces", [
    ("cl100k", "IT'S 'tis, don'T", "IT|'S| '|tis|,| don|'T"),
    ("cl100k", "12345 x1234.\n\nA", "123|45| x|123|4|.\n\n|A"),
    ("cl100k", "(word) \tword  \n b", "(word|)| |\tword|  \n| b"),
    ("qwen2", "123 x", "1|2|3| x"),
    ("o200k", "HTTPServer camelCase DON'T don't", "HTTPServer| camel|Case| DON'T| don't"),
    ("o200k", "a/b.\n//c", "a|/b|.\n//|c"),
    ("o200k", "12345", "123|45"),
    ("smollm", "12  3 a  b's", "1|2|  |3| a| | b|'s"),
])
def test_the_others_cut_where_they_should(name, text, pieces):
    assert splitter(name)(text) == pieces.split("|")
    other = text.replace("a", "ä").replace("x", "ж")
    assert splitter(name)(other) == pieces.replace("a", "ä").replace("x", "ж").split("|")


@settings(max_examples=200)
@given(st.sampled_from(sorted(SPLIT_PATTERNS)), st.text(max_size=40) | st.text(alphabet="aé1 \n\t'st.\u3000"))
def test_the_pieces_joined_are_the_text(name, text):
    assert "".join(splitter(name)(text)) == text


@settings(max_examples=500)
@given(st.sampled_from(sorted(SPLIT_PATTERNS)), st.text(st.characters(max_codepoint=127), max_size=40)
       | st.text(alphabet="aAbS1234 \n\r\t'sSt.,/\x0b\x0c\x1c\x1f"))
def test_ascii_is_cut_as_any_text_is(name, text):
    assert splitter(name)(text) == regex.compile(SPLIT_PATTERNS[name]).findall(text)


@pytest.mark.parametrize("sizes", [(0,), (7, 1), (15, 7, 0)])
@pytest.mark.parametrize("name", SPLIT_PATTERNS)
def test_a_text_cut_in_stretches_gives_the_same_pieces(name, sizes):
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("abS1 \n\n\n\r\t'st.,/é中¿٣\u3000", k=draw.randrange(1, 30))) + "é"
        assert splitter(name)(text, sizes) == regex.compile(SPLIT_PATTERNS[name]).findall(text)


def test_an_unknown_pattern_is_refused():
    with pytest.raises(errors.TokenizerError, match="unknown split pattern 'a.c': the known ones are gpt2"):
        splitter("a.c")
