"""What of an English turn is translated, and what survives as it is. Pure functions of text.

PARROT (section 4.4) and LRM-LLaVA make their multilingual rows by translating English ones. A translator must not see
everything: an option's letter, a box or a piece of code is the same in every language, LLaVA's response formats have
one fixed wording per language, and rows of mathematics or of English text in an image stay English as a whole
(LRM-LLaVA: "trained directly on English data for tasks such as mathematical computations").

    texts = texts_to_translate(turns, instructions)                     # of one row or of many; each text once
    translated = dict(zip(texts, translator.translate(texts, "cs")))
    turns = translate_turns(turns, translated, "cs", instructions)
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from instructions_parrot import IMAGE_MARKER, Instructions, Turn, split_formats


class Piece(NamedTuple):
    """A part of a text. `kind` is "text" (to be translated), "fixed" (kept) or "format" (worded under `key`)."""

    kind: str
    text: str
    key: str | None = None


# A text is cut again for every language, second translation and round trip of its rows. So many cuts are remembered:
# enough for the texts of a few thousand rows, in some tens of megabytes.
REMEMBERED_TEXTS = 1 << 15


class LostPlaceholder(ValueError):
    """A translation without some placeholder of its source, with one twice, or with one that was never there."""


# Dollars enclose a formula if nothing but a formula is likely there: "$5 and $10" are prices.
FORMULA = (
    r"\$\$[^$\n]+\$\$|\\\([^\n]{1,500}?\\\)|\\\[[^\n]{1,500}?\\\]"
    r"|\$(?=\S)(?:[^\s$]+|(?=[^$\n]*[\\^_=+*<>{}])[^$\n]+|(?![^$\n]*[A-Za-z]{3})[^$\n]+)(?<=\S)\$(?!\d)"
)
PLACEHOLDER = re.compile(r"(?:[<＜《〈«‹]|&lt;)\s*(\d+)\s*(?:[>＞》〉»›]|&gt;)")
SPAN = re.compile(
    rf"`[^`\n]+`|{FORMULA}"
    r"|(?:https?://|www\.)[^\s<>\"'`()\[\]]*[^\s<>\"'`()\[\].,;:!?]|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|\[\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)+\s*\]|<(?P<tag>box|quad|point)>[^<\n]*</(?P=tag)>"
    r"|</?[A-Za-z][\w:-]*(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>\n]*\"|'[^'<>\n]*'|[^\s\"'<>]+))*\s*/?>|<\|[^<>|\n]+\|>"
    rf"|{PLACEHOLDER.pattern}"
)
BLOCK = re.compile(
    r"^[ \t]*```.*?(?:^[ \t]*```[ \t]*$|\Z)|^[ \t]*\$\$.+?\$\$|^[ \t]*\\\[.+?\\\]", re.MULTILINE | re.DOTALL
)
LINE_START = re.compile(
    rf"(?:\s|{IMAGE_MARKER}|(?:\([A-Za-z]\)|[A-Ha-h]\)|[A-H][.:]|\(?\d{{1,3}}[.)]|[-*•–—>]|\#{{1,6}})(?=\s))*"
)
OPTION_LETTER = re.compile(r"\(?[A-Za-z][).:]{0,2}")
MATH_SIGN = re.compile(r"[=+^<>√∠△⊥∥≅∽≤≥≠≈±×÷∑∫\\]")
WORD_IN_FORMULA = re.compile(r"(?!(?:sin|cos|tan|cot|log|lim|max|min|mod)\b)\b[A-Za-z][a-z]{2,}|[A-Z]{5,}")

MATH_MARK = re.compile(
    rf"{FORMULA}|[∠△⊥∥≅∽∑∫]|√\s?[\w(]|\d\s*[+^*÷]\s*\d"
    r"|\\(?:[dt]?frac|sqrt|times|cdot|angle|triangle|circ|pi|theta|alpha|beta|sum|int|lim|infty|[lgn]eq?|boxed)\b"
    r"|[\w)\]}°²³′]\s?=\s?(?:[-−+]?\s?\d|[∠√△\\(]|(?:[a-z]{1,2}|[A-Z]{1,4})\b)"
)
WORDS_PER_MATH_MARK = 25  # a geometry problem has a mark in every ten words or so, prose hardly any
CODE_LINE = re.compile(
    r"(?:def \w+\(|class \w+\s*[:({]|import [\w.]+;?$|from [\w.]+ import |#include\s*[<\"]|print(?:ln)?\("
    r"|(?:if|for|while)\b.*[:{]$|return\b.*;$|(?:var|let|const) \w+\s*=|function\s*\w*\("
    r"|SELECT\b.*\bFROM|INSERT INTO|CREATE TABLE"
    r"|</?(?:html|head|body|div|span|ul|li|table|tr|td|script|style|form|input|link|meta)\b"
    r"|[\w.\[\]]+\s*[-+]?=\s*[\w.]*[\[({\"'].*|[]{})]+[;,]?$|.*(?:\w\(.*\)|\w\s*=.*);$|.*\)\s*\{$)"
)
READS_TEXT = re.compile(
    r"\b(?:transcri(?:be|ption)|OCR)\b|\bwho (?:wrote|is the author of) (?:this|the) book\b"
    r"|\b(?:read|extract)(?: out)? (?:the|all|any|every)\b.{0,20}\b(?:text|words?|sign|label|writing)\b"
    r"|\bwhat (?:is |are )?(?:the )?(?:text|words?|letters?|writing|phrase|inscription|slogan)"
    r"(?: \w+){0,2} (?:is|are|on|in|says?|appears?)\b"
    r"|\bwh(?:at|ich)\b[^.?!\n]{0,60}\b(?:written|printed|engraved|inscribed|spelled)\b(?! (?:by|for|with)\b)"
    r"|\bwhat (?:does|do|did|is|are)\b[^.?!\n]{0,60}\b(?:say|read|saying|spell)(?: out)?"
    r"(?: (?:on|at|in) [^.?!\n]{0,30})?\s*(?:[?.\n]|$)"
    r"|\bwhat(?: is|['’]s) the title of (?:this|the) (?:book|magazine|newspaper|document|poster)\b",
    re.IGNORECASE,
)


def reason_to_keep(turns: Sequence[Turn]) -> str | None:
    """
    Why a row stays English, or None if it is translated.

    The row is judged as a whole. When in doubt it is translated, but for "ocr", where one turn is enough: a sign says
    "Stop" in every language, and a translated answer would be wrong. That an answer was read from the image is known
    from the question only, so DocVQA's "What is the date?" goes to the translator.

    Returns:
        "code" if half or more of the text is code, "formula" if it is about computations (a mark of mathematics in
        every 25 words), "ocr" if a question asks to read text or gives OCR tokens (unless a caption is asked for,
        which has words of its own), "numbers" if there is nothing but numbers, boxes, option letters and punctuation.
    """
    texts = [turn[part].replace(IMAGE_MARKER, " ") for turn in turns for part in ("question", "answer")]
    text = "\n".join(texts)
    code = "".join(match[0] for match in BLOCK.finditer(text) if match[0].lstrip().startswith("```"))
    code += "".join(line for line in BLOCK.sub("", text).splitlines() if CODE_LINE.match(line.strip()))
    if 2 * len("".join(code.split())) >= len("".join(text.split())) > 0:
        return "code"
    prose = re.sub(r"https?://\S+|</?[A-Za-z][^<>\n]*>|`[^`\n]+`", " ", text)
    marks, words = len(MATH_MARK.findall(prose)), len(re.findall(r"[A-Za-z]{2,}", prose))
    if marks * WORDS_PER_MATH_MARK >= words and marks > 0:
        return "formula"
    for turn in turns:
        question, tokens, _ = turn["question"].partition("Reference OCR token:")
        if (tokens and "caption" not in question) or READS_TEXT.search(question):
            return "ocr"
    if not any(piece.kind == "text" for part in texts for piece in _split_lines(part)):
        return "numbers"
    return None


def split_text(text: str, instructions: Instructions) -> list[Piece]:
    """
    A question or answer as pieces, which joined are the text again.

    Fixed are line breaks and white space around a line, `<image>` there, list markers and option letters at a line's
    start, fenced code, formulas in a paragraph of their own, OCR tokens, and lines of which nothing is left to
    translate (numbers, a box, a URL, a formula, one option letter).
    """
    return list(_split(text, tuple(instructions["en"]["formats"].items())))


@lru_cache(REMEMBERED_TEXTS)
def _split(text: str, formats: tuple[tuple[str, str], ...]) -> tuple[Piece, ...]:
    instructions = {"en": {"formats": dict(formats)}}  # which are no key for a cache as they are
    pieces: list[Piece] = []
    for piece in _split_lines(text):
        if piece.kind == "fixed":
            pieces.append(piece)
            continue
        last_key = None
        for key, part in split_formats(piece.text, instructions):
            if key:
                pieces.append(Piece("format", part, key))
            elif last_key == "ocr":
                pieces.append(Piece("fixed", part))
            else:
                pieces += _split_lines(part)
            last_key = key
    return tuple(pieces)


@lru_cache(REMEMBERED_TEXTS)
def protect(text: str) -> tuple[str, tuple[str, ...]]:
    """
    Replaces what a translator would damage inside a sentence by <1>, <2>, ...: code, formulas, boxes, URLs, e-mail
    addresses, tags, image markers, and text that looks like a placeholder itself.

    Returns:
        the text with placeholders, and what they stand for: <1> is the first.
    """
    spans: list[str] = []

    def number(match: re.Match) -> str:
        spans.append(match[0])
        return f"<{len(spans)}>"

    return SPAN.sub(number, text), tuple(spans)


def restore(translated: str, spans: Sequence[str]) -> str:
    """
    Puts back what `protect` took out. Translators' spellings of a placeholder (`< 1 >`, `＜1＞`, `《1》`) are read too.

    Raises:
        LostPlaceholder: some placeholder does not come exactly once; names all such.
    """
    found = [int(match[1]) for match in PLACEHOLDER.finditer(translated)]
    wrong = [f"<{n}> ({spans[n - 1]}) {found.count(n)} times" for n in range(1, len(spans) + 1) if found.count(n) != 1]
    wrong += [f"<{n}>, which the source does not have" for n in found if not 1 <= n <= len(spans)]
    if wrong:
        raise LostPlaceholder(
            f"A translation needs each placeholder of its source once, but has {'; '.join(wrong)}: {translated!r}. "
            "Leave the row out, or translate the text again with another translator."
        )
    return PLACEHOLDER.sub(lambda match: spans[int(match[1]) - 1], translated)


def texts_to_translate(turns: Sequence[Turn], instructions: Instructions) -> list[str]:
    """What a translator gets of a row, or of many rows' turns in one list: protected texts, each once, in order."""
    pieces = (
        piece for turn in turns for part in ("question", "answer") for piece in split_text(turn[part], instructions)
    )
    return list(dict.fromkeys(protect(piece.text)[0] for piece in pieces if piece.kind == "text"))


