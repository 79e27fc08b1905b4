"""Each rule at its limit, on both sides of it; what mending changes and what it leaves."""

import importlib.util
from collections import Counter

import pytest

from npgpt.data.cleaning import GOPHER, Cleaner
from npgpt.data.plans import PrepareConfig
from npgpt.errors import ConfigError

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen.\n"


@pytest.mark.parametrize(("rule", "limit", "kept", "broken"), [
    ("min_characters", 5, "12345", "1234"),
    ("max_characters", 5, "12345", "123456"),
    ("min_words", 3, "a b\nc", "a b  \n"),
    ("max_words", 3, "a b\u3000c", "a b c d"),
    ("min_mean_word_length", 2.5, "ab abc", "ab ab a"),
    ("max_mean_word_length", 2.5, "ab abc", "abc ab abc"),
    ("max_symbols_per_word", 0.5, "# a b # c d", "# a #"),
    ("max_symbols_per_word", 0.5, "a... b", "a... b… c"),
    ("max_symbols_per_word", 0.5, "# a… b #… …a b", "# ## b"),      # the commoner one, not their sum
    ("max_bullet_lines", 0.5, "- a\n\n\nb - c\n", " • a\n\n* b\nc"),
    ("max_ellipsis_lines", 0.5, "a...\n\nb… c\n", "a… \nb...\nc"),
    ("min_words_with_letter", 0.5, "1a ...", "a 1 2"),
    ("min_words_with_letter", 0.5, "日本 12", "12 34 é"),
    ("max_duplicate_lines", 0.5, "a\nb\na\n b \n", "a\nb\na\na\nb\n"),
    ("max_duplicate_line_characters", 0.5, "abcd\na\na\nabcd", "abcd\na\nabcd\nabcd"),
])
def test_a_rule_at_its_limit(rule, limit, kept, broken):
    cleaner = Cleaner({rule: limit})
    assert cleaner.broken_rule(kept) is None and cleaner.broken_rule(broken) == rule
    assert Cleaner({}).broken_rule(broken) is None
    config = PrepareConfig(**{"min_characters": 0, rule: limit})
    assert config.limits() == {"min_characters": 0, rule: limit}
    assert config.cleaner().broken_rule(broken) == rule


def test_stop_words_of_the_users_own_list(tmp_path):
    (tmp_path / "words").write_text("und der\nÜber\n")
    config = PrepareConfig(stop_words=tmp_path / "words")
    assert config.cleaner().rules()[-1] == "min_stop_words"
    for text in ("Der Hund, und", "und. «und»", "x über DER x"):
        assert config.cleaner().broken_rule(text) is None
    for text in ("the dog and", "Hunde und Bänder", "", "underneath der"):
        assert config.cleaner().broken_rule(text) in ("min_stop_words", "min_characters")
    lenient = PrepareConfig(stop_words=str(tmp_path / "words"), min_stop_words=1)
    assert lenient.cleaner().broken_rule("der") is None


def test_gopher_is_one_option_and_limits_by_hand_go_over_it():
    config = PrepareConfig(quality="gopher", min_words=5, max_duplicate_lines=1.0)
    assert config.limits() == {"min_characters": 1} | GOPHER | {"min_words": 5, "max_duplicate_lines": 1.0}
    assert list(PrepareConfig().limits()) == ["min_characters"]
    prose = "".join(PROSE.replace("April", month) for month in ("May", "June", "July", "August", "October"))
    assert PrepareConfig(quality="gopher").cleaner().broken_rule(prose) is None
    for text, rule in ((PROSE, "min_words"), (PROSE * 5, "max_duplicate_lines"),
                       ("12 345 " * 50, "min_mean_word_length"),
                       ("1234 5678 " * 50, "min_words_with_letter")):
        assert PrepareConfig(quality="gopher").cleaner().broken_rule(text) == rule


