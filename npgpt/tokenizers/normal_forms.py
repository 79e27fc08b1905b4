"""Unicode's normal forms in a time that grows with the text, whatever is in it.

A character's marks come in the order of their combining classes, and Python's own function puts them in it by
insertion: n marks on one character, which no language has but a file of noise may, take it n² steps. So
where very many follow each other they are put in order here before, by a sort. That is another spelling of
the same text (canonically equivalent; Unicode Standard, chapter 3.11), so the normal form stays what it is.
"""

import unicodedata
from functools import partial
from itertools import groupby
from typing import Literal

import regex

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

MANY_MARKS = regex.compile(r"[\p{M}\uff9e\uff9f]{100,}")      # the last two are marks in NFKC and NFKD


def normalize(form: Form, text: str) -> str:
    """As unicodedata.normalize."""
    if not text.isascii():
        text = MANY_MARKS.sub(partial(_in_order, "NFD" if form in ("NFC", "NFD") else "NFKD"), text)
    return unicodedata.normalize(form, text)


def _in_order(form: Literal["NFD", "NFKD"], marks: "regex.Match[str]") -> str:
    """Each by itself in the form, and then sorted, up to the next that has no class and stays where it is."""
    apart = "".join([unicodedata.normalize(form, mark) for mark in marks.group()])
    return "".join("".join(sorted(some, key=unicodedata.combining) if sortable else some)
                   for sortable, some in groupby(apart, lambda mark: unicodedata.combining(mark) > 0))
