"""What a document must be like to be kept: rules, each a measure of the text with a limit.

Rules that suppose prose in sentences would throw away lists, tables, code and notes, so every one of them is
off until it is given a limit. GOPHER has the limits of Rae et al. 2021 ("Scaling Language Models: Methods,
Analysis & Insights from Training Gopher", appendix A.1), meant for pages from the web. None looks at a
language, but words are what blanks set apart: for Chinese, Japanese or Thai use the rules on characters and
lines alone. Always on, with options to turn them off:

    invalid_utf8    bytes that are not UTF-8 are no text; `replace` puts U+FFFD for each of them instead
    nul             U+0000 stands in binary files, not in text (Git tells them apart so too)
    min_characters  1: an empty document teaches nothing
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, Literal

from npgpt.errors import ConfigError
from npgpt.tokenizers import normal_forms
from npgpt.tokenizers.normal_forms import Form

GOPHER = {
    "min_words": 50, "max_words": 100_000, "min_mean_word_length": 3.0, "max_mean_word_length": 10.0,
    "max_symbols_per_word": 0.1, "max_bullet_lines": 0.9, "max_ellipsis_lines": 0.3,
    "min_words_with_letter": 0.8, "max_duplicate_lines": 0.3, "max_duplicate_line_characters": 0.2,
}
BULLETS = tuple("•‣◦▪▫■□▶●–*-")
ELLIPSES = ("…", "...")
MARKS = "\"'“”‘’«».,;:!?…()[]"

_SURROGATES = re.compile("[\ud800-\udfff]")


class Measured:
    """A text with its words (what blanks set apart) and its lines that are not blank, found when needed."""

    def __init__(self, text: str, stop_words: Collection[str] = ()):
        self.text, self.listed = text, stop_words

    @cached_property
    def word_list(self) -> list[str]:
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        return [line for part in self.text.splitlines() if (line := part.strip())]

    def characters(self) -> float:
        return len(self.text)

    def words(self) -> float:
        return len(self.word_list)

    def mean_word_length(self) -> float:
        return _share(sum(map(len, self.word_list)), len(self.word_list))

    def symbols_per_word(self) -> float:
        """The commoner of # and the ellipsis."""
        return _share(max(self.text.count("#"), sum(map(self.text.count, ELLIPSES))), len(self.word_list))

    def bullet_lines(self) -> float:
        return _share(sum(line.startswith(BULLETS) for line in self.lines), len(self.lines))

    def ellipsis_lines(self) -> float:
        return _share(sum(line.endswith(ELLIPSES) for line in self.lines), len(self.lines))

    def words_with_letter(self) -> float:
        return _share(sum(any(map(str.isalpha, word)) for word in self.word_list), len(self.word_list))

    def duplicate_lines(self) -> float:
        return _share(len(self.lines) - len(set(self.lines)), len(self.lines))

    def duplicate_line_characters(self) -> float:
        total = sum(map(len, self.lines))
        return _share(total - sum(map(len, set(self.lines))), total)

    def stop_words(self) -> float:
        """How many words are on the list, each time they occur; capitals and marks around them aside."""
        counts = Counter(self.word_list)
        return sum(count for word, count in counts.items() if word.lower().strip(MARKS) in self.listed)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


class Cleaner:
    """Mends texts and says which rule each one breaks first.

    limits: rule → limit, in the order in which they are asked; "max_words" is broken by more, "min_words" by
    fewer, of what the method of `Measured` says. stop_words: for min_stop_words.
    """

    def __init__(self, limits: Mapping[str, float], stop_words: Collection[str] = (), *,
                 invalid_utf8: Literal["drop", "replace"] = "drop", keep_nul: bool = False,
                 repair: bool = False, newlines: bool = False, normalize: Form | None = None):
        self.limits, self.listed = limits, frozenset(word.lower() for word in stop_words)
        self.replaces, self.keep_nul = invalid_utf8 == "replace", keep_nul
        self.changes: dict[str, Callable[[str], str]] = {}
        if repair:
            self.changes["repaired"] = _repairer()
        if newlines:
            self.changes["newlines_changed"] = lambda text: text.replace("\r\n", "\n").replace("\r", "\n")
        if normalize:
            self.changes["normalized"] = lambda text: normal_forms.normalize(normalize, text)

    def rules(self) -> list[str]:
        """The names of the rules that are on, in their order."""
        return ["invalid_utf8"] * (not self.replaces) + ["nul"] * (not self.keep_nul) + list(self.limits)

    def mend(self, text: str, counts: Counter[str]) -> str:
        """The text with what the options change in it. counts: told which of the changes changed something,
        and of "crlf" in the text as it came."""
        counts["crlf"] += "\r\n" in text
        if self.replaces and _SURROGATES.search(text):
            text = _SURROGATES.sub("\ufffd", text)
            counts["invalid_utf8_replaced"] += 1
        for name, change in self.changes.items():
            before, text = text, change(text)
            counts[name] += text != before
        return text

    def broken_rule(self, text: str) -> str | None:
        """The first rule that the mended text breaks, or None."""
        if _SURROGATES.search(text):
            return "invalid_utf8"
        if not self.keep_nul and "\0" in text:
            return "nul"
        measured = Measured(text, self.listed)
        for rule, limit in self.limits.items():
            bound, _, measure = rule.partition("_")
            value = getattr(measured, measure)()
            if value < limit if bound == "min" else value > limit:
                return rule
        return None


def _repairer() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError as error:
        raise ConfigError("repair needs a package that is not installed: "
                          "pip install 'npgpt[prepare]'") from error
    settings: dict[str, Any] = {  # what is broken alone: how a text is set is its author's business
        "normalization": None, "uncurl_quotes": False, "fix_latin_ligatures": False,
        "fix_character_width": False, "fix_line_breaks": False, "unescape_html": False}
    config = ftfy.TextFixerConfig(**settings)
    return lambda text: ftfy.fix_text(text, config)
