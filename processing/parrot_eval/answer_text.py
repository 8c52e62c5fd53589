"""An answer as plain text, and its words with the roles that `answers.yaml` gives them."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

from parrot_eval.answer_words import NOTHING, TOKEN, Vocabulary


THOUGHTS = re.compile(
    r"<(think|thinking|thought|reasoning)\b[^>]*>.*?(?:</\1>|\Z)|\A.*</(?:think|thinking|thought|reasoning)>",
    re.DOTALL | re.IGNORECASE,
)
FINAL = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{[^{}]*\}){0,300})\}|<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
MARKUP = (
    (re.compile(r"~~.*?~~"), " "),  # struck out
    (re.compile(r"^[ \t]*\*\*([^*\n]+)\*\*[ \t]*$", re.MULTILINE), r"\1 ✓"),  # the line that stands out in a list
    (re.compile(r"<\|[^|]*\|>|</?[a-zA-Z][^>\n]*>|```\w*|\\[a-zA-Z]+|\\[^a-zA-Z]|[*`${}#>|]|_{2,}"), " "),
    (re.compile(r"\[[xX]\]"), "✓"),
    (re.compile(r"^[ \t]*[-•][ \t]+", re.MULTILINE), ""),
    (re.compile(r"[×✗✘❌✖☒][ \t]*$", re.MULTILINE), "✗"),
    (re.compile(r"[√✓✔☑✅][ \t]*$", re.MULTILINE), "✓"),
    (re.compile(r"\b[Nn]o\.\s*(?=\d)|№"), "#"),  # a number's, not "no"
)
PLAIN = {
    **dict.fromkeys(map(ord, "。．"), "."), **dict.fromkeys(map(ord, "、،"), ","), ord("؟"): "?", ord("؛"): ";",
    **dict.fromkeys(map(ord, "“”„‟«»「」『』《》〈〉"), '"'), **dict.fromkeys(map(ord, "’‘‛ʼ´"), "'"),
    **dict.fromkeys(map(ord, "‐‑−"), "-"), **dict.fromkeys(map(ord, "【〔"), "("), **dict.fromkeys(map(ord, "】〕"), ")"),
    ord("ـ"): None,
    # Circled letters on black, which NFKC leaves as they are.
    **{start + k: chr(ord("A") + k) for k in range(26) for start in (0x1F150, 0x1F170)},
}  # fmt: skip
# Soft hyphens, marks of direction and width, and Arabic vowel signs, which are hardly ever written.
INVISIBLE = re.compile("[\u00ad\u061c\u064b-\u065f\u0670\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff]")
OTHER_DIGIT = re.compile(r"(?![0-9])\d")
LONGEST = 10_000  # characters
SENTENCE_ENDS = set(".!?;\n")
QUOTES, BRACKETS = set("\"'"), set("()[]")
TURNS = {"but", "therefore", "correction", "as_for"}
VERDICTS = {"yes", "surely", "yes_alone", "no", "no_alone"}
# What may stand right before, and right after, a letter that means an option.
JUDGING = {"answer", "option", "choose", "or", "not", "wrong", "right", "therefore", "but", "correction", "unsure"}
CUES_BEFORE = JUDGING | {"before_letter", "first_thought", "that"}
CUES_AFTER = JUDGING | {"after_letter"}
CUES = (CUES_BEFORE | CUES_AFTER) - TURNS


def final_parts(answer: str) -> Iterator[str]:
    """
    What stands in the last box or answer tag, then the whole answer, both as plain text without thoughts.

    Of a very long answer, the end: what it says last counts.
    """
    answer = answer[-LONGEST:]
    if "<" in answer:
        answer = THOUGHTS.sub(" ", answer)
    if boxes := FINAL.findall(answer):
        yield plain("".join(boxes[-1]))
    yield plain(answer)


def plain(text: str) -> str:
    """A text without markup and invisible characters, with one form of each letter, digit and punctuation mark."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text).translate(PLAIN)
    return OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), INVISIBLE.sub("", text))


