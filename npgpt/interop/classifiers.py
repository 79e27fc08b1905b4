"""Classifiers in transformers' layout, …ForSequenceClassification: a model without the language model's head,
with a head `score` on the last token, and the names of its labels in config.json:

    "id2label": {"0": "negative", "1": "positive"}    "label2id": {"negative": 0, "positive": 1}
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from npgpt.errors import shown
from npgpt.interop.entries import Entries
from npgpt.interop.layouts import Piece, Place

OWN_CLASSIFIER = "SequenceClassifier"           # the architecture, in npgpt's own layout
LANGUAGE_MODEL_HEAD, SCORE = "lm_head.weight", "score.weight"
HEADS = (LANGUAGE_MODEL_HEAD, SCORE)            # that have no prefix in the file
MAX_LABELS = 10_000


class Labels(NamedTuple):
    """names: in the order of the logits.  pad_token_id: what transformers takes for padding; it has no mask
    by which to find the last token.
    """

    names: tuple[str, ...]
    pad_token_id: int | None = None


def read_labels(e: Entries) -> Labels:
    """Of a config.json; transformers leaves the names out where there are two without any."""
    if e.get("problem_type") != "single_label_classification":
        e.only("problem_type", None)
    pad, names = e.get("pad_token_id"), e.inside("id2label").entries
    if pad is not None and (type(pad) is not int or not 0 <= pad < 2**31):
        raise e.refused(f"its pad_token_id is {shown(pad)}, which is no token")
    if not names:
        names = {str(n): f"LABEL_{n}" for n in range(min(e.whole("num_labels", 2), MAX_LABELS + 1))}
    ordered = tuple(names.get(str(n)) for n in range(len(names)))
    if not 2 <= len(ordered) <= MAX_LABELS or not all(isinstance(name, str) for name in ordered) \
            or len(set(ordered)) < len(ordered):
        raise e.refused(f"its id2label is {shown(names)}, and must give each of 2 or more numbers from 0 on "
                        "a name of its own")
    return Labels(ordered, pad)                              # type: ignore[arg-type]


def label_entries(labels: Labels) -> dict[str, Any]:
    """What `read_labels` reads."""
    return {"id2label": {str(n): name for n, name in enumerate(labels.names)},
            "label2id": {name: n for n, name in enumerate(labels.names)},
            "problem_type": "single_label_classification", "pad_token_id": labels.pad_token_id}


def with_score(places: Iterable[Place], n_embd: int, labels: Labels) -> Iterator[Place]:
    """The places of a model, with this head for the language model's."""
    yield from (place for place in places if place.name != LANGUAGE_MODEL_HEAD)
    yield Place(SCORE, (Piece(SCORE, (len(labels.names), n_embd), transposed=True),))
