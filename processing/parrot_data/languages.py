"""Which language a text is in: by its script where that settles it, by py3langid where it does not."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from instructions_parrot import IMAGE_MARKER


CHARACTERS = 200  # of a text are looked at: more of them hardly change an answer, but cost time
MIN_LETTERS = 15  # for a language that shares its script with others
MIN_CONFIDENCE = 0.4

# Varieties count as the language that data sets name (ISO 639-3 puts them under one macrolanguage).
BASE = {"nn": "no", "nb": "no", "ary": "ar", "arz": "ar", "yue": "zh", "wuu": "zh", "hbo": "he", "grc": "el"}
# Standards of one language that a sentence often does not tell apart.
GROUP = {"hr": "hr/sr/bs", "sr": "hr/sr/bs", "bs": "hr/sr/bs", "sh": "hr/sr/bs", "id": "id/ms", "ms": "id/ms"}

# A sentence of a large language often looks a little more like a small relative (Spanish like Galician or Aragonese).
# Languages that the web rarely writes, and those that were not expected, therefore need more evidence.
COMMON = set(
    "en ru de ja zh es fr it pt pl nl cs id tr vi ar fa ko sv el ro hu uk da fi no th sk bg he ca hr sr lt sl hi et lv "
    "bn ta".split()
)
RARE_WEIGHT = 0.2
EXPECTED_WEIGHT = 3.0

SCRIPTS = {
    "Latin": r"[A-Za-zÀ-ɏḀ-ỿ]", "Cyrillic": r"[Ѐ-ԯ]", "Arabic": r"[؀-ۿݐ-ݿﭐ-﷿ﹰ-ﻼ]", "Han": r"[㐀-䶿一-鿿豈-龎]",
    "kana": r"[぀-ヿ]", "Hangul": r"[가-힣]", "Greek": r"[Ͱ-Ͽἀ-῿]", "Hebrew": r"[֐-ת]", "Thai": r"[ก-๛]",
}  # fmt: skip
WRITTEN_IN = {
    "Cyrillic": {"ru", "uk", "bg", "sr", "mk", "be", "kk", "ky", "mn", "tg", "tt", "ba"},
    "Arabic": {"ar", "fa", "ur", "ps", "ug", "sdh", "uzs"},
    "Han": {"zh"},
    "kana": {"ja"},
    "Hangul": {"ko"},
    "Greek": {"el"},
    "Hebrew": {"he"},
    "Thai": {"th"},
}
# Serbian and Kazakh are written in Latin letters too.
NOT_LATIN = set().union(*WRITTEN_IN.values()) - {"sr", "kk"}
LETTERS = {script: re.compile(pattern) for script, pattern in SCRIPTS.items()}
NOT_PROSE = re.compile(rf"```.*?(?:```|\Z)|https?://\S+|{IMAGE_MARKER}", re.DOTALL)


@lru_cache
def base_code(language: str) -> str:
    """The ISO 639 code that a variety counts as: "zh-TW" and "yue" are "zh", "pt_BR" is "pt", "nb" is "no"."""
    code = re.split("[-_]", language.strip().lower())[0]
    return BASE.get(code, code)


def same_language(one: str, other: str) -> bool:
    """Whether two codes may stand for the same text. Croatian, Serbian and Bosnian do, Indonesian and Malay too."""
    return _group(base_code(one)) == _group(base_code(other))


def _group(code: str) -> str:
    return GROUP.get(code, code)


@cache
def known_languages() -> frozenset[str]:
    """The ISO 639 codes that `language_of` can return.

    Raises:
        ImportError: py3langid is not installed.
    """
    return frozenset(base_code(code) for code in _identifier().labels) - {"zxx"}


def language_of(
    text: str, candidates: Sequence[str] | None = None, *, expected: str | None = None, min_letters: int = MIN_LETTERS
) -> str | None:
    """
    The language of a text.

    Code blocks, addresses and image markers are not looked at. The script decides where only one candidate is written
    in it, else py3langid chooses among the candidates that are; it sees the first `CHARACTERS` characters.

    Args:
        candidates: ISO 639 codes to choose from; by default all that py3langid knows. A text in a script that none of
            them is written in is identified among all, because it is in none of them.
        expected: what the text should be in. Other languages need clearly more evidence, and where the text can be in
            one of its close relatives just as well (see `same_language`), it is in the expected one.
        min_letters: fewer cannot tell languages of one script apart. A script of one language needs two.

    Returns:
        One of the candidates as it was written there, else a code without region; None if the text is too short or
        too much like several languages to tell, if it is like no candidate, or holds no words.

    Raises:
        ValueError: py3langid does not know a candidate.
        ImportError: py3langid is not installed.
    """
    names = {base_code(code): code for code in candidates or ()}
    unknown = sorted(code for base, code in names.items() if base not in known_languages())
    if unknown:
        raise ValueError(
            f"py3langid cannot recognise the language(s) {', '.join(unknown)}. It knows the ISO 639 codes "
            f"{', '.join(sorted(known_languages()))}."
        )
    text = NOT_PROSE.sub(" ", text[: 10 * CHARACTERS])[:CHARACTERS]
    script, letters = _script(text)
    possible = known_languages()
    if script == "Latin":
        possible = possible - NOT_LATIN
    elif script is not None:
        possible = possible & WRITTEN_IN[script]
    chosen = (possible & names.keys()) or possible
    wanted = base_code(expected) if expected else None
    if letters >= 2 and len(chosen) == 1:
        found: str | None = next(iter(chosen))
    elif letters < min_letters:
        return None
    else:
        found = _most_likely(text, chosen, wanted)
    if found and wanted in chosen and _group(found) == _group(str(wanted)):
        found = wanted
    return names.get(found, found) if found else None


def _script(text: str) -> tuple[str | None, int]:
    """The script of most letters and their number; no script (None) if most belong to one that is not in `SCRIPTS`."""
    if text.isascii():
        return "Latin", len(LETTERS["Latin"].findall(text))
    counts = {script: len(pattern.findall(text)) for script, pattern in LETTERS.items()}
    other = sum(map(str.isalpha, text)) - sum(counts.values())
    if counts["kana"] > counts["Han"] / 10:  # Japanese mixes both, Chinese has no kana
        counts["kana"] += counts.pop("Han")
    # One of these letters says what three of an alphabet do, so that a few Latin names do not outweigh a sentence.
    weights = {script: count * (3 if script in ("Han", "kana") else 1) for script, count in counts.items()}
    script = max(weights, key=lambda name: weights[name])
    return (script, counts[script]) if weights[script] >= other else (None, other)


def _most_likely(text: str, possible: frozenset[str], expected: str | None) -> str | None:
    weighted = {}
    groups: dict[str, float] = defaultdict(float)
    for language, probability in _probabilities(text):
        if language in possible:
            is_expected = expected is not None and _group(language) == _group(expected)
            weight = EXPECTED_WEIGHT if is_expected else 1.0 if language in COMMON else RARE_WEIGHT
            weighted[language] = weight * probability
            groups[_group(language)] += weighted[language]
    if not groups or max(groups.values()) < MIN_CONFIDENCE * sum(groups.values()):
        return None
    # The group first: Croatian shares its probability with Serbian and Bosnian, and Slovene would come out on top.
    return max(weighted, key=lambda language: (groups[_group(language)], weighted[language]))


@lru_cache(maxsize=10_000)  # instruction data asks the same questions over and over
def _probabilities(text: str) -> tuple[tuple[str, float], ...]:
    """The languages that are not out of the question, the likeliest first."""
    likely: dict[str, float] = {}
    for code, probability in _identifier().rank(text):
        if probability < 1e-3:
            break
        likely.setdefault(base_code(code), probability)  # that of its likeliest variety
    likely.pop("zxx", None)  # "no linguistic content"
    return tuple(likely.items())


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError(
            'Recognising languages needs py3langid: pip install "modeling-parrot[translate]".'
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
