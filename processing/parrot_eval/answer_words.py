"""How languages say what an answer commits to: the words of `answers.yaml`, ready to be looked up in a text."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

from instructions_parrot import read_languages


ROLES = (
    "answer option choose before_letter after_letter or right wrong therefore but as_for correction first_thought unsure "
    "that other_sense yes surely yes_alone no no_alone verbs not question"
).split()
FORMS = (
    "little endings prefixes changes vowels fleeting spellings numbers counters ordinals last not_endings not_prefix tags"
).split()
FLAGS = "two_endings short_stems dotless_i not_follows".split()
REQUIRED = "little answer option or right wrong therefore but unsure yes no_alone not".split()
INFLECTED = {"answer", "option", "right", "wrong"}  # and ordinals
SHORTEST_STEM = 3
LONGEST_ENDING = 8
HAN = "㐀-鿿豈-龎぀-ヿ"  # and kana: written without spaces, each character is a token
TOKEN = re.compile(rf"\d+(?:[.,:/]\d+)*|[{HAN}]|(?:(?![{HAN}])[^\W\d_][̀-ͯ]*)+|\n|\S")
FOLDED = str.maketrans({"ı": "i", "ł": "l", "đ": "d", "ß": "ss", "ø": "o", "œ": "oe", "æ": "ae", "ى": "ي", "ة": "ه"})
NOTHING: frozenset[str] = frozenset()

Tokens = tuple[str, ...]


def load_answer_words(*paths: str | Path) -> "dict[str, Vocabulary]":
    """
    How 13 languages, and those of further files, say what an answer commits to.

    Args:
        paths: YAML files of the same form as `answers.yaml`; a language in a later file replaces that of an earlier
            one.

    Raises:
        ValueError: a language lacks a key, has one that does not exist, or its value is no text; names file, language
            and key.
    """
    languages = read_languages(Path(__file__).parent / "answers.yaml", paths, check_words)
    english = Vocabulary(languages["en"])
    return {code: english if code == "en" else Vocabulary(words, english) for code, words in languages.items()}


def check_words(language: Any, words: Any, where: str) -> None:
    """Refuses words of a wrong form, naming file, language and key."""
    if not isinstance(language, str) or not isinstance(words, Mapping):
        raise ValueError(
            f"{where}: expected a language's code with its words, got {language!r}. Quote a code like 'no'."
        )
    for key, value in words.items():
        if key not in (*FORMS, *ROLES, *FLAGS):
            raise ValueError(
                f"{where}: language {language!r} has {key!r}. Keys: {', '.join((*FORMS, *ROLES, *FLAGS))}."
            )
        kind, what = (bool, "true or false") if key in FLAGS else (str, "a text (quote a single yes, no or on)")
        if not isinstance(value, kind):
            raise ValueError(f"{where}: language {language!r} needs {what} under `{key}`.")
    if missing := [key for key in REQUIRED if not words.get(key, "").strip()]:
        raise ValueError(f"{where}: language {language!r} needs words under {', '.join(missing)}.")


class Vocabulary:
    """
    One language's words and, but for those that it uses otherwise, the English ones.

    Args:
        words: role or form -> words, see `answers.yaml`.
        english: none for English itself.
    """

    def __init__(self, words: Mapping[str, Any], english: "Vocabulary | None" = None):
        self.english = english or self
        self.dotless_i, self.not_follows = words.get("dotless_i", False), words.get("not_follows", False)
        self.shortest_stem = SHORTEST_STEM - words.get("short_stems", False)
        spellings = [pair.split("=") for pair in words.get("spellings", "").split()]
        self.spellings = [(old, new) for old, new in spellings if len(old) > 1]
        self.characters = str.maketrans({old: new for old, new in spellings if len(old) == 1})
        little = split_phrases(words.get("little", ""))
        self.little = {word.rstrip("'") for word in little}
        self.letters = {word for word in little if len(word) == 1}
        self.fold = lru_cache(100_000)(self._fold)
        self.endings = {self.fold(ending) for ending in split_phrases(words.get("endings", ""))} | {""}
        if words.get("two_endings"):
            self.endings |= {one + two for one in self.endings for two in self.endings}
        self.prefixes = tuple(self.fold(prefix) for prefix in split_phrases(words.get("prefixes", "")))
        self.changes = dict(pair.split("=") for pair in self.fold(words.get("changes", "")).split())
        self.vowels = dict(pair.split("=") for pair in words.get("vowels", "").split())
        self.fleeting = set(words.get("fleeting", "").split())
        self.counters = set(words.get("counters", "").split())
        self.not_endings = tuple(self.fold(ending) for ending in split_phrases(words.get("not_endings", "")))
        self.tags = {self.tokens(tag) for tag in split_phrases(words.get("tags", ""))}
        self.numbers: dict[str, str] = dict(english.numbers) if english else {}
        for number, alternatives in enumerate(words.get("numbers", "").split(",")):
            self.numbers |= {self.fold(word): str(number) for word in split_phrases(alternatives, "/")}
        self.stems = lru_cache(100_000)(self._stems)
        self.begins = lru_cache(100_000)(self._begins)
        self.own = self._own_phrases(words)
        self.joined_and = tuple(word for word in self.prefixes if "or" in self.own.get((word,), NOTHING))
        self.words = self.little | {tokens[0] for tokens in self.own if len(tokens) == 1}
        self.phrases: dict[Tokens, dict[Tokens, frozenset[str]]] = {}  # without diacritics -> as written -> roles
        self.lengths: dict[str, list[int]] = {}  # of the phrases that begin with a word, longest first
        self.inflected: dict[str, frozenset[str]] = {}  # stem -> roles
        for tokens, roles in {**self._english_phrases(english), **self.own}.items():
            self._add(tokens, roles)

    def _own_phrases(self, words: Mapping[str, Any]) -> dict[Tokens, frozenset[str]]:
        lists = {role: split_phrases(words.get(role, "")) for role in ROLES}
        if prefix := words.get("not_prefix"):
            negated = [prefix + verb.split()[0] for verb in lists["verbs"]]
            lists |= {"not": lists["not"] + negated, "no_alone": lists["no_alone"] + negated}
        for place, alternatives in enumerate(words.get("ordinals", "").split(",")):
            lists[f"ordinal {place}"] = split_phrases(alternatives, "/")
        lists["ordinal -1"] = split_phrases(words.get("last", ""))
        result: dict[Tokens, frozenset[str]] = {}
        for role, phrases in lists.items():
            for phrase in phrases:
                tokens = self.tokens(phrase)
                result[tokens] = result.get(tokens, NOTHING) | {role}
        # "is not there" negates a statement as well as "not" does.
        negations = [tokens for tokens, roles in result.items() if "not" in roles]
        for tokens, roles in result.items():
            if roles & {"no", "no_alone", "before_letter", "after_letter"} and any(
                contains(tokens, negation) for negation in negations
            ):
                result[tokens] = roles | {"not"}
        return result

    def _english_phrases(self, english: "Vocabulary | None") -> dict[Tokens, frozenset[str]]:
        phrases = english.own.items() if english else ()
        kept = (len(tokens) > 1 or (len(tokens[0]) > 1 and tokens[0] not in self.little) for tokens, _ in phrases)
        return dict(compress(phrases, kept))

    def _add(self, tokens: Tokens, roles: frozenset[str]) -> None:
        folded = tuple(map(self.fold, tokens))
        self.phrases.setdefault(folded, {})[tokens] = roles
        self.lengths[folded[0]] = sorted({*self.lengths.get(folded[0], ()), len(folded)}, reverse=True)
        kept = frozenset(role for role in roles if role in INFLECTED or role.startswith("ordinal"))
        if kept and len(tokens) == 1:
            for stem in self.stems(folded[0]):
                if len(stem) > SHORTEST_STEM:
                    self.inflected[stem] = self.inflected.get(stem, NOTHING) | kept

    def tokens(self, text: str) -> Tokens:
        """A text's tokens in lower case."""
        return tuple(map(self.lower, TOKEN.findall(unicodedata.normalize("NFKC", text))))

    def lower(self, word: str) -> str:
        """Lower case, with Turkish ı and i where the language has them."""
        return (word.replace("I", "ı").replace("İ", "i") if self.dotless_i else word).lower()

    def _fold(self, word: str) -> str:
        """A word without case, diacritics and differences of spelling."""
        word = self.lower(word)
        if not word.isascii():
            word = "".join(char for char in unicodedata.normalize("NFD", word) if not unicodedata.combining(char))
            word = word.translate(FOLDED).translate(self.characters)
        for old, new in self.spellings:
            word = word.replace(old, new)
        return word.replace(":", ".").replace(",", ".") if word[:1].isdigit() else word  # 8:30 and 8.30

    def _stems(self, word: str) -> frozenset[str]:
        """
        What may be left of a folded word without inflection.

        Three letters or more, or two that have lost the vowel between them (pes, psa).
        """
        stems = set()
        for start in (0, *(len(prefix) for prefix in self.prefixes if word.startswith(prefix))):
            for end in range(max(start + 2, len(word) - LONGEST_ENDING), len(word) + 1):
                stem = word[start:end]
                if word[end:] not in self.endings:
                    continue
                if len(stem) < self.shortest_stem:
                    if self.fleeting and not set(stem) & set("aeiouyаеиоуыэюя"):
                        stems.add(stem)
                    continue
                stems.add(stem)
                stems |= {stem.removesuffix(old) + new for old, new in self.changes.items() if stem.endswith(old)}
                if stem == word and stem[-2] in self.vowels:
                    stems.add(stem[:-2] + self.vowels[stem[-2]] + stem[-1])
                if stem[-2] in self.fleeting:
                    stems.add(stem[:-2] + stem[-1])
        return frozenset(stems)

    def _begins(self, word: str) -> frozenset[str]:
        """What an option that begins with a folded word is looked up by: the word, its number, its stems."""
        return self.stems(word) | {word, self.numbers.get(word, word)}

    def longest_phrase(self, lower: Sequence[str], folded: Sequence[str], start: int) -> tuple[int, frozenset[str]]:
        """Where the longest phrase that starts at a token ends, and its roles; no roles if there is none."""
        for length in self.lengths.get(folded[start], ()):
            words = tuple(folded[start : start + length])
            if len(words) == length and (found := self.phrases.get(words)):
                written = tuple(lower[start : start + length])
                roles = found.get(written)
                if roles is None:
                    known = (roles for tokens, roles in found.items() if self.is_spelling(written, tokens))
                    roles = next(known, None)
                if roles is not None:
                    return start + length, roles
        word = folded[start]
        if self.not_endings and word.endswith(self.not_endings):
            return start + 1, frozenset({"not"})
        stems = self.stems(word) if len(word) > SHORTEST_STEM and word not in self.numbers else ()
        return start + 1, next((self.inflected[stem] for stem in stems if stem in self.inflected), NOTHING)

    def is_spelling(self, written: Sequence[str], tokens: Tokens) -> bool:
        """Whether words may be others without their diacritics; little words (se, sé) and those with more (dă, da) not."""
        return all(
            word == token or (word not in self.little and (word.isascii() or word >= "\u0250" or not token.isascii()))
            for word, token in zip(written, tokens, strict=True)
        )


def contains(whole: Tokens, part: Tokens) -> bool:
    """Whether some tokens stand together in others."""
    return any(whole[k : k + len(part)] == part for k in range(len(whole) - len(part) + 1))


def split_phrases(text: str, separator: str = ",") -> list[str]:
    """The phrases of a list, without empty ones."""
    return [phrase.strip() for phrase in text.split(separator) if phrase.strip()]
