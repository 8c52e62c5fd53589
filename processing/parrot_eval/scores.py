"""Scores from answers that were read: per protocol what is counted, what the counts give, and how sure that is.

A protocol counts over *units*, which belong together: a question, all rotations of one question, the two Yes/No
questions on one picture. Counts of units can be summed, so a score on any part of a benchmark, its bootstrap interval
and its mean over languages all come from the same few lines.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from parrot_eval.questions import Question


RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
MEAN, NON_ENGLISH = "mean", "non-English"

# MME's subtasks (Fu et al. 2023, section 2.2). Each gives at most 200 points.
PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()
POPE_SETTINGS = ("random", "popular", "adversarial")
JUDGED_CATEGORIES = ("conv", "detail", "complex")

# What was read in an answer: an option's letter, yes or no, ratings of the reference and of the answer; or nothing.
Read = Any
Measures = dict[str, np.ndarray]
Tally = dict[Hashable, np.ndarray]  # {unit: counts}


class Score(NamedTuple):
    value: float
    low: float  # bounds of the 95% bootstrap interval
    high: float


@dataclass(frozen=True)
class Protocol:
    """
    How answers become scores.

    Args:
        unit: what belongs together, of a question.
        count: the counts of one unit, from its questions and what was read in their answers; a fixed shape.
        measures: {name: [...]} from sums of counts [..., counts]. The first one is the score.
    """

    unit: Callable[[Question], Hashable]
    count: Callable[[Sequence[Question], Sequence[Read]], np.ndarray]
    measures: Callable[[np.ndarray], Measures]


def per_cent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Of nothing 0, as in the harnesses."""
    return 100 * np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) != 0)


# ------------------------------------------------------------------------------- accuracy, plain and of whole groups


def count_right(questions: Sequence[Question], read: Sequence[Read]) -> np.ndarray:
    """[units, units of which every question was answered rightly]"""
    return np.array([1, all(q.target == r for q, r in zip(questions, read, strict=True))])


def accuracy(sums: np.ndarray) -> Measures:
    return {"accuracy": per_cent(sums[..., 1], sums[..., 0])}


# ------------------------------------------------------------------------------------------------------------- MME


def count_mme(questions: Sequence[Question], read: Sequence[Read]) -> np.ndarray:
    """[subtasks, (questions, right ones, pictures, pictures with both right)] of the questions on one picture."""
    right = [q.target == r for q, r in zip(questions, read, strict=True)]
    counts = np.zeros((len(PERCEPTION + COGNITION), 4))
    counts[(PERCEPTION + COGNITION).index(questions[0].category)] = len(right), sum(right), 1, all(right)
    return counts


def mme(sums: np.ndarray) -> Measures:
    """Accuracy and accuracy+ of each subtask, added up (Fu et al. 2023, section 2.2)."""
    acc, plus = per_cent(sums[..., 1], sums[..., 0]), per_cent(sums[..., 3], sums[..., 2])  # [..., subtasks]
    points, split = acc + plus, len(PERCEPTION)
    found = np.any(sums[..., 0].reshape(-1, sums.shape[-2]) > 0, axis=0)
    result = {"perception": points[..., :split].sum(-1), "cognition": points[..., split:].sum(-1)}
    for number, name in enumerate(PERCEPTION + COGNITION):
        if found[number]:
            result |= {f"{name} acc": acc[..., number], f"{name} acc+": plus[..., number]}
    return result


# ------------------------------------------------------------------------------------------------------------ POPE


def count_pope(questions: Sequence[Question], read: Sequence[Read]) -> np.ndarray:
    """
    [settings, (true yes, false yes, missed yes, read as yes, right, all)] of the questions on one picture.

    An answer that could not be read is not right; in precision and recall it counts as "no", as in VLMEvalKit.
    """
    counts = np.zeros((len(POPE_SETTINGS), 6))
    for question, value in zip(questions, read, strict=True):
        yes, target = value is True, question.target is True
        row = [yes and target, yes and not target, target and not yes, yes, value == question.target, 1]
        for setting in question.category.split(","):  # one question may belong to several
            counts[POPE_SETTINGS.index(setting.strip())] += row
    return counts


def pope(sums: np.ndarray) -> Measures:
    """Mean F1 of the settings (as LLaVA reports it), F1 of all questions together (VLMEvalKit), and each setting."""
    per_setting = _yes_no_measures(sums)  # {name: [..., settings]}
    found = np.any(sums[..., 5].reshape(-1, sums.shape[-2]) > 0, axis=0)
    result = {"mean F1": per_setting["F1"][..., found].mean(-1)}
    result |= _yes_no_measures(sums.sum(-2))
    for number, setting in enumerate(POPE_SETTINGS):
        if found[number]:
            result |= {f"{setting} {name}": values[..., number] for name, values in per_setting.items()}
    return result


