"""One part of a data set in parallel languages: its rows translated, checked, and sorted into accepted and pending.

LRM-LLaVA's data set ("Datasets and Benchmarks") and PARROT's (section 4.4) are made this way. A row becomes

    {"id", "images", "texts": {language: [{"question", "answer"}, ...]}, "pending", "kept"}

`texts` is what training reads (`DataSource`). `pending` has the translations that a check found suspicious, for a person to
look at (see `calibration.py`). `kept` says why a row stays English.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets

from instructions_parrot import IMAGE_MARKER, Instructions, Turn, stable_number
from parrot_data.mixtures import checked_shares
from parrot_data.multilingual.quality import Check, QualitySettings, check
from parrot_data.multilingual.quality_report import LanguageStatistics
from parrot_data.multilingual.review import PARTS, ReviewEntry
from parrot_data.multilingual.segments import mend, reason_to_keep, texts_to_translate, translate_turns
from parrot_data.multilingual.translators import TranslationError, Translator, translate_checked, translator_from
from parrot_data.sources import DataSource, wording


UNTRANSLATED = "untranslated"  # among the problems of `parrot_data.multilingual.quality`


@dataclass
class BuildSettings:
    """What decides the content of the files, as it stands in a recipe.

    Args:
        source: English conversations. Rows that their `language` column gives another language are taken as they are.
        languages: to translate into, as ISO 639 codes.
        translator: `kind` and arguments, see `parrot_data.multilingual.translators.translator_from`.
        second_translator: another one, whose agreement with the first is measured (LRM-LLaVA, table 2).
        round_trip: translate back into English with the second translator, or with the first if there is no other.
        checked: share of the rows that second translation and round trip are made of, chosen by id.
        quality: thresholds, see `parrot_data.multilingual.quality.QualitySettings`.
        subsets: "parallel": every row in every language, as EP-VQA and BVQA need it. "disjoint": every row in one
            language, chosen by id, so that no image or text comes twice (PARROT, section 4.4: "non-duplicate,
            non-parallel").
        shares: of the rows that each language gets in disjoint subsets, English included if it has a share; sum 1. By
            default all languages but English get the same.
        on_untranslated: what becomes of texts that the translator refuses, cuts, returns empty or does not have: "review"
            leaves them in English and their rows' language waiting for a person, "error" stops the build.
        rows_per_file: of the source.
        instructions: YAML files with the wording of further languages.

    Raises:
        ValueError: settings that exclude each other, or a language without wording.
    """

    source: DataSource
    languages: list[str]
    translator: dict[str, Any]
    second_translator: dict[str, Any] | None = None
    round_trip: bool = False
    checked: float = 1.0
    quality: QualitySettings = field(default_factory=QualitySettings)
    subsets: Literal["parallel", "disjoint"] = "parallel"
    shares: dict[str, float] | None = None
    on_untranslated: Literal["review", "error"] = "review"
    rows_per_file: int = 1000
    instructions: list[str] = field(default_factory=list)

    def __post_init__(self):
        known = wording(*self.instructions)
        if not self.languages or "en" in self.languages or len(set(self.languages)) < len(self.languages):
            raise ValueError(f"languages={self.languages}: name each language to translate into once, English not.")
        if missing := [language for language in self.languages if language not in known]:
            raise ValueError(
                f"No instructions in language {', '.join(missing)}. There are: {', '.join(known)}. Write a YAML file "
                "with the keys of instructions.yaml and name it under `instructions`."
            )
        if self.subsets not in ("parallel", "disjoint"):
            raise ValueError(f"subsets={self.subsets!r} must be parallel or disjoint.")
        if self.on_untranslated not in ("review", "error"):
            raise ValueError(f"on_untranslated={self.on_untranslated!r} must be review or error.")
        if self.shares is not None:
            if self.subsets == "parallel":
                raise ValueError("`shares` belong to disjoint subsets: in parallel ones every row has every language.")
            self.shares = checked_shares(self.shares, "`shares` of the build")
            if set(self.shares) - {"en", *self.languages}:
                raise ValueError(
                    f"shares={self.shares}: give shares to languages among en, {', '.join(self.languages)}."
                )
        if not 0 <= self.checked <= 1 or self.rows_per_file < 1:
            raise ValueError(
                f"checked={self.checked} must be 0 to 1, and rows_per_file={self.rows_per_file} at least 1."
            )

    @property
    def features(self) -> datasets.Features:
        """Columns of the files. A language that a row does not have is null."""
        turns = datasets.List({"question": datasets.Value("string"), "answer": datasets.Value("string")})
        texts = dict.fromkeys(sorted({"en", *self.languages}), turns)
        return datasets.Features(
            {
                "id": datasets.Value("string"),
                "images": datasets.List({"bytes": datasets.Value("binary"), "path": datasets.Value("string")}),
                "texts": texts,
                "pending": texts,
                "kept": datasets.Value("string"),
            }
        )


def to_parallel(raw: Any, number: int, source: DataSource) -> dict[str, Any]:
    """
    A row of the source as {"id", "images", "language", "task", "turns"}, English if it names no language.

    Raises:
        ValueError: see `parrot_data.conversations.to_row`; or the row has a system message or is parallel already.
    """
    if isinstance(raw, Mapping) and raw.get("texts") is not None:
        raise ValueError(f"{source.path}, row {number}: the row has parallel texts already; nothing to translate.")
    row = source.row(raw, number)
    texts = []
    for message in row["messages"]:
        if message["role"] == "system":
            raise ValueError(
                f"{source.path}, row {number} (id {row['id']!r}): parallel texts have no system message. Leave it out, "
                "and set it when training."
            )
        parts = (f"{IMAGE_MARKER}\n" if part["type"] == "image" else part["text"] for part in message["content"])
        texts.append("".join(parts).strip())
    turns = [{"question": q, "answer": a} for q, a in zip(texts[::2], texts[1::2], strict=True)]
    images = [{"bytes": None, "path": image} if isinstance(image, str) else image for image in row["images"]]
    # Ids come twice in LLaVA's own sets, and a correction must find its row: the number makes them unique.
    row_id = str(number) if raw.get("id") is None else f"{raw['id']}-{number}"
    return {"id": row_id, "images": images, "language": row["language"] or "en", "task": row["task"], "turns": turns}


class PartBuilder:
    """Translates and checks the rows of one part. Made once in every process, because translators load models.

    Args:
        settings: of the build.
    """

    def __init__(self, settings: BuildSettings):
        self.settings = settings
        self.instructions: Instructions = wording(*settings.instructions)
        self.translator = translator_from(settings.translator)
        self.second = translator_from(settings.second_translator) if settings.second_translator else None

    def fingerprint(self) -> dict[str, Any]:
        """What two runs must have in common to write into one folder: all that decides the files' content."""
        settings = asdict(self.settings)
        path = Path(self.settings.source.path).expanduser()
        settings["source_bytes"] = path.stat().st_size if path.is_file() else None
        settings["translator"] = self.translator.name  # not its concurrency or device
        settings["second_translator"] = self.second.name if self.second else None
        return json.loads(json.dumps(settings, sort_keys=True, default=str))

    def build(self, raw: Sequence[tuple[int, Any]]) -> tuple[list[dict], list[ReviewEntry], dict[str, Any]]:
        """
        The rows of a part.

        Args:
            raw: numbers and rows of the source.

        Returns:
            rows with the columns `BuildSettings.features`, what a person should look at, and the part's counts.

        Raises:
            ValueError: a bad row.
            TranslationError: the translator failed or returned too few or empty lines.
        """
        source = self.settings.source
        rows = [to_parallel(content, number, source) for number, content in raw]
        rows = [row for row in rows if source.keeps(row["language"], row["task"])]
        kept = [reason_to_keep(row["turns"]) if row["language"] == "en" else None for row in rows]
        wanted = [self.languages_of(row, reason) for row, reason in zip(rows, kept, strict=True)]
        is_disjoint = self.settings.subsets == "disjoint"
        made = [
            {
                "id": row["id"],
                "images": row["images"],
                # In disjoint subsets a translated row has no English.
                "texts": {} if languages and is_disjoint else {row["language"]: row["turns"]},
                "pending": {},
                "kept": reason,
            }
            for row, reason, languages in zip(rows, kept, wanted, strict=True)
        ]
        entries: list[ReviewEntry] = []
        statistics = {}
        for language in self.settings.languages:
            chosen = [number for number, languages in enumerate(wanted) if language in languages]
            statistics[language] = LanguageStatistics()
            translations = self.translate([rows[number] for number in chosen], language)
            for number, (turns, checks) in zip(chosen, translations, strict=True):
                statistics[language].add([result for result, _ in checks.values()])
                flagged = {place: found for place, found in checks.items() if found[0].problems}
                made[number]["pending" if flagged else "texts"][language] = turns
                for (turn, part), (result, second) in flagged.items():
                    english = rows[number]["turns"][turn][part]
                    entry = ReviewEntry(rows[number]["id"], language, turn, part, english, turns[turn][part])
                    entry.second, entry.problems = second or "", result.problems
                    entries.append(entry)
        counts = {
            "rows": len(made),
            "languages": dict(Counter(language for row in made for language in row["texts"])),
            "pending": dict(Counter(language for row in made for language in row["pending"])),
            "kept": dict(Counter(reason for reason in kept if reason)),
            "statistics": {language: found.to_json() for language, found in statistics.items()},
        }
        return made, entries, counts

    def languages_of(self, row: Mapping[str, Any], reason: str | None) -> list[str]:
        """The languages that a row gets beside its own.

        Raises:
            ValueError: the row is in a language that the settings do not name.
        """
        settings = self.settings
        if row["language"] != "en":
            if row["language"] not in settings.languages:
                raise ValueError(
                    f"Row {row['id']!r} is in {row['language']!r}, which is neither English nor one of the languages "
                    f"{', '.join(settings.languages)}. Add it, or leave such rows out with `keep_languages: [en]`."
                )
            return []
        if reason is not None:
            return []
        if settings.subsets == "parallel":
            return list(settings.languages)
        shares = settings.shares or {language: 1 / len(settings.languages) for language in settings.languages}
        language = random.Random(f"language {row['id']}").choices(list(shares), list(shares.values()))[0]
        return [] if language == "en" else [language]

    def translate(
        self, rows: Sequence[Mapping[str, Any]], language: str
    ) -> Iterator[tuple[list[dict[str, str]], dict[tuple[int, str], tuple[Check, str | None]]]]:
        """Each row's turns in `language`, and the check of each text with the second translation."""
        texts = texts_to_translate([turn for row in rows for turn in row["turns"]], self.instructions)
        first, trouble = self.ask(self.translator, texts, language)
        checked = [row for row in rows if stable_number(f"check {row['id']}") < self.settings.checked * 2**64]
        again = texts_to_translate([turn for row in checked for turn in row["turns"]], self.instructions)
        second: dict[str, str] = {}
        back: dict[str, str] = {}
        if self.second is not None:
            second, unusable = self.ask(self.second, again, language)
            second = {text: line for text, line in second.items() if unusable.get(text) != UNTRANSLATED}
        if self.settings.round_trip:
            # From the text with placeholders, so that what they stand for is not translated either.
            there = [text for text in again if trouble.get(text) != UNTRANSLATED]
            lines, unusable = self.ask(self.second or self.translator, [first[text] for text in there], "en", language)
            back = {text: mend(text, lines[first[text]])[0] for text in there if first[text] not in unusable}
        ids = {row["id"] for row in checked}
        for row in rows:
            turns = translate_turns(row["turns"], first, language, self.instructions)
            checks = {}
            for number, turn in enumerate(row["turns"]):
                for part in PARTS:
                    is_checked = row["id"] in ids
                    other = self.translated_part(turn, part, second, language) if is_checked else None
                    english = self.translated_part(turn, part, back, "en") if is_checked else None
                    result = check(
                        turn[part],
                        turns[number][part],
                        language,
                        self.settings.quality,
                        second=other,
                        round_trip=english,
                    )
                    if trouble:
                        found = {trouble.get(text) for text in self.texts_of(turn, part)} - {None, *result.problems}
                        result.problems += sorted(str(problem) for problem in found)
                    checks[number, part] = (result, other)
            yield turns, checks

    def ask(
        self, translator: Translator, texts: Sequence[str], target: str, source: str = "en"
    ) -> tuple[dict[str, str], dict[str, str]]:
        """
        Translations of texts, each once.

        Returns:
            {text: translation}, with the text itself where there is none, and {text: problem}: "untranslated", or
            "placeholders" if the translator lost some, which are mended.
        """
        wanted = list(dict.fromkeys(texts))
        problems: dict[str, str] = {}
        try:
            lines = translate_checked(translator, wanted, target, source) if wanted else []
            found = dict(zip(wanted, lines, strict=True))
        except TranslationError as error:
            if not error.texts or self.settings.on_untranslated == "error":
                raise
            found = {text: error.finished.get(text, text) for text in wanted}
            problems = {text: UNTRANSLATED for text in wanted if text not in error.finished}
        for text in wanted:
            found[text], is_whole = mend(text, found[text])
            if not is_whole:
                problems[text] = "placeholders"
        return found, problems

    def texts_of(self, turn: Turn, part: str) -> list[str]:
        return texts_to_translate([{"question": "", "answer": "", part: turn[part]}], self.instructions)

    def translated_part(self, turn: Turn, part: str, translated: Mapping[str, str], language: str) -> str | None:
        """One text, or None if not all of it has a translation."""
        if not translated or not all(text in translated for text in self.texts_of(turn, part)):
            return None
        single = {"question": "", "answer": "", part: turn[part]}
        return translate_turns([single], translated, language, self.instructions)[0][part]
