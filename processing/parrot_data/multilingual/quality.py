"""How good a translation is, as far as a machine can tell: the checks of one text.

LRM-LLaVA compares two translators by BLEU (section "Analysis on Benchmark Translation Results", table 2); in PARROT
people calibrate what GPT-4 translated (section 4.4). Here every text is checked, so that people need to read only
those that look wrong (`parrot_data.multilingual.review`), and the statistics say how many these are (`parrot_data.multilingual.quality_report`).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from instructions_parrot import IMAGE_MARKER
from parrot_data.languages import MIN_LETTERS, base_code, known_languages, language_of, same_language
from parrot_data.multilingual.segments import lost_numbers


PROBLEMS = ("empty", "untranslated", "language", "agreement", "round_trip", "length", "numbers", "image marker")
# Chinese, Japanese and Korean need fewer characters, and of these fewer are the same in two good translations.
LENGTH_FACTOR = {"zh": 3.0, "ja": 1.8, "ko": 1.8}
AGREEMENT_FACTOR = {"zh": 0.35, "ja": 0.5, "ko": 0.4}
# Languages without spaces between words, at which sacrebleu's usual tokenizer ("13a") cuts.
TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char", "lo": "char", "km": "char", "my": "char"}
LARGEST_NUMBER_AS_WORD = 12


@dataclass
class QualitySettings:
    """What makes a translation suspicious. What is None (null in YAML) is not checked.

    Args:
        min_agreement: least sentence chrF (0 to 100) of the translation with the second translator's. Two unrelated
            sentences of one language share some 10 to 20.
        agreement_factor: {language: what `min_agreement` is multiplied by}, added to `AGREEMENT_FACTOR`.
        min_round_trip: least sentence chrF of the translation, put into English again, with the source.
        length_ratio: least and largest number of characters of the translation per character of the source.
        length_factor: {language: how many characters one of it stands for}, added to `LENGTH_FACTOR`.
        min_length_for_ratio: in characters; the length of a shorter source says nothing about its translation's.
        check_language: the translation has to be in its language, see `parrot_data.languages.language_of`.
        min_letters_for_language: shorter translations are not checked for their language.
        check_numbers: the numbers of the source have to be in the translation. Whole numbers up to 12 may have become
            words.
        untranslated_words: a source of so many words must not come back as it is. Names are shorter.

    Raises:
        ValueError: a value of the wrong type or out of range; names the setting.
    """

    min_agreement: float | None = 30.0
    agreement_factor: dict[str, float] = field(default_factory=dict)
    min_round_trip: float | None = 35.0
    length_ratio: tuple[float, float] | None = (0.5, 2.0)
    length_factor: dict[str, float] = field(default_factory=dict)
    min_length_for_ratio: int = 20
    check_language: bool = True
    min_letters_for_language: int = MIN_LETTERS
    check_numbers: bool = True
    untranslated_words: int | None = 3

    def __post_init__(self):
        for name in ("min_agreement", "min_round_trip"):
            value = getattr(self, name)
            self._require(name, value is None or _is_number(value) and value <= 100, "a chrF score, 0 to 100, or null")
        for name in ("min_length_for_ratio", "min_letters_for_language"):
            self._require(name, _is_number(getattr(self, name)), "a number of 0 or more")
        words = self.untranslated_words
        self._require("untranslated_words", words is None or _is_number(words), "a number of 0 or more, or null")
        for name in ("check_language", "check_numbers"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        for name, built_in in (("agreement_factor", AGREEMENT_FACTOR), ("length_factor", LENGTH_FACTOR)):
            own = getattr(self, name)
            self._require(name, isinstance(own, Mapping) and all(map(_is_number, own.values())), "{language: number}")
            setattr(self, name, {**built_in, **own})
        if self.length_ratio is not None:
            pair = self.length_ratio
            right = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_number, pair))
            self._require("length_ratio", right and pair[0] < pair[1], "two numbers, the smaller first, or null")

    def _require(self, name: str, right: bool, wanted: str) -> None:
        if not right:
            raise ValueError(f"Quality setting {name}: expected {wanted}, got {getattr(self, name)!r}.")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> "QualitySettings":
        """
        Settings as they stand in a YAML file; what is not there has its default.

        Raises:
            ValueError: not a mapping, an unknown setting, or a bad value.
        """
        if not isinstance(mapping or {}, Mapping):
            raise ValueError(f"Quality settings: expected names with values, got {mapping!r}.")
        known = [item.name for item in fields(cls)]
        for name in mapping or {}:
            if name not in known:
                raise ValueError(f"Unknown quality setting {name!r}. Settings: {', '.join(known)}.")
        return cls(**mapping or {})


@dataclass
class Check:
    """What was found about one text. Scores are 0 to 100; None where it was not measured.

    Attributes:
        bleu, chrf: of the translation, with the second translator's as reference.
        round_trip_chrf: of the round trip, with the source as reference.
        length_ratio: characters of the translation per character of the source, times `length_factor`. Not measured
            where the source is short.
        language_found: see `language_of`.
        problems: names out of `PROBLEMS`.
        bleu_counts: [10] what corpus BLEU is computed from: number of words of the translation and of the second one,
            and for n = 1 to 4 the n-grams that both have, then the translation's n-grams.
    """

    bleu: float | None = None
    chrf: float | None = None
    round_trip_chrf: float | None = None
    length_ratio: float | None = None
    language_found: str | None = None
    problems: list[str] = field(default_factory=list)
    bleu_counts: list[int] | None = None


def check(
    source: str,
    translation: str,
    language: str,
    settings: QualitySettings,
    *,
    second: str | None = None,
    round_trip: str | None = None,
) -> Check:
    """
    Checks one text: a question or an answer.

    Args:
        source: the English text. Image markers in it do not count as text.
        translation: in `language`, an ISO 639 code.
        second: another translator's translation of the same text.
        round_trip: the translation in English again.

    Raises:
        ValueError: `check_language` is set and py3langid does not know the language.
        ImportError: sacrebleu or py3langid is missing.
    """
    result = Check()
    if source.count(IMAGE_MARKER) != translation.count(IMAGE_MARKER):
        result.problems.append("image marker")
    source, translation = _plain(source), _plain(translation)
    if source and not translation:
        result.problems.append("empty")
    if not source or not translation:
        return result
    code = base_code(language)

    if settings.untranslated_words is not None and source.casefold() == translation.casefold():
        if len(re.findall(r"[^\W\d_]{2,}", source)) >= settings.untranslated_words:
            result.problems.append("untranslated")
    if settings.check_language:
        if code not in known_languages():
            raise ValueError(
                f"py3langid cannot recognise language {language!r}, so it cannot be checked. Set `check_language: "
                f"false`, or use one of the codes that it knows: {', '.join(sorted(known_languages()))}."
            )
        result.language_found = language_of(translation, expected=code, min_letters=settings.min_letters_for_language)
        if result.language_found and not same_language(result.language_found, code):
            result.problems.append("language")
    if second is not None:
        bleu, chrf = _metrics(TOKENIZERS.get(code, "13a"))
        score = bleu.sentence_score(translation, [_plain(second)])
        result.bleu, result.chrf = score.score, chrf.sentence_score(translation, [_plain(second)]).score
        result.bleu_counts = [score.sys_len, score.ref_len, *score.counts, *score.totals]
        if settings.min_agreement is not None:
            if result.chrf < settings.min_agreement * settings.agreement_factor.get(code, 1.0):
                result.problems.append("agreement")
    if round_trip is not None:
        result.round_trip_chrf = _metrics("13a")[1].sentence_score(_plain(round_trip), [source]).score
        if settings.min_round_trip is not None and result.round_trip_chrf < settings.min_round_trip:
            result.problems.append("round_trip")
    if len(source) >= settings.min_length_for_ratio:
        result.length_ratio = len(translation) / len(source) * settings.length_factor.get(code, 1.0)
        low, high = settings.length_ratio or (0, math.inf)
        if not low <= result.length_ratio <= high:
            result.problems.append("length")
    if settings.check_numbers and any(map(_is_written_in_digits, lost_numbers(source, translation))):
        result.problems.append("numbers")
    return result


def _plain(text: str) -> str:
    return text.replace(IMAGE_MARKER, " ").strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _is_written_in_digits(number: str) -> bool:
    """Whether a translation, too, writes this number in digits."""
    return not (number.isdecimal() and int(number) <= LARGEST_NUMBER_AS_WORD)


@cache
def _metrics(tokenizer: str) -> tuple[Any, Any]:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise ImportError('Comparing texts needs sacrebleu: pip install "modeling-parrot[translate]".') from error
    # Without `effective_order`, a sentence of fewer than four words would score 0 whatever it says.
    return BLEU(tokenize=tokenizer, effective_order=True), CHRF()