def _yes_no_measures(sums: np.ndarray) -> Measures:
    true_yes, false_yes, missed, said_yes, right, total = np.moveaxis(sums, -1, 0)
    return {
        "F1": per_cent(2 * true_yes, 2 * true_yes + false_yes + missed),
        "accuracy": per_cent(right, total),
        "precision": per_cent(true_yes, true_yes + false_yes),
        "recall": per_cent(true_yes, true_yes + missed),
        "yes ratio": per_cent(said_yes, total),
    }


# ----------------------------------------------------------------------------------------------------- LLaVA-Bench


def count_judged(questions: Sequence[Question], read: Sequence[Read]) -> np.ndarray:
    """[categories, (rating of the model, rating of the reference)] of one question; zeros if it has no rating."""
    counts = np.zeros((len(JUDGED_CATEGORIES), 2))
    if read[0] is not None:
        reference, model = read[0]
        counts[JUDGED_CATEGORIES.index(questions[0].category)] = model, reference
    return counts


def judged(sums: np.ndarray) -> Measures:
    """Ratings in per cent of the reference answers' ratings: of all questions, and of each category."""
    result = {"relative score": per_cent(sums[..., 0].sum(-1), sums[..., 1].sum(-1))}
    found = np.any(sums[..., 1].reshape(-1, sums.shape[-2]) > 0, axis=0)
    for number, category in enumerate(JUDGED_CATEGORIES):
        if found[number]:
            result[category] = per_cent(sums[..., number, 0], sums[..., number, 1])
    return result


PROTOCOLS = {
    "choice": Protocol(lambda question: question.index, count_right, accuracy),
    "yes_no": Protocol(lambda question: question.index, count_right, accuracy),
    "circular": Protocol(lambda question: question.group, count_right, accuracy),
    "yes_no_pairs": Protocol(lambda question: question.group, count_right, accuracy),
    "mme": Protocol(lambda question: (question.category, question.group), count_mme, mme),
    "pope": Protocol(lambda question: question.group, count_pope, pope),
    "judged": Protocol(lambda question: question.index, count_judged, judged),
}


def tally(questions: Sequence[Question], read: Sequence[Read], protocol: Protocol) -> Tally:
    """Counts of every unit."""
    units: dict[Hashable, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        units[protocol.unit(question)].append(number)
    return {
        unit: protocol.count([questions[n] for n in numbers], [read[n] for n in numbers])
        for unit, numbers in units.items()
    }


def scores(tallies: Mapping[str, Tally], protocol: Protocol, seed: int = 0) -> dict[str, dict[str, Score]]:
    """
    Scores with bootstrap intervals.

    Units are drawn with replacement. A unit that several languages share, the same question in each, is drawn for all
    of them or for none, so that the interval of a mean over languages is right.

    Args:
        tallies: by language.

    Returns:
        {language, "mean" or "non-English": {measure: Score}}; the means are those over languages, of the languages'
        scores. They are left out where there is one language only.
    """
    languages = list(tallies)
    units = sorted({unit for counts in tallies.values() for unit in counts}, key=str)
    shape = np.shape(next(iter(tallies[languages[0]].values())))
    counts = np.zeros((len(units), len(languages), *shape))
    for number, unit in enumerate(units):
        for column, language in enumerate(languages):
            if unit in tallies[language]:
                counts[number, column] = tallies[language][unit]
    values = _with_means(protocol.measures(counts.sum(0)), languages)
    rng = np.random.default_rng(seed)
    equal = np.full(len(units), 1 / len(units))
    flat = counts.reshape(len(units), -1)
    draws = [rng.multinomial(len(units), equal, size=100) @ flat for _ in range(RESAMPLES // 100)]
    resampled = _with_means(protocol.measures(np.concatenate(draws).reshape(-1, len(languages), *shape)), languages)
    return {
        row: {
            name: Score(float(values[row][name]), *map(float, np.percentile(resampled[row][name], INTERVAL)))
            for name in values[row]
        }
        for row in values
    }


def _with_means(measures: Measures, languages: Sequence[str]) -> dict[str, Measures]:
    """{language or mean: {measure: [...]}} from {measure: [..., languages]}."""
    result = {
        language: {name: array[..., column] for name, array in measures.items()}
        for column, language in enumerate(languages)
    }
    others = [column for column, language in enumerate(languages) if language != "en"]
    if len(languages) > 1:
        result[MEAN] = {name: array.mean(-1) for name, array in measures.items()}
    if 0 < len(others) < len(languages) or len(others) > 1:
        result[NON_ENGLISH] = {name: array[..., others].mean(-1) for name, array in measures.items()}
    return result