class Text:
    """
    A plain text in tokens.

    Args:
        content: of `plain`.
        vocabulary: of the language that the text should be in. If it has more English words, it is read as English.

    Attributes:
        tokens, lower, folded: as written; in lower case; also without diacritics.
        glued: whether nothing stands between a token and the one before.
        marks: (first token, end, roles) of the words and phrases that have roles; `roles`: those of each token.
        sentence, segment, clause: number of each token's. Segments also begin at "but", "so", "wait", clauses also
            after a comma.
        in_segment: segment -> all roles in it; `in_clause`: clause -> its marks.
        first_cue: segment -> end of the first word in it that announces an answer: "answer", "I choose", or "so" at
            the beginning ("so it is B", but not "so close to"), or "option" after a colon.
        quoted: token -> first token and end of the quotation that it is in.
        breaks_off: whether several sentences end without punctuation: what they say may be about anything.
        silent: whether a token is part of a question, which commits to nothing.
    """

    def __init__(self, content: str, vocabulary: Vocabulary):
        matches = list(TOKEN.finditer(content))
        self.tokens = [match.group() for match in matches]
        self.glued = [False, *(one.end() == other.start() for one, other in pairwise(matches)), False]
        self.own = vocabulary
        self.lower = [vocabulary.lower(token) for token in self.tokens]
        self.folded = [vocabulary.fold(token) for token in self.tokens]
        self.vocabulary = self._vocabulary_spoken()
        if self.vocabulary is not vocabulary:
            self.lower = [token.lower() for token in self.tokens]
        self.little = self.vocabulary.little | vocabulary.little
        self.marks: list[tuple[int, int, frozenset[str]]] = []
        self.roles = [NOTHING] * len(self.tokens)
        self._mark()
        self.sentence: list[int] = []
        self.segment: list[int] = []
        self.clause: list[int] = []
        self._divide()
        self.in_segment: dict[int, set[str]] = {}
        self.first_cue: dict[int, int] = {}
        self.in_clause: dict[int, list[tuple[int, int, frozenset[str]]]] = {}
        for mark in self.marks:
            self.in_segment.setdefault(self.segment[mark[0]], set()).update(mark[2])
            after_colon = "option" in mark[2] and self.tokens[mark[0] - 1] == ":"
            if mark[2] & {"answer", "choose"} or ("therefore" in mark[2] and self.is_end(mark[0] - 1)) or after_colon:
                self.first_cue.setdefault(self.segment[mark[0]], mark[1])
            self.in_clause.setdefault(self.clause[mark[0]], []).append(mark)
        quotes = [k for k, token in enumerate(self.tokens) if token == '"']
        spans = [(one + 1, two) for one, two in zip(quotes[::2], quotes[1::2], strict=False)]
        all_but_quotes = len(self.tokens) - 2
        self.quoted = {k: span for span in spans if span[1] - span[0] < all_but_quotes for k in range(*span)}
        self.breaks_off = self.sentence[-1:] > [0] and not self.is_end(len(self.tokens) - 1)
        self.silent = [False] * len(self.tokens)
        self._silence_questions()

    def _vocabulary_spoken(self) -> Vocabulary:
        own, english = self.own, self.own.english
        if own is english:
            return own
        words = [token for token in self.lower if len(token) > 1 or not token.isascii()]  # "A" may be an option
        in_own = sum(word in own.words and word not in english.words for word in words)
        in_english = sum(word in english.words and word not in own.words for word in words)
        # "No." alone is English wherever the language has no such verdict (in Portuguese it is "in the").
        words = [token for token in self.lower if token.isalnum()]
        is_foreign = len(words) == 1 and not own.longest_phrase(words, [own.fold(words[0])], 0)[1] & (
            VERDICTS | {"verbs"}
        )
        is_english = is_foreign and bool(english.own.get((words[0],), NOTHING) & VERDICTS)
        return english if in_english > in_own or is_english else own

    def _mark(self) -> None:
        start = 0
        while start < len(self.tokens):
            end, roles = self.vocabulary.longest_phrase(self.lower, self.folded, start)
            for k in range(start + 1, end):  # "it's not | possible to tell" is "it's | not possible to" tell
                further, inner = self.vocabulary.longest_phrase(self.lower, self.folded, k)
                if further > end and "unsure" in inner:
                    end, roles = self.vocabulary.longest_phrase(self.lower[:k], self.folded[:k], start)
                    break
            if roles:
                self.marks.append((start, end, roles))
                self.roles[start:end] = [roles] * (end - start)
            # "is correct" says yes, and in it "correct" judges an option.
            hidden = {"not"} if roles & VERDICTS else set()
            for k in range(start, end) if end - start > 1 and roles & (VERDICTS | {"before_letter"}) else ():
                _, inner = self.vocabulary.longest_phrase(self.lower[k : k + 1], self.folded[k : k + 1], 0)
                self.marks.append((k, k + 1, (inner & CUES) - hidden))
                self.roles[k] |= (inner & CUES) - hidden
            start = end

    def _divide(self) -> None:
        turns = {start for start, _, roles in self.marks if roles & TURNS}
        sentence = segment = clause = 0
        for k, token in enumerate(self.tokens):
            if k in turns:
                segment, clause = segment + 1, clause + 1
            self.sentence.append(sentence)
            self.segment.append(segment)
            self.clause.append(clause)
            after_letter = k > 0 and len(self.tokens[k - 1]) == 1 and self.tokens[k - 1].isalnum()
            # "B." is an item of a list or an abbreviation, but ends "The answer is B."
            goes_on = k + 1 < len(self.tokens) and self.tokens[k + 1].islower()
            is_item = token == "." and after_letter and (goes_on or not self.roles_at(k - 2) & CUES_BEFORE)
            if token in SENTENCE_ENDS and not is_item:
                sentence, segment, clause = sentence + 1, segment + 1, clause + 1
            elif token == "," or (token == ":" and not (after_letter or "option" in self.roles_at(k - 1))):
                clause += 1

    def _silence_questions(self) -> None:
        asking = {self.clause[start] for start, _, roles in self.marks if "question" in roles}
        start = 0
        for k, token in enumerate(self.tokens):
            if self.sentence[k] != self.sentence[start]:
                start = k
            if self.clause[k] in asking:
                self.silent[k] = True
            if token == "?":
                # Of a statement that ends in a tag ("..., isn't it?"), only the tag.
                last = max((j for j in range(start, k) if self.tokens[j] in "¿,"), default=start)
                tag = tuple(self.lower[last + 1 : k])
                is_tag = self.tokens[last] == "¿" or tag in self.vocabulary.tags or tag in self.own.tags
                self.silent[last if is_tag else start : k + 1] = [True] * (k + 1 - (last if is_tag else start))

    def is_end(self, k: int) -> bool:
        """Whether a place is outside the text or holds punctuation."""
        if not 0 <= k < len(self.tokens):
            return True
        is_apostrophe = self.tokens[k] == "'" and self.glued[k] and self.glued[k + 1]
        return not self.tokens[k].isalnum() and not is_apostrophe

    def roles_at(self, k: int) -> frozenset[str]:
        return self.roles[k] if 0 <= k < len(self.tokens) else NOTHING

    def skip(self, k: int, step: int, among: set[str] | frozenset[str]) -> int:
        """The next place from `k` on whose token is not among some."""
        while 0 <= k < len(self.tokens) and self.lower[k] in among:
            k += step
        return k

    def joins(self, start: int, end: int) -> bool:
        """Whether what stands here joins what is before and after it: a comma or "or", and little words."""
        found = False
        for k in range(start, end):
            is_joint = self.tokens[k] in ",/&+" or "or" in self.roles[k]
            found |= is_joint
            if "not" in self.roles[k] and not is_joint:
                return False
            if not (is_joint or self.tokens[k] in QUOTES | BRACKETS or self.lower[k] in self.little):
                return False
        return found
