"""Where an answer names a question's options: by a letter, by a text, by a place."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from parrot_eval.answer_text import BRACKETS, CUES_AFTER, CUES_BEFORE, QUOTES, SENTENCE_ENDS, VERDICTS, Text, plain
from parrot_eval.answer_words import HAN, Tokens, Vocabulary, contains


# Letters of other alphabets that stand for Latin ones: those that look alike, else those in the same place. Options
# that have such letters as keys are meant themselves.
LETTERS = {"a": "аαا甲", "b": "вбβب乙", "c": "сجc丙", "d": "гد丁", "e": "едه戊"}
LETTER_NAMES = {"الف": "a", "باء": "b", "جيم": "c", "دال": "d", "هاء": "e"}
HAN_CHARACTER = re.compile(f"[{HAN}]")
JOINING = set("-'/&_+°.")
AFTER_ITEM = set(".:)-]")  # between an option's letter and its text


@dataclass(frozen=True)
class Form:
    """One way to write an option's text."""

    key: str
    lower: Tokens
    folded: Tokens


@dataclass(frozen=True)
class Options:
    """
    A question's options, ready to be found in a text.

    Args:
        letters: folded letter, name of a letter or letter of another alphabet -> key.
        texts: key -> its text.
        forms: folded first word, a stem of it or a number -> forms that begin so.
        negative: keys whose texts hold a negation themselves ("none").
        verdicts: yes and no -> key, where these are among the options.
    """

    letters: Mapping[str, str]
    texts: Mapping[str, Form]
    forms: Mapping[str, Sequence[Form]]
    negative: frozenset[str]
    verdicts: Mapping[bool, str]


@dataclass(frozen=True)
class Mention:
    """Where a text names an option, by its letter or by its text; no key if both are there and differ."""

    key: str | None
    start: int
    end: int
    is_letter: bool = False


@lru_cache(4096)
def compile_options(options: tuple[tuple[str, str], ...], vocabulary: Vocabulary) -> Options:
    """Options in the order of the question."""
    texts, negative, verdicts = {}, set(), {}
    for key, content in options:
        text = Text(plain(content), vocabulary)
        kept = [k for k, token in enumerate(text.tokens) if token not in QUOTES | {"\n"}]
        while kept and text.tokens[kept[-1]] in SENTENCE_ENDS:
            kept.pop()
        texts[key] = Form(key, tuple(text.lower[k] for k in kept), tuple(text.folded[k] for k in kept))
        roles = {role for k in kept for role in text.roles[k]}
        if roles & {"not", "no", "no_alone", "unsure"}:
            negative.add(key)
        if kept and all(text.roles[k] & VERDICTS for k in kept):
            verdicts[not roles & {"no", "no_alone"}] = key
    forms: dict[str, list[Form]] = {}
    for form in texts.values():
        start = next((k for k, word in enumerate(form.lower) if is_content(word, vocabulary)), 0)
        short = Form(form.key, form.lower[start:], form.folded[start:])
        is_clear = not any(contains(other.lower, short.lower) for other in texts.values() if other is not form)
        for one in {form, short} if is_clear else {form}:
            if one.folded:
                for begin in vocabulary.begins(one.folded[0]):
                    forms.setdefault(begin, []).append(one)
    letters = find_keys([key for key, _ in options], vocabulary)
    return Options(letters, texts, forms, frozenset(negative), verdicts if len(verdicts) == 2 else {})


def find_keys(keys: Sequence[str], vocabulary: Vocabulary) -> dict[str, str]:
    """What stands for each key: itself in any case, a letter of another alphabet, its Arabic name."""
    letters = {letter: key for key in keys if (letter := vocabulary.fold(plain(key)))}
    found: dict[str, str] = {}
    for latin, others in LETTERS.items():
        names = [name for name, letter in LETTER_NAMES.items() if letter == latin]
        # Of Cyrillic keys, only the first looks like the Latin letter in its place.
        known = [letter for letter in (latin, *others) if latin == "a" or not "а" <= letter <= "я"]
        if key := next((letters[letter] for letter in known if letter in letters), None):
            found |= dict.fromkeys((latin, *others, *names), key)
    return found | letters


