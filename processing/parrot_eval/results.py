"""From answers to results: what was read in each, how a harness would have read it, in which language it is, and scores."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parrot_data.languages import language_of, same_language
from parrot_eval.answers import parse_choice, parse_yes_no
from parrot_eval.benchmarks import JUDGED, Benchmark
from parrot_eval.harness import kit_choice, kit_yes_no
from parrot_eval.predictions import Key
from parrot_eval.prompts import load_wording
from parrot_eval.questions import Question
from parrot_eval.scores import PROTOCOLS, Read, Score, scores, tally


PARTS = ("category", "l2_category", "split")  # of a benchmark, each scored by itself
Table = dict[str, dict[str, Score]]  # {language or mean: {measure: score}}


@dataclass
class Results:
    """
    Args:
        settings: of the predictions: model, benchmark, prompts, ...
        scores: by language, and of the means over languages.
        kit: the same answers as VLMEvalKit reads them.
        likelihood: {how options were ranked: scores}, if they were.
        control: scores with the pictures of other questions, if that was asked.
        absent: why there are no scores, if a judge did not give any.
        parts: {"category" and so on: {part: scores}}.
        rates: {language: {rate: per cent}} of answers, and their number.
        disagreements: answers that the harness reads otherwise: {language, index, answer, read, kit}.
    """

    settings: dict[str, Any]
    title: str
    scores: Table
    kit: Table
    rates: dict[str, dict[str, float]]
    parts: dict[str, dict[str, Table]] = field(default_factory=dict)
    likelihood: dict[str, Table] = field(default_factory=dict)
    control: Table = field(default_factory=dict)
    disagreements: list[dict[str, Any]] = field(default_factory=list)
    absent: str = ""


def read_answer(question: Question, answer: str) -> Read:
    """A letter, or yes or no; None if there is nothing of the kind in the answer."""
    if question.options:
        return parse_choice(answer, question.options, question.language)
    return parse_yes_no(answer, question.language)


def kit_reading(question: Question, answer: str) -> Read:
    return kit_choice(answer, question.options) if question.options else kit_yes_no(answer)


def in_language(question: Question, answer: str) -> bool | None:
    """
    Whether an answer is in its question's language, among those that there are prompts in. None where that cannot be
    told: letters, numbers, names spelled alike, few words, and what the question offers.
    """
    text = answer.strip(" .。!！\n").casefold()
    options = {option.strip(" .。!！").casefold() for option in question.options.values()}
    if text in options:
        return None
    found = language_of(answer, sorted({*load_wording(), question.language}), expected=question.language)
    return None if found is None else same_language(found, question.language)


def most_likely(question: Question, likelihoods: Mapping[str, Sequence[float]], per_token: bool) -> Read:
    """The candidate with the highest log-probability, in all or per token; of equal ones the first."""
    best = max(likelihoods, key=lambda name: likelihoods[name][0] / (likelihoods[name][1] if per_token else 1))
    return best if question.options else best == "yes"


def score(benchmark: Benchmark, readings: Mapping[Key, Read], seed: int = 0) -> Table:
    """Scores of readings by (language, index)."""
    protocol = PROTOCOLS[benchmark.protocol]
    tallies = {
        language: tally(questions, [readings[language, q.index] for q in questions], protocol)
        for language, questions in benchmark.sets.items()
    }
    return scores(tallies, protocol, seed)


def score_parts(benchmark: Benchmark, readings: Mapping[Key, Read], part: str, seed: int = 0) -> dict[str, Table]:
    """{part: scores} by the questions' `part`, without intervals' cost for benchmarks that have one part only."""
    protocol = PROTOCOLS[benchmark.protocol]
    chosen: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for language, questions in benchmark.sets.items():
        for question in questions:
            if name := getattr(question, part):
                chosen[name][language].append(question)
    if len(chosen) < 2:
        return {}
    return {
        name: scores(
            {
                language: tally(questions, [readings[language, q.index] for q in questions], protocol)
                for language, questions in by_language.items()
            },
            protocol,
            seed,
        )
        for name, by_language in sorted(chosen.items())
    }


def results(
    benchmark: Benchmark,
    settings: Mapping[str, Any],
    predictions: Mapping[Key, Mapping[str, Any]],
    control: Mapping[Key, Mapping[str, Any]] | None = None,
    ratings: Mapping[Key, tuple[float, float]] | None = None,
    absent: str = "",
) -> Results:
    """
    Args:
        predictions: {(language, index): {"answer": text, "likelihoods": {kind: {candidate: [log-probability, tokens]}}}}.
        control: the same, of questions that were put to other questions' pictures.
        ratings: of free answers, by a judge (see `judge`); None if there are none, and `absent` says why.

    Raises:
        ValueError: an answer is missing.
    """
    asked = {(language, q.index): q for language, questions in benchmark.sets.items() for q in questions}
    if missing := [key for key in asked if key not in predictions]:
        raise ValueError(f"{len(missing)} of {len(asked)} questions have no answer, the first: {missing[0]}.")
    answers = {key: str(predictions[key]["answer"]) for key in asked}
    if benchmark.protocol == JUDGED:
        rated: dict[Key, Read] = {key: (ratings or {}).get(key) for key in asked}
        scored = {} if ratings is None else score(benchmark, rated)
        return Results(
            dict(settings), benchmark.title, scored, {}, rates(benchmark, answers, rated, rated), absent=absent
        )
    readings = {key: read_answer(question, answers[key]) for key, question in asked.items()}
    kit = {key: kit_reading(question, answers[key]) for key, question in asked.items()}
    found = Results(
        dict(settings),
        benchmark.title,
        score(benchmark, readings),
        score(benchmark, kit),
        rates(benchmark, answers, readings, kit),
        {part: tables for part in PARTS if (tables := score_parts(benchmark, readings, part))}
        if benchmark.protocol not in ("mme", "pope")  # whose measures tell their categories apart
        else {},
    )
    found.disagreements = [
        {"language": key[0], "index": key[1], "answer": answers[key], "read": readings[key], "kit": kit[key]}
        for key in asked
        if readings[key] != kit[key]
    ]
    for kind in sorted({kind for row in predictions.values() for kind in row.get("likelihoods", {})}):
        for per_token in (False, True):
            ranked = {
                key: most_likely(q, predictions[key]["likelihoods"][kind], per_token) for key, q in asked.items()
            }
            found.likelihood[f"{kind}, per token" if per_token else kind] = score(benchmark, ranked)
    if control is not None:
        found.control = score(benchmark, {key: read_answer(q, control[key]["answer"]) for key, q in asked.items()})
    return found


def rates(
    benchmark: Benchmark, answers: Mapping[Key, str], readings: Mapping[Key, Read], kit: Mapping[Key, Read]
) -> dict[str, dict[str, float]]:
    """
    Per language: `unread`, the answers in which nothing was found; `kit_unread`, those in which the harness finds
    nothing; `kit_differs`; `other_language`, of the answers whose language can be told; `language_told`, their share.
    """
    result = {}
    for language, questions in benchmark.sets.items():
        keys = [(language, q.index) for q in questions]
        told = [
            same for q, key in zip(questions, keys, strict=True)
            if (same := in_language(q, answers[key])) is not None
        ]  # fmt: skip
        result[language] = {
            "answers": len(keys),
            "unread": _per_cent(readings[key] is None for key in keys),
            "kit_unread": _per_cent(kit[key] is None for key in keys),
            "kit_differs": _per_cent(kit[key] != readings[key] for key in keys),
            "other_language": _per_cent(not same for same in told),
            "language_told": 100 * len(told) / len(keys),
        }
    return result


def _per_cent(hits: Any) -> float:
    values = list(hits)
    return 100 * sum(values) / len(values) if values else 0.0
