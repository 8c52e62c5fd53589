"""What an answer commits to: one of a question's options, yes or no, or nothing.

An answer is read in stages. It is reduced to plain characters and to what it says in the end, and cut into sentences
and clauses whose words have roles (`answer_text`). It is searched for options (`answer_options`) or verdicts
(`read_verdict`). What is rejected or taken back is left out, and what is left has to agree (`decide`). In doubt there
is no result. No line here knows a language; their words are in `answers.yaml`, where native speakers can correct them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from parrot_data.languages import base_code
from parrot_eval.answer_options import (
    Mention,
    Options,
    compile_options,
    find_letters,
    find_ordinals,
    find_partly,
    find_texts,
)
from parrot_eval.answer_text import QUOTES, SENTENCE_ENDS, VERDICTS, Text, final_parts
from parrot_eval.answer_words import Vocabulary, load_answer_words


__all__ = ["load_answer_words", "parse_choice", "parse_yes_no"]

NEAR, FAR = 6, 9  # how many tokens a negation, and a judgement, may be away from what it is about
BETWEEN_PAIR = set(".:)(]-–—=/") | QUOTES  # between a letter and its text, in either order


def parse_choice(
    answer: str, options: Mapping[str, str], language: str, *, words: Mapping[str, Vocabulary] | None = None
) -> str | None:
    """
    The option that an answer commits to.

    Args:
        answer: what a model said; in `language` or in English.
        options: {letter: text}, in the order of the question.
        language: an ISO 639 code.
        words: of `load_answer_words(FILE)`, for further languages.

    Returns:
        A key of `options`; None if the answer commits to none, to several, or to what is none of them.

    Raises:
        ValueError: there are no words in that language.
    """
    vocabulary = find_vocabulary(language, words)
    known = compile_options(tuple(options.items()), vocabulary)
    return next((key for part in final_parts(answer) if (key := choose(Text(part, vocabulary), known))), None)


def parse_yes_no(answer: str, language: str, *, words: Mapping[str, Vocabulary] | None = None) -> bool | None:
    """
    Whether an answer says yes (True) or no (False); None if neither, or both. Arguments and errors: `parse_choice`.

    A statement without a word for yes or no says no if it is negative. If it is affirmative, it may be about anything.
    """
    vocabulary = find_vocabulary(language, words)
    verdicts = (read_verdict(Text(part, vocabulary)) for part in final_parts(answer))
    return next((verdict for verdict in verdicts if verdict is not None), None)


@cache
def standard_words() -> Mapping[str, Vocabulary]:
    """The words of `answers.yaml`, read once."""
    return load_answer_words()


def find_vocabulary(language: str, words: Mapping[str, Vocabulary] | None) -> Vocabulary:
    words = standard_words() if words is None else words
    if (code := base_code(language)) not in words:
        raise ValueError(
            f"No words to read answers in language {language!r} with. There are: {', '.join(words)}. Add the language "
            "to a YAML file with the keys of answers.yaml and pass `words=load_answer_words(FILE)`."
        )
    return words[code]


def choose(text: Text, options: Options) -> str | None:
    """The key of the option that a text commits to, if any."""
    words = tuple(
        word for word, token in zip(text.folded, text.tokens, strict=True) if token not in QUOTES | SENTENCE_ENDS
    )
    whole = [key for key, form in options.texts.items() if form.folded == words]
    if len(whole) == 1 and words and "".join(words) not in options.letters:
        return whole[0]
    verdict_keys = options.verdicts.values()
    texts = [mention for mention in find_texts(text, options) if mention.key not in verdict_keys]
    mentions = texts + find_letters(text, options, texts)
    if verdict_keys:
        verdict = read_verdict(text)
        said = None if verdict is None else options.verdicts[verdict]
        key = decide(text, mentions, options) if mentions else said
        return key if said in (None, key) else None
    return decide(text, mentions or find_ordinals(text, options) or find_partly(text, options), options)


def decide(text: Text, mentions: Sequence[Mention], options: Options) -> str | None:
    """
    The key that is left when what is rejected and what is taken back is left out; None if several are, or none.

    After "wait" only what follows counts, if anything does. What is said to be the answer, or stands alone, outweighs
    what is only mentioned, and the last of it counts.
    """
    mentions = sorted(mentions, key=lambda mention: mention.start)
    taken = {k for mention in mentions for k in range(mention.start, mention.end)}
    groups: list[list[Mention]] = []
    rejected: set[tuple[int, str | None]] = set()
    for group in group_mentions(text, mentions):
        kept = not_rejected(text, group, taken, options)
        rejected |= {(text.sentence[one.start], one.key) for one in set(group).difference(kept)}
        # "A can be excluded, an owl has a rounder head": what was rejected is only discussed further.
        kept = [one for one in kept if one.is_letter or (text.sentence[one.start], one.key) not in rejected]
        groups += [kept] if kept else []
    for turn in sorted((start for start, _, roles in text.marks if "correction" in roles), reverse=True):
        if later := [group for group in groups if group[0].start > turn]:
            groups = later
            break
    held = Counter(
        text.sentence[k]
        for k, word in enumerate(text.lower)
        if k in taken or not (text.is_end(k) or word in text.little)
    )
    alone = [
        group for group in groups if held[text.sentence[group[0].start]] == sum(one.end - one.start for one in group)
    ]
    is_one = len({mention.key for group in alone for mention in group}) == 1  # rather than a list of the options
    places = {group[0].start for group in alone if is_one}
    verdicts = [group for group in groups if group[0].start in places or is_verdict(text, group, taken)]
    if not verdicts:
        return agreed(groups, groups) if any(one.is_letter for one in mentions) or not text.breaks_off else None
    last = verdicts[-1][0].start
    verdicts = [group for group in verdicts if text.segment[group[0].start] == text.segment[last]]
    return agreed(verdicts, [group for group in groups if text.sentence[group[0].start] == text.sentence[last]])


def agreed(groups: Sequence[Sequence[Mention]], beside: Sequence[Sequence[Mention]]) -> str | None:
    """The one key of some mentions. A letter outweighs texts, unless only other texts than its own are beside it."""
    if any(len({mention.key for mention in group}) > 1 for group in groups):
        return None
    letters = {mention.key for group in groups for mention in group if mention.is_letter}
    texts = {mention.key for group in groups for mention in group if not mention.is_letter}
    near = {mention.key for group in beside for mention in group if not mention.is_letter}
    if letters:
        return letters.pop() if len(letters) == 1 and (not near or letters & near) else None
    return texts.pop() if len(texts) == 1 else None


def group_mentions(text: Text, mentions: Sequence[Mention]) -> list[list[Mention]]:
    """Mentions that belong together: a letter and its text, and what is joined by a comma or "or"."""
    groups: list[list[Mention]] = []
    for mention in mentions:
        last = groups[-1][-1] if groups else None
        if last is None or text.segment[last.end - 1] != text.segment[mention.start]:
            groups.append([mention])
            continue
        between = set(text.tokens[last.end : mention.start])
        is_pair = last.is_letter != mention.is_letter and between and between <= BETWEEN_PAIR
        if is_pair and last.is_letter and last.key != mention.key:
            groups[-1][-1] = Mention(None, last.start, mention.end, is_letter=True)
        elif is_pair or (not between and mention.key == last.key) or text.joins(last.end, mention.start):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def not_rejected(text: Text, group: list[Mention], taken: Set[int], options: Options) -> list[Mention]:
    """What is left of a group. "Neither A nor B" rejects both, "not A, B" only the first."""
    said_before = text.in_segment.get(text.segment[group[0].start], set())
    if "first_thought" in said_before and "correction" not in said_before:  # "sorry, I wanted to say B"
        return []
    parts: list[list[Mention]] = []
    for mention in group:
        between = range(parts[-1][-1].end, mention.start) if parts else ()
        is_same = bool(parts) and parts[-1][-1].key == mention.key
        if is_same or any("or" in text.roles[k] or text.tokens[k] in "/&+" for k in between):
            parts[-1].append(mention)
        else:
            parts.append([mention])
    return [mention for part in parts if not is_rejected(text, part, taken, options) for mention in part]


def is_rejected(text: Text, group: Sequence[Mention], taken: Set[int], options: Options) -> bool:
    """Whether a clause negates or doubts mentions, or judges them to be wrong. No word reaches beyond other mentions."""
    first, last = group[0], group[-1]
    against = {"wrong", "not"}
    if all(not mention.is_letter and mention.key in options.negative for mention in group):
        against = {"wrong"}  # "There is none" chooses "none"
    clause = text.clause[first.start]
    for k in range(first.start - 1, max(first.start - FAR, 0) - 1, -1):
        if text.clause[k] != clause or k in taken or text.vocabulary.not_follows:
            break
        if text.roles[k] & against & {"wrong"} or (first.start - k <= NEAR and text.roles[k] & (against | {"unsure"})):
            return True
    clause = text.clause[last.end - 1]
    for k in range(last.end, min(last.end + FAR, len(text.tokens))):
        if text.clause[k] != clause or k in taken:
            break
        if text.roles[k] & {"wrong", *(("no",) if "not" in against else ())}:
            return True
        if k < last.end + NEAR and text.roles[k] & against:  # unless it is about the next one: "A not B"
            return not any(j in taken and text.clause[j] == clause for j in range(k + 1, k + 4))
    return False


def is_verdict(text: Text, group: Sequence[Mention], taken: Set[int]) -> bool:
    """Whether something says that this is the answer: before it in the segment, or next to it in the clause."""
    start, end = group[-1].start, group[-1].end
    if text.first_cue.get(text.segment[start], len(text.tokens)) <= start:
        return True
    cues = {"right", "therefore"} if group[-1].is_letter else {"right"}
    if any(last <= start and roles & cues for _, last, roles in text.in_clause.get(text.clause[start], ())):
        return True
    clause = text.clause[end - 1]
    near = takewhile(lambda k: k not in taken and text.clause[k] == clause, range(end, len(text.tokens)))
    return any(text.roles[k] & {"answer", "choose", "right", "yes"} for k in near)


@dataclass(frozen=True)
class Verdict:
    """Where a text says yes or no; `is_plain` unless the word has other uses ("of course", "there is")."""

    start: int
    says_yes: bool
    is_plain: bool


def read_verdict(text: Text) -> bool | None:
    """
    Yes or no.

    The last word that says so counts, unless it is doubted or taken back, or about something else ("no, but the dog,
    yes"). Without such a word, a negation says no.
    """
    doubted = {text.segment[start] for start, _, roles in text.marks if roles & {"unsure", "first_thought"}}
    verdicts: list[Verdict] = []
    read = 0  # up to here; what follows before it is a part of a longer phrase
    for start, end, roles in text.marks:
        if start < read or not roles & (VERDICTS | {"verbs", "right", "wrong"}):
            continue
        read = end
        if text.silent[start] or text.segment[start] in doubted:
            continue
        says_no, negated = bool(roles & {"no", "no_alone", "wrong"}), is_negated(text, start, end)
        says_yes = negated and "wrong" in roles if says_no else not negated
        found = Verdict(start, says_yes, bool(roles & {"yes", "no", "no_alone"}))
        cue = text.roles_at(text.skip(start - 1, -1, QUOTES | {":"}))
        is_quoted = start in text.quoted and not cue & {"therefore"} and judged_answer(text, start) is None
        if is_quoted or not is_said(text, start, end, roles, cue):
            continue
        if not (verdicts and is_about_other(text, found, verdicts[-1])):
            verdicts.append(found)
    if verdicts:
        return verdicts[-1].says_yes
    if text.breaks_off or any("unsure" in roles for _, _, roles in text.marks):
        return None
    for start, _, roles in text.marks:
        is_name = text.tokens[start][0].isupper() and not text.tokens[start].isupper() and not text.is_end(start - 1)
        is_meant = not (is_name or text.silent[start] or start in text.quoted or text.segment[start] in doubted)
        if "not" in roles and is_meant:  # but not the sign "No Parking"
            return False
    return None


def is_said(text: Text, start: int, end: int, roles: frozenset[str], cue: frozenset[str]) -> bool:
    """Whether words for yes or no stand where they are meant so: see `yes`, `yes_alone`, `verbs` in answers.yaml."""
    begins, ends, after = text.is_end(start - 1), text.is_end(end), text.tokens[end : end + 1]
    if ("verbs" in roles and after == [":"]) or (after in (['"'], ["("]) and text.quoted.get(start) != (start, end)):
        ends = False  # "what it is: ..."
    follows = bool(cue & {"answer", "therefore", "that", "but", "correction"} or "answer" in text.roles_at(end))
    if roles & {"yes", "no"}:
        return begins or ends or follows
    if "surely" in roles and begins:
        clause = takewhile(lambda k: text.clause[k] == text.clause[start], range(end, len(text.tokens)))
        return ends or not any(text.roles[k] & {"not", "no", "no_alone"} for k in clause)
    is_first = not any(token.isalnum() for token in text.tokens[:start])
    is_short = start <= 2 and text.clause[start] == 0 and "verbs" not in roles  # "Cats no, but dogs"
    is_short = is_short or "as_for" in text.in_segment[text.segment[start]]
    if roles & VERDICTS and ends and (begins or follows or is_short):
        return True
    if roles & {"right", "wrong"} and ends and judged_answer(text, start) is not None:
        return True
    return "verbs" in roles and ends and (is_first or follows)


def is_negated(text: Text, start: int, end: int) -> bool:
    """Whether "not" stands next to a word for yes, or between the answer and what it is said to be."""
    if any("not" in near and not near & {"no", "yes"} for near in (text.roles_at(start - 1), text.roles_at(end))):
        return True
    judged = judged_answer(text, start)
    return judged is not None and any("not" in roles for roles in text.roles[judged:start])


def judged_answer(text: Text, start: int) -> int | None:
    """The place of the answer that a clause calls right or wrong: "The proposed answer is correct"."""
    clause = takewhile(lambda k: text.clause[k] == text.clause[start], range(start - 1, max(start - 5 * FAR, -1), -1))
    return next((k for k in clause if text.roles[k] & {"answer", "option"}), None)


def is_about_other(text: Text, verdict: Verdict, earlier: Verdict) -> bool:
    """Whether a verdict only explains one before it in the sentence ("yes, none") or contrasts with it."""
    if text.sentence[earlier.start] != text.sentence[verdict.start]:
        return is_concession(text, verdict, earlier)
    if not any(text.is_end(k) for k in range(earlier.start, verdict.start)):  # "of course not"
        return False
    if not earlier.is_plain and not verdict.says_yes:  # "of course, no"
        return False
    against = {"correction", "therefore", "answer"} | ({"as_for"} if earlier.start else set())
    return not text.in_segment[text.segment[verdict.start]] & against


def is_concession(text: Text, verdict: Verdict, earlier: Verdict) -> bool:
    """Whether a later sentence begins with the opposite, goes on with "but" and corrects nothing: "Yes, ... but ..."."""
    start, first = verdict.start, text.sentence[earlier.start]
    if earlier.says_yes == verdict.says_yes or not earlier.is_plain or text.tokens[start - 2 : start] == [".", "."]:
        return False
    here = [(at, roles) for at, _, roles in text.marks if first < text.sentence[at] <= text.sentence[start]]
    turns = any("but" in roles for at, roles in here if at > start) and not any("correction" in r for _, r in here)
    return turns and text.sentence[start - 1] < text.sentence[start]