def translate_turns(
    turns: Sequence[Turn], translated: Mapping[str, str], language: str, instructions: Instructions
) -> list[dict[str, str]]:
    """
    The turns in another language. With `{text: text}` and language "en" they come back as they were.

    Args:
        translated: a translation for each of `texts_to_translate`.
        language: whose wording response formats get.

    Raises:
        LostPlaceholder: see `restore`.
        ValueError: a text without translation, or a response format without wording in the language.
    """

    def translate(piece: Piece) -> str:
        if piece.kind == "fixed":
            return piece.text
        if piece.kind == "format":
            return _format_wording(str(piece.key), language, instructions)
        text, spans = protect(piece.text)
        if text not in translated:
            raise ValueError(f"No translation into {language!r} of {text!r}. Translate all of `texts_to_translate`.")
        return restore(translated[text], spans)

    def rebuild(text: str) -> str:
        return "".join(translate(piece) for piece in split_text(text, instructions))

    return [{**turn, "question": rebuild(turn["question"]), "answer": rebuild(turn["answer"])} for turn in turns]


def lost_numbers(source: str, translation: str) -> list[str]:
    """
    Numbers of the source that the translation does not have in digits, as the source writes them, each once.

    Separators and scripts may differ: 1,000 is also 1.000, 1 000 or ١٠٠٠, and 0.5 is 0,5. A number that became a word
    counts as lost, so one of them says little and many say much.
    """
    wanted = _numbers(source)
    found = [groups for _, groups in _numbers(translation)] if wanted else []
    wholes, parts = {"".join(groups) for groups in found}, {group for groups in found for group in groups}
    lost = [text for text, groups in wanted if "".join(groups) not in wholes and not set(groups) <= parts]
    return list(dict.fromkeys(lost))


