"""How much of a text that a model wrote is in what others wrote there.

    exact_match     the two are the same, but for white space around them
    squad_em        the same after SQuAD's normalising: small letters; without punctuation, then without the
                    words a, an and the; words with one space between
    squad_f1        2 P R / (P + R) of the words of the two, normalised so and counted: P the share of what
                    was written that is in the reference, R the other way round; 0 where no word is in both

as the evaluation of SQuAD 1.1 (Rajpurkar et al. 2016) has them, each the highest over several references;
here as fractions, there in per cent. And from two packages, whose numbers these are to the last digit:

    bleu, chrf      sacrebleu's corpus_bleu and corpus_chrf with their defaults, 0 to 100 (Post 2018): n-grams
                    counted over all records; of one record there is a chrf, but no BLEU
    rouge1, rouge2, rougeL, rougeLsum       rouge-score's F of n-grams and of the longest common subsequence
                    (Lin 2004), for several references its score_multi, averaged over the records. It reads
                    a–z and 0–9 only; rougeLsum takes each line for a sentence
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from npgpt.evaluation.bootstrap import Interval, mean_interval, resampled

ARTICLES    = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
ROUGE       = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Overlap(NamedTuple):
    """each: name → the number of each record, (N,); of bleu there is none.  numbers, intervals: of all.
    signatures: name → how the package counted.  missing: the packages that are not there to count with.
    """

    each: dict[str, np.ndarray]
    numbers: dict[str, float]
    intervals: dict[str, Interval | None]
    signatures: dict[str, str]
    missing: tuple[str, ...]


def compare(written: Sequence[str], references: Sequence[Sequence[str]], use_stemmer: bool = False,
            seed: int = 0, resamples: int = 1000) -> Overlap:
    """written: N ≥ 1 texts.  references: of each at least one.  use_stemmer: of ROUGE. White space around a
    text does not count."""
    result = Overlap({}, {}, {}, {}, ())
    for name, measure in (("exact_match", exact_match), ("squad_em", squad_em), ("squad_f1", squad_f1)):
        _add_means(result, {name: [max(measure(own, text) for text in several)
                                   for own, several in zip(written, references, strict=True)]},
                   seed, resamples)
    missing = []
    for package, add in (
            ("sacrebleu", lambda: _add_sacrebleu(result, written, references, seed, resamples)),
            ("rouge-score", lambda: _add_rouge(result, written, references, use_stemmer, seed, resamples))):
        try:
            add()
        except ImportError:
            missing.append(package)
    return result._replace(missing=tuple(missing))


def exact_match(written: str, reference: str) -> float:
    return float(written.strip() == reference.strip())


def normalised(text: str) -> str:
    """As SQuAD 1.1's evaluation has it: punctuation is that of ASCII, and is taken out without a space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def squad_em(written: str, reference: str) -> float:
    return float(normalised(written) == normalised(reference))


def squad_f1(written: str, reference: str) -> float:
    own, others = normalised(written).split(), normalised(reference).split()
    common = (Counter(own) & Counter(others)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(own), common / len(others)
    return 2 * precision * recall / (precision + recall)


def _add_means(result: Overlap, each: dict[str, list[float]], seed: int, resamples: int) -> None:
    for name, values in each.items():
        own = result.each[name] = np.array(values, np.float64)
        result.numbers[name]   = float(own.mean())
        result.intervals[name] = mean_interval(own, seed, resamples)


def _add_sacrebleu(result: Overlap, written: Sequence[str], references: Sequence[Sequence[str]], seed: int,
                   resamples: int) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    streams: Any = [[several[n] if n < len(several) else None for several in references]
                    for n in range(max(map(len, references)))]
    metrics: dict[str, Any] = {"bleu": BLEU(), "chrf": CHRF()}
    for name, metric in metrics.items():
        result.numbers[name]    = metric.corpus_score(written, streams).score
        result.signatures[name] = str(metric.get_signature())
        # What is counted in each text, of which the score is made: counted once, not for every resample.
        counts = np.array(metric._extract_corpus_statistics(written, streams))               # (N, counts)
        score  = _score_of(metric, counts)
        if name == "chrf":
            result.each[name] = np.array([score([n])[0] for n in range(len(written))])
        intervals = resampled(score, len(written), seed, resamples)
        result.intervals[name] = None if intervals is None else intervals[0]


def _score_of(metric: Any, counts: np.ndarray) -> Callable[[Any], list[float]]:
    """A function from the places of some texts to the metric of these, alone in a list."""
    return lambda places: [metric._compute_score_from_stats(counts[places].sum(0).tolist()).score]


def _add_rouge(result: Overlap, written: Sequence[str], references: Sequence[Sequence[str]],
               use_stemmer: bool, seed: int, resamples: int) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, use_stemmer=use_stemmer)
    scores = [scorer.score_multi(several, own) for own, several in zip(written, references, strict=True)]
    _add_means(result, {name: [own[name].fmeasure for own in scores] for name in ROUGE}, seed, resamples)
    result.signatures["rouge"] = f"use_stemmer:{use_stemmer}|version:{version('rouge-score')}"