def test_rules_that_are_always_on_and_how_to_turn_them_off():
    for text, rule in (("a\udcffb", "invalid_utf8"), ("\ud83d", "invalid_utf8"), ("a\0b", "nul"),
                       ("", "min_characters"), ("\udcff\0", "invalid_utf8")):
        assert PrepareConfig().cleaner().broken_rule(text) == rule
    assert PrepareConfig().cleaner().rules() == ["invalid_utf8", "nul", "min_characters"]
    lenient = PrepareConfig(invalid_utf8="replace", keep_nul=True, min_characters=0).cleaner()
    counts = Counter()
    assert lenient.mend("a\udcff\udcfeb\ud83d", counts) == "a\ufffd\ufffdb\ufffd"
    assert counts["invalid_utf8_replaced"] == 1 and lenient.rules() == ["min_characters"]
    assert lenient.broken_rule("a\0b") is None and lenient.broken_rule("") is None


def test_the_first_broken_rule_is_the_one_that_counts():
    cleaner = PrepareConfig(max_characters=3, min_words=2).cleaner()
    assert cleaner.broken_rule("aaaa") == "max_characters" and cleaner.broken_rule("aa") == "min_words"


def test_nothing_is_changed_unless_asked_for():
    text = "\u2028 \r\n a\r \ufeff e\u0301 ﬁ \x07 schÃ¶n “x” \t\n"
    counts = Counter()
    assert PrepareConfig().cleaner().mend(text, counts) == text and +counts == {"crlf": 1}
    changed = PrepareConfig(newlines=True, normalize="NFC").cleaner().mend("a\r\n\re\u0301\n", counts)
    assert changed == "a\n\né\n" and counts["newlines_changed"] == counts["normalized"] == 1
    PrepareConfig(newlines=True, normalize="NFC").cleaner().mend("é\n", counts)
    assert counts["newlines_changed"] == counts["normalized"] == 1           # only where something changed
    assert PrepareConfig(normalize="NFKC").cleaner().mend("ﬁ", counts) == "fi"


@pytest.mark.skipif(importlib.util.find_spec("ftfy") is None, reason="needs ftfy")
def test_repair_mends_what_is_broken_and_nothing_else():
    cleaner, counts = PrepareConfig(repair=True).cleaner(), Counter()
    assert cleaner.mend("schÃ¶n \x07\n", counts) == "schön \n" and counts["repaired"] == 1
    for text in ("“schön” ﬁ Ａ &amp;\r\n", "e\u0301"):
        assert cleaner.mend(text, counts) == text and counts["repaired"] == 1


def test_repair_without_ftfy_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'npgpt\[prepare\]'"):
        PrepareConfig(repair=True).cleaner()


@pytest.mark.parametrize(("options", "says"), [
    ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1, not 1.0"),
    ({"val_fraction": -0.1}, "val_fraction must be"), ({"format": "parquet"}, "format must be npgpt or"),
    ({"near_duplicates": 0.0}, "near_duplicates must be above 0"),
    ({"near_duplicates": 1.1}, "near_duplicates must be above 0"),
    ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"shard_tokens": 0}, "shard_tokens"),
    ({"tokenizer_characters": 0}, "tokenizer_characters"), ({"max_words": -1}, "max_words must be at least"),
    ({"max_characters": 2_000_001}, "max_characters must be at most 2,000,000, as longer documents are cut"),
    ({"vocab_size": 256}, "vocab_size must be at least 257"),
    ({"min_stop_words": 3}, "min_stop_words needs a list"),
    ({"val_fraction": "0.1"}, "val_fraction must be of type float, not '0.1'"),
    ({"max_words": 10.5}, "max_words must be of type int, not 10.5"),
    ({"quality": "Gopher"}, "quality must be off or gopher, not 'Gopher'"),
    ({"quality": None}, "quality must be off or gopher"),
    ({"normalize": "nfc"}, "normalize must be NFC or NFD or NFKC or NFKD, not 'nfc'"),
    ({"invalid_utf8": "ignore"}, "invalid_utf8 must be drop or replace, not 'ignore'"),
    ({"stop_words": 3}, "stop_words must be of type Path, not 3"),
])
def test_options_that_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        PrepareConfig(**options)


def test_options_at_the_ends_of_what_may_be():
    PrepareConfig(val_fraction=0.0, near_duplicates=1.0, seed=0, shard_tokens=1, tokenizer_characters=1,
                  max_characters=2_000_000, vocab_size=257, max_words=0)
    PrepareConfig(seed=2**64 - 1)
    PrepareConfig(tokenizer="character", vocab_size=0)               # which has as many as there are
