"""Benchmarks: their questions in each language, how they are asked, and how answers are scored."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import yaml

from parrot_eval.prompts import yes_no_pairs
from parrot_eval.questions import QuestionSet, check_circles, read_questions
from parrot_eval.scores import COGNITION, JUDGED_CATEGORIES, PERCEPTION, POPE_SETTINGS, PROTOCOLS


CACHE = Path(datasets.config.HF_DATASETS_CACHE) / "benchmarks"
JUDGED = "judged"  # free answers that another model rates, see `judge`
KINDS = {  # of questions that a protocol scores
    "choice": "options", "circular": "options", "yes_no_pairs": "options",
    "yes_no": "Yes or No", "mme": "Yes or No", "pope": "Yes or No", JUDGED: "text",
}  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """
    Args:
        name: identifies it in files and settings.
        title: in reports.
        protocol: a key of `scores.PROTOCOLS`, or "judged".
        sets: {language: questions}.
        asks_itself: the questions say how to answer.
        about: paper or page.
    """

    name: str
    title: str
    protocol: str
    sets: Mapping[str, QuestionSet]
    asks_itself: bool = False
    about: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Identifies the questions, their order and their right answers."""
        digest = hashlib.sha256()
        for language, questions in self.sets.items():
            for q in questions:
                parts = (language, q.index, q.question, q.hint, q.answer, q.group, *q.options, *q.options.values())
                digest.update("\0".join(parts).encode())
        return digest.hexdigest()[:16]


@cache
def known_benchmarks() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "benchmarks.yaml").read_text(encoding="utf-8"))


def load_benchmark(
    sources: Sequence[str],
    languages: Sequence[str] | None = None,
    *,
    protocol: str | None = None,
    like: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Benchmark:
    """
    Args:
        sources: the name of a known benchmark, or files and data sets of one benchmark in any languages.
        languages: by default all that there are. With one file that does not say its language: that of the file.
        protocol: in place of the benchmark's own. "yes_no_pairs" turns choice questions into PARROT's Yes/No questions.
        like: the known benchmark that files are a version of, whose title and protocol they then have.
        columns: {name here: name in the files}, see `read_questions`.
        limit: only the first so many units of each language (whole groups).

    Raises:
        ValueError: unknown name, protocol or language; questions that do not fit the protocol, or see `read_questions`.
    """
    known = known_benchmarks()
    if like is not None and like not in known:
        raise ValueError(f"There is no benchmark {like!r}. Known: {', '.join(known)}.")
    if len(sources) == 1 and sources[0] in known:
        name = sources[0]
        entry = known[name]
        if unknown := sorted(set(languages or ()) - set(entry["files"])):
            raise ValueError(
                f"{entry['title']} has no published file in {', '.join(unknown)}, only in {', '.join(entry['files'])}. "
                f"Give a translated file by its path, with `--like {name}`."
            )
        columns = columns or entry.get("columns")
        sets: dict[str, QuestionSet] = {}
        for language in languages or entry["files"]:
            url = entry["files"][language]
            path = download(url, entry.get("md5", {}).get(language))
            sets |= read_questions(path, language, columns=columns, name=url)
    else:
        entry = known[like] if like else {"title": Path(sources[0]).stem}
        name = like or Path(sources[0]).stem
        given = languages[0] if languages and len(languages) == 1 and len(sources) == 1 else None
        columns = columns or entry.get("columns")
        sets = read_files(sources, given, columns)
        if missing := [language for language in languages or () if language not in sets]:
            raise ValueError(f"{', '.join(sources)}: nothing in {', '.join(missing)}, only in {', '.join(sets)}.")
        sets = {language: sets[language] for language in languages or sets}
    protocol = protocol or entry.get("protocol") or guess_protocol(sets)
    if protocol not in KINDS:
        raise ValueError(f"Unknown protocol {protocol!r}. There are: {', '.join(KINDS)}.")
    for questions in sets.values():
        check_protocol(questions, protocol)
    if protocol == "yes_no_pairs":
        sets = {language: questions.replaced(yes_no_pairs(questions)) for language, questions in sets.items()}
    if limit is not None:
        sets = {language: first_units(questions, protocol, limit) for language, questions in sets.items()}
    asks_itself = entry.get("asks_itself", False) and protocol != "yes_no_pairs"
    return Benchmark(name, entry["title"], protocol, sets, asks_itself, entry.get("about", ""), columns or {})


def read_files(
    sources: Sequence[str], language: str | None, columns: Mapping[str, str] | None
) -> dict[str, QuestionSet]:
    """Raises ValueError if two files have the same language."""
    sets: dict[str, QuestionSet] = {}
    for source in sources:
        found = read_questions(source, language, columns=columns)
        if twice := [code for code in found if code in sets]:
            raise ValueError(f"{source} has questions in {', '.join(twice)}, as {sets[twice[0]].name} has.")
        sets |= found
    return sets


def guess_protocol(sets: Mapping[str, QuestionSet]) -> str:
    """Of a file that is no known benchmark's: rotations make it circular, options choice, answers of yes or no yes_no."""
    first = next(iter(sets.values()))
    if all(question.options for question in first):
        return "circular" if len({q.group for q in first}) < len(first) else "choice"
    return "yes_no" if all(isinstance(question.target, bool) for question in first) else JUDGED


def check_protocol(questions: QuestionSet, protocol: str) -> None:
    """
    Raises:
        ValueError: questions of another kind than the protocol scores, incomplete circles or pairs, unknown categories.
    """
    wanted = KINDS[protocol]
    for question in questions:
        kind = "options" if question.options else "Yes or No" if isinstance(question.target, bool) else "text"
        if kind != wanted:
            raise ValueError(
                f"{questions.name}, index {question.index}: protocol {protocol!r} scores questions whose answer is "
                f"{wanted if wanted != 'options' else 'one of options'}, but this one's is {question.answer!r}"
                f"{' with options' if question.options else ''}."
            )
    if protocol == "circular":
        check_circles(questions, questions.name)
    names = {"mme": PERCEPTION + COGNITION, "pope": POPE_SETTINGS, JUDGED: JUDGED_CATEGORIES}.get(protocol)
    if names:
        found = {part.strip() for question in questions for part in question.category.split(",")}
        if unknown := sorted(found - set(names)):
            raise ValueError(
                f"{questions.name}: category {', '.join(map(repr, unknown))} is none of {protocol.upper()}'s: "
                f"{', '.join(names)}. Translate the questions, not the categories."
            )


def first_units(questions: QuestionSet, protocol: str, limit: int) -> QuestionSet:
    unit = PROTOCOLS[protocol].unit if protocol in PROTOCOLS else lambda question: question.index
    kept = set(list(dict.fromkeys(map(unit, questions)))[:limit])
    return questions.replaced([question for question in questions if unit(question) in kept])


def download(url: str, md5: str | None) -> str:
    """
    A file's place in the cache of `datasets`, downloaded unless it is there.

    Raises:
        ValueError: the file is not the one that was published.
    """
    path = datasets.DownloadManager(download_config=datasets.DownloadConfig(cache_dir=CACHE)).download(url)
    if md5 is not None:
        digest = hashlib.md5(usedforsecurity=False)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != md5:
            raise ValueError(
                f"{url} has changed: its MD5 is {digest.hexdigest()}, published was {md5}. Scores on it are not comparable. Give "
                "the file by its path to use it nevertheless."
            )
    return str(path)