def is_content(word: str, vocabulary: Vocabulary) -> bool:
    return word.isalnum() and word not in vocabulary.little


def find_texts(text: Text, options: Options) -> list[Mention]:
    """
    Where options' texts stand, the longest first.

    A word may be inflected as the language does it, which counts less than the word itself; where several options fit
    equally well, none is meant. Numbers may be words.
    """
    mentions, k = [], 0
    while k < len(text.tokens):
        end, keys = k + 1, set()
        is_letter_word = text.tokens[k].islower() and text.lower[k] in text.vocabulary.letters
        if not text.silent[k]:
            fits = [(len(form.folded), grade, form.key) for form, grade in fitting_forms(text, k, options)]
            fits = [fit for fit in fits if fit[0] > 1 or not is_letter_word]
            if fits:
                length, grade, _ = max(fits)
                keys = {key for *fit, key in fits if fit == [length, grade]}
                end = k + length
        if len(keys) == 1 and not is_judgement(text, k, end):
            mentions.append(Mention(keys.pop(), k, end))
        k = end
    return mentions


def fitting_forms(text: Text, k: int, options: Options) -> list[tuple[Form, int]]:
    """The forms that fit at a place, with their grades."""
    word = text.folded[k]
    forms = {form for begin in text.own.begins(word) & options.forms.keys() for form in options.forms[begin]}
    if word in options.letters and word.isdigit():  # a key rather than an amount
        forms = {form for form in forms if form.folded[0] == word}
    return [(form, grade) for form in forms if (grade := grade_form(text, k, form)) is not None]


def grade_form(text: Text, start: int, form: Form) -> int | None:
    """How well a form fits: 2 as written, 1 but for diacritics or as a number in words, 0 inflected; None if not."""
    if start + len(form.folded) > len(text.tokens):
        return None
    grade = 2
    for k, (lower, folded) in enumerate(zip(form.lower, form.folded, strict=True), start):
        word, numbers = text.folded[k], text.own.numbers
        if text.lower[k] == lower:
            continue
        # Not inflected, and without diacritics another word (Spanish té, te; Romanian două, a doua).
        if (text.lower[k] in text.little and word not in numbers) or (folded in numbers and is_ordinal(text, k)):
            return None
        if word == folded or (numbers.get(word, word) == numbers.get(folded, folded) and is_number(text, k)):
            grade = min(grade, 1)
        elif text.own.stems(word) & text.own.stems(folded):
            grade = 0
        else:
            return None
    return grade


def is_ordinal(text: Text, k: int) -> bool:
    return any(role.startswith("ordinal") for role in text.roles[k])


def is_number(text: Text, k: int) -> bool:
    """Whether a number is no part of a longer one ("twenty-two") and, in words, counts something where it has to."""
    counters, numbers = text.own.counters, text.own.numbers
    if counters and text.folded[k] in numbers and not text.is_end(k + 1) and text.tokens[k + 1] not in counters:
        return False
    for step in (-1, 1):
        one, two = k + step, k + 2 * step
        if 0 <= one < len(text.tokens) and text.folded[one] in numbers:
            return False
        if 0 <= two < len(text.tokens) and text.folded[two] in numbers and "or" in text.roles[one]:
            return False
    return True


def is_judgement(text: Text, start: int, end: int) -> bool:
    """Whether a word judges options ("the right answer") rather than being one ("on the right")."""
    beside = text.roles_at(start - 1) | text.roles_at(end)
    return end == start + 1 and bool(text.roles[start] & {"right", "wrong"} and beside & {"answer", "option"})


