import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt import errors
from npgpt.tokenizers.patterns import SPLIT_PATTERNS, split_pattern


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
    assert split_pattern("gpt2").findall(text) == pieces.split("|")


@settings(max_examples=200)
@given(st.sampled_from(sorted(SPLIT_PATTERNS)), st.text(max_size=40) | st.text(alphabet="aé1 \n\t'st.\u3000"))
def test_the_pieces_joined_are_the_text(name, text):
    assert "".join(split_pattern(name).findall(text)) == text


def test_an_unknown_pattern_is_refused():
    with pytest.raises(errors.TokenizerError, match="unknown split pattern 'a.c': the known ones are gpt2"):
        split_pattern("a.c")