def _numbers(text: str) -> list[tuple[str, list[str]]]:
    """[(number as written, its groups of ASCII digits)]. A space belongs to it before groups of three only."""
    found = re.findall(r"\d{1,3}(?:[ \u00a0\u202f\u2009]\d{3})+(?!\d)(?:[.,٫]\d+)?|\d+(?:[.,٬٫'’]\d+)*", text)
    ascii_digits = {digit: str(unicodedata.decimal(digit)) for digit in set(re.findall(r"\d", "".join(found)))}
    return [(number, re.findall(r"\d+", number.translate(str.maketrans(ascii_digits)))) for number in found]


def _split_lines(text: str) -> list[Piece]:
    """Fixed pieces and text, without regard to response formats. Neighbouring fixed pieces are one."""
    pieces: list[Piece] = []

    def add(kind: str, part: str) -> None:
        if kind == "fixed" and pieces and pieces[-1].kind == "fixed":
            part = pieces.pop().text + part
        if part:
            pieces.append(Piece(kind, part))

    end = 0
    for block in [*BLOCK.finditer(text), None]:
        for line in text[end : block.start() if block else None].splitlines(keepends=True):
            start = LINE_START.match(line)
            body = line[start.end() if start else 0 :]
            words = body.rstrip()
            while words.endswith(IMAGE_MARKER):
                words = words.removesuffix(IMAGE_MARKER).rstrip()
            add("fixed", line[: len(line) - len(body)])
            add("fixed" if _has_no_words(words) else "text", words)
            add("fixed", body[len(words) :])
        if block:
            add("fixed", block[0])
            end = block.end()
    return pieces