def find_letters(text: Text, options: Options, texts: Sequence[Mention]) -> list[Mention]:
    """Where letters stand that mean options, rather than words ("a", "y"), parts of names or quantities."""
    taken = {k for mention in texts for k in range(mention.start, mention.end)}
    starts = {mention.start: mention.key for mention in texts}
    letters = [
        Mention(key, k, k + 1, is_letter=True)
        for k, token in enumerate(text.lower)
        if (key := key_of(token, text, options)) is not None and k not in taken and not text.silent[k]
        if "other_sense" not in text.roles[k] and not is_ordinal(text, k) and not is_part(text, k, options)
    ]
    found: list[Mention] = []
    doubtful: Mention | None = None
    for letter in letters:
        if means_option(text, letter.start, letter.key, options, starts):
            # In "könnten A oder B" the second makes clear what the first is.
            found += [doubtful] if doubtful and is_listed(text, doubtful, letter.start) else []
            found.append(letter)
        elif found and is_listed(text, found[-1], letter.start):
            found.append(letter)
        else:
            doubtful = letter
    return found


def is_listed(text: Text, letter: Mention, k: int) -> bool:
    """Whether a letter goes on with a list of letters in the same case."""
    return text.tokens[k].islower() == text.tokens[letter.start].islower() and text.joins(letter.end, k)


def key_of(token: str, text: Text, options: Options) -> str | None:
    """The key that a token stands for; Arabic writes "and" together with a letter."""
    folded = token if token.isascii() else text.own.fold(token)
    token = token if folded.isascii() else folded  # "è" is no option E
    if token in options.letters:
        return options.letters[token]
    rest = next((token[len(word) :] for word in text.own.joined_and if token.startswith(word)), "")
    return options.letters.get(rest)


def means_option(text: Text, k: int, key: str | None, options: Options, starts: Mapping[int, str | None]) -> bool:
    """Whether a letter means an option, from what stands before and after it."""
    token, is_word = text.tokens[k], text.lower[k] in text.vocabulary.letters
    its_text = starts.get(text.skip(k + 1, 1, AFTER_ITEM), "") == key
    if k in text.quoted and text.quoted[k] != (k, k + 1) and not (k == text.quoted[k][0] and its_text):
        return False
    if its_text and (text.is_end(k + 1) or not (is_word or token.islower())):
        return True
    before = text.skip(k - 1, -1, QUOTES | BRACKETS)
    ending = 3 if text.tokens[k + 1 : k + 2] == ["'"] and text.glued[k + 1] and text.glued[k + 2] else 1  # B'yi
    after = text.skip(k + ending, 1, QUOTES | {")", "]"})
    roles_before, roles_after = text.roles_at(before), text.roles_at(after)
    begins, ends = text.is_end(before), text.is_end(after) or text.folded[after] == text.folded[k]
    is_named = bool(roles_before & {"answer", "option", "choose"}) or (
        before >= 0 and text.folded[before] == text.folded[k]
    )
    in_brackets = text.tokens[k + 1 : k + 2] in ([")"], ["]"])
    if token.islower():
        opens = begins and (before < 0 or text.tokens[before] in "\n:=" or in_brackets)
        closes = text.skip(after, 1, SENTENCE_ENDS) >= len(text.tokens) and "before_letter" in roles_before
        return ends and text.tokens[k + 1 : k + 2] not in (["("], ["["], ['"']) and (is_named or opens or closes)
    is_cued = begins or is_named or bool(roles_before & CUES_BEFORE)
    if not is_cued:
        return in_brackets and text.tokens[k - 1] in "(["
    further = after
    while "or" in text.roles_at(further):
        further += 1
    is_listed = after < further < len(text.tokens) and key_of(text.lower[further], text, options) is not None
    if ends or in_brackets or is_listed or (roles_after & {"option", "answer"} and not (is_word and begins)):
        return True
    if is_word and not is_named:  # "A is correct", but "A correct answer"
        judged = text.skip(after, 1, text.little)
        return "after_letter" in roles_after and bool(text.roles_at(judged) & {"right", "wrong", "answer", "option"})
    return is_named or bool(roles_after & CUES_AFTER)


