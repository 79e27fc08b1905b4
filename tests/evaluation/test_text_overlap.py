"""Overlap of texts: SQuAD's numbers by hand, sacrebleu's and rouge-score's to the last digit."""

import builtins
import subprocess
import sys

import numpy as np
import pytest

from npgpt.evaluation.bootstrap import mean_interval, resampled
from npgpt.evaluation.text_overlap import compare, exact_match, normalised, squad_em, squad_f1

WRITTEN    = ["The cat sat on the mat.", "It ran; then it slept.", "", "Paris", "un été à la mer",
              "dogs running"]
REFERENCES = [["A cat sat on a mat", "the cat is on the mat"], ["It ran.\nThen it slept."], ["nothing"],
              ["Paris ", "in Paris, France", "the city of Paris"], ["un été à la mer"], ["the dog runs"]]


@pytest.mark.parametrize(("text", "words"), [
    ("The  Cat,\tsat\non an A-frame!", "cat sat on aframe"),         # the hyphen goes first, so A is no word
    ("a.an the", "aan"), ("it's U.S.A.", "its usa"), ("Theatre Anna", "theatre anna"), ("", ""), ("The", ""),
    ("a.the", "athe"), ("A-the-an", "athean"), ("«été» – the end", "«été» – end"), ("ÉTÉ", "été"),
    ("«the»", "« »")])
def test_normalising_as_squad_does(text, words):
    assert normalised(text) == words


@pytest.mark.parametrize(("written", "reference", "em", "f1"), [
    ("The Eiffel Tower!", "eiffel tower", 1, 1),
    ("in Paris, France", "Paris", 0, 0.5),                           # P 1/3, R 1
    ("cat cat cat dog", "cat cat mouse", 0, 4 / 7),                  # 2 in both: P 2/4, R 2/3
    ("London", "Paris", 0, 0), ("", "Paris", 0, 0), ("Paris", "", 0, 0),
    ("the", "a", 1, 0), ("", "", 1, 0),                              # nothing is left: no word is in both
    ("b a c", "c b", 0, 1)])                                         # the order does not count
def test_exact_match_and_f1_of_squad_by_hand(written, reference, em, f1):
    assert squad_em(written, reference) == em
    assert squad_f1(written, reference) == pytest.approx(f1, abs=1e-15)


def test_exact_match_forgives_only_white_space_around():
    assert exact_match(" 12\n", "12") == 1
    for other in ("12.", "1 2", "012", "twelve"):
        assert exact_match("12", other) == 0
    assert exact_match("The", "the") == 0


def test_the_best_of_several_references_counts():
    result = compare(WRITTEN, REFERENCES, resamples=10)
    assert result.each["exact_match"].tolist() == [0, 0, 0, 1, 1, 0]
    assert result.each["squad_em"].tolist() == [1, 1, 0, 1, 1, 0]
    assert result.each["squad_f1"].tolist() == pytest.approx([1, 1, 0, 1, 1, 0])
    assert result.numbers["squad_em"] == pytest.approx(4 / 6)
    swapped = compare(WRITTEN, [several[::-1] for several in REFERENCES], resamples=10)
    assert swapped.numbers == pytest.approx(result.numbers)


def test_white_space_around_a_text_does_not_count():
    padded = compare([f"\n {text}\u00a0" for text in WRITTEN],
                     [[f" {text}\n\n" for text in several] for several in REFERENCES], resamples=10)
    plain  = compare(WRITTEN, REFERENCES, resamples=10)
    assert (padded.numbers, padded.intervals) == (plain.numbers, plain.intervals)


def test_intervals_are_those_of_the_records():
    result = compare(WRITTEN, REFERENCES, seed=3, resamples=50)
    for name, each in result.each.items():
        if name != "chrf":
            assert result.intervals[name] == mean_interval(each, 3, 50)
    assert all(low <= result.numbers[name] <= high for name, (low, high) in result.intervals.items())
    assert all(interval is None for interval in compare(["a"], [["b"]]).intervals.values())


def test_bleu_and_chrf_are_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    result  = compare(WRITTEN, REFERENCES, seed=1, resamples=20)
    stripped = [[text.strip() for text in several] for several in REFERENCES]
    streams = [[several[n] if n < len(several) else None for several in stripped] for n in range(3)]
    bleu, chrf = sacrebleu.corpus_bleu(WRITTEN, streams), sacrebleu.corpus_chrf(WRITTEN, streams)
    assert result.numbers["bleu"] == bleu.score and 0 < bleu.score < 100
    assert result.numbers["chrf"] == chrf.score and 0 < chrf.score < 100
    for n, several in enumerate(stripped):
        assert result.each["chrf"][n] == sacrebleu.sentence_chrf(WRITTEN[n], several).score
    assert "bleu" not in result.each
    assert result.signatures["bleu"] == \
        f"nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert result.signatures["chrf"].startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|")

    drawn: list[np.ndarray] = []
    resampled(lambda places: drawn.append(places) or [0], len(WRITTEN), 1, 20)
    for name, corpus in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        scores = [corpus([WRITTEN[n] for n in places],
                         [[stream[n] for n in places] for stream in streams]).score for places in drawn]
        np.testing.assert_allclose(result.intervals[name], np.quantile(scores, [0.025, 0.975]), rtol=1e-12)


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_is_that_of_rouge_score(use_stemmer):
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    result = compare(WRITTEN, REFERENCES, use_stemmer, resamples=10)
    names  = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    own    = scorer.RougeScorer(names, use_stemmer=use_stemmer)
    for name in names:
        each = [max(own.score(reference.strip(), text)[name].fmeasure for reference in several)
                for text, several in zip(WRITTEN, REFERENCES, strict=True)]
        assert result.each[name].tolist() == each
        assert result.numbers[name] == np.mean(each)
    assert result.each["rougeL"][1] == 1 and result.each["rouge1"][5] == (0.8 if use_stemmer else 0)
    lines = compare(["b\na"], [["a\nb"]], use_stemmer).numbers
    assert lines["rougeL"] == 0.5 and lines["rougeLsum"] == 1
    assert result.signatures["rouge"].startswith(f"use_stemmer:{use_stemmer}|version:")


@pytest.mark.parametrize("lacking", [("sacrebleu",), ("rouge_score",), ("sacrebleu", "rouge_score")])
def test_without_the_packages_the_others_are_given(monkeypatch, lacking):
    for package in {"sacrebleu", "rouge_score"} - set(lacking):
        pytest.importorskip(package)
    real = builtins.__import__

    def refuse(name, *arguments, **more):
        if name.split(".")[0] in lacking:
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = compare(WRITTEN, REFERENCES, resamples=10)
    assert result.missing == tuple(name.replace("_", "-") for name in lacking)
    assert ("bleu" in result.numbers) == ("chrf" in result.numbers) == ("sacrebleu" not in lacking)
    assert all((name in result.numbers) == ("rouge_score" not in lacking)
               for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"))
    assert result.numbers["squad_em"] == pytest.approx(4 / 6)


def test_the_packages_are_not_imported_before_they_are_needed():
    code = ("import sys, npgpt.cli.evaluate\n"
            "assert not {'sacrebleu', 'rouge_score', 'nltk'} & sys.modules.keys()")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