def _has_no_words(text: str) -> bool:
    rest = SPAN.sub(" ", text)
    if OPTION_LETTER.fullmatch(text) or not any(letter.isalpha() for letter in rest):
        return True
    return bool(MATH_SIGN.search(rest)) and not WORD_IN_FORMULA.search(re.sub(r"\\[A-Za-z]+", " ", rest))


def _format_wording(key: str, language: str, instructions: Instructions) -> str:
    formats = instructions.get(language, {}).get("formats") or {}
    if key not in formats:
        raise ValueError(
            f"Language {language!r} has no wording for LLaVA's response format {key!r}. Add it under `formats` of the "
            "language in a YAML file like instructions.yaml, and load that with `load_instructions(FILE)`."
        )
    return formats[key]


def mend(protected: str, translated: str) -> tuple[str, bool]:
    """
    A translation whose placeholders are those of its source, each once, and whether it had them so already.

    One that was lost is put at the end, one that is doubled or foreign is taken out: a person has to look at such a text,
    but until then nothing of the source is missing.
    """
    wanted = {int(match[1]) for match in PLACEHOLDER.finditer(protected)}
    found = [int(match[1]) for match in PLACEHOLDER.finditer(translated)]
    if sorted(found) == sorted(wanted):
        return translated, True
    seen: set[int] = set()

    def once(match: re.Match) -> str:
        number = int(match[1])
        is_first = number in wanted and number not in seen
        seen.add(number)
        return match[0] if is_first else ""

    kept = PLACEHOLDER.sub(once, translated).strip()
    lost = [f"<{number}>" for number in sorted(wanted - seen)]
    return mend(protected, " ".join([kept, *lost]).strip())[0], False  # what is left may read as one: <<9>1>
