"""Normal forms are Python's own, in time: many marks are in order before they come to its insertion."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.tokenizers.normal_forms import MANY_MARKS, normalize

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
MARKS = "\u0301\u0316\u0327\u0345\u0340\u0344\u0f71\u0f72\u0f73\u0f81\u034f\u20dd\u3099\uff9e\uff9f"
ODD   = MARKS + "ae\u00e9\u1ec7かｶ가\u1100\u1161"


@given(st.text(st.sampled_from(ODD), max_size=40), st.sampled_from(MARKS), st.sampled_from(MARKS))
def test_the_forms_are_pythons(text, one, other):
    many = text + (one + other) * 70 + text
    for form in FORMS:
        assert normalize(form, many) == unicodedata.normalize(form, many)


@pytest.mark.parametrize("form", FORMS)
def test_many_marks_are_in_order_before_python_orders_them(form, monkeypatch):
    """It swaps neighbours: each pair that is out of order costs a step, and of n marks there are n² such."""
    python, given_to_it = unicodedata.normalize, []

    def normalized(form, text):
        given_to_it.append(text)
        return python(form, text)

    monkeypatch.setattr(unicodedata, "normalize", normalized)
    for marks in ("\u0301\u0316", "\u0f73", "\u0301\u0f81", *["\uff9e\u0316"] * form.startswith("NFK")):
        normalize(form, "\u00e9" + marks * 100)
        classes = [unicodedata.combining(mark) for mark in given_to_it[-1][1:]]
        assert classes == sorted(classes) and len(classes) >= 200


def test_any_mark_may_be_one_of_many():
    marks = [chr(point) for point in range(0x110000) if unicodedata.combining(chr(point))]
    assert all(MANY_MARKS.fullmatch(mark * 100) for mark in marks)