def is_part(text: Text, k: int, options: Options) -> bool:
    """Whether a letter is a part of something longer: "A4", "C-Dur", "N/A", "C'est", "z.B.", "A = 24", "20 °C"."""
    for step in (-1, 1):
        one, two = k + step, k + 2 * step
        if not 0 <= one < len(text.tokens):
            continue
        joint, is_glued = text.tokens[one], text.glued[max(k, one)]
        if joint in "=°%" and not text.roles_at(two) & {"answer", "option"}:
            return True
        if is_glued and joint.isalnum() and not HAN_CHARACTER.match(joint):
            return True
        if not (is_glued and joint in JOINING and 0 <= two < len(text.tokens) and text.glued[max(one, two)]):
            continue
        word, folded = text.lower[two], text.folded[two]
        if joint == "'":
            if not (word in text.own.little if step < 0 else folded in text.own.endings | text.vocabulary.endings):
                return True
        elif joint == ".":
            if len(word) == 1 and word.isalpha() and not HAN_CHARACTER.match(word):
                return True
        elif key_of(word, text, options) is None:
            return True
    return False


def find_ordinals(text: Text, options: Options) -> list[Mention]:
    """Where options are named by their place: "the second option", "option 2", or "the second" and nothing else."""
    keys, mentions = list(options.texts), []
    places = [
        (start, end, int(role.split()[1]))
        for start, end, roles in text.marks
        for role in roles
        if role.startswith("ordinal") and not text.silent[start]
    ]
    is_only = len({place for _, _, place in places}) == 1
    for start, end, place in places:
        before, after = text.skip(start - 1, -1, text.little), text.skip(end, 1, text.little)
        is_meant = bool((text.roles_at(before) | text.roles_at(after)) & {"option", "answer"})
        is_meant |= is_only and "right" in text.roles_at(after) and text.is_end(after + 1)
        if text.is_end(
            after
        ):  # "The answer is the second", "so it is the second"; "the one with the cap is the second"
            cues = {role for at, _, others in text.in_clause[text.clause[start]] if at < start for role in others}
            is_said = text.roles_at(start - 2) >= {"before_letter", "after_letter"}
            is_meant |= bool(cues & {"option", "answer", "right", "therefore"}) or (is_only and text.is_end(before))
            is_meant |= is_said and text.lower[start - 1] in text.little
        if is_meant and place < len(keys):
            mentions.append(Mention(keys[place], start, end))
    if any(word[:1].isdigit() for form in options.texts.values() for word in (form.key, *form.folded)):
        return mentions
    for k, word in enumerate(text.folded):
        number = text.own.numbers.get(word, word)
        is_place = number.isdecimal() and len(number) < 3 and (word == number or number != "1")  # not "one sentence"
        if is_place and "option" in text.roles_at(k - 1) and not text.silent[k]:
            mentions += [Mention(key, k, k + 1) for key in keys[max(int(number) - 1, 0) : int(number)]]
    return mentions


def find_partly(text: Text, options: Options) -> list[Mention]:
    """
    The option that a text without negation shares most words with: two thirds of them, and none that others have.

    For texts that an answer abbreviates or splits ("D. Pedro IV" for "Dom Pedro IV", "16" for "16 cm").
    """
    words = {
        key: {word for word, lower in zip(form.folded, form.lower, strict=True) if is_content(lower, text.own)}
        for key, form in options.texts.items()
    }
    if not any(words.values()) or any("not" in roles for roles in text.roles):
        return []
    heard = {k: {word} | text.own.stems(word) for k, word in enumerate(text.folded) if not text.silent[k]}
    said = set().union(*heard.values())
    # The unit of all amounts tells nothing, but an answer with several numbers may be about other amounts.
    common = set.intersection(*words.values()) if sum(word[:1].isdigit() for word in text.folded) < 2 else set()
    told = {
        key: {word for word in own - common if ({word} | text.own.stems(word)) & said} for key, own in words.items()
    }
    best = max(told, key=lambda key: len(told[key]))
    is_most = len(words[best]) > 1 and 3 * len(told[best]) >= 2 * len(words[best] - common)
    if not told[best] or not is_most or any(not told[key] < told[best] for key in told if key != best):
        return []
    place = next(
        k
        for k, forms in heard.items()
        if forms & {stem for word in told[best] for stem in (word, *text.own.stems(word))}
    )
    return [Mention(best, place, place + 1)]
