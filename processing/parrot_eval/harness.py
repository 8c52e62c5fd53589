"""What VLMEvalKit reads in an answer under its policy of exact matching (commit e8e78f0), without its judge model.

Its rules are made for English. They are here to say how far a score would differ there, not to score with.
"""

import re
from collections.abc import Mapping


SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
VERDICT = re.compile(r"answer\s+is\s+\**([a-d])\**", re.IGNORECASE)
JOINED = ';/[]"{}()=+\\_-><@`,?!'  # punctuation of Yes/No answers


def kit_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that the harness reads, None where it reads none (and counts the answer as wrong)."""
    if "Failed to obtain answer via API" not in answer:
        if any(refusal in answer for refusal in REFUSALS):
            return None
        words = answer.translate(SEPARATORS).split()
        letters = [letter for letter in options if letter in words]
        if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:  # among the last four words
            return letters[0]
        if not letters and "Z" in words:
            return None
        verdict = VERDICT.search(answer)
        if verdict and verdict[1].upper() in options:
            return verdict[1].upper()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def kit_yes_no(answer: str) -> bool | None:
    """Yes (True) or no (False) as the harness reads it, None where it reads neither."""
    text = answer.lower()
    has_number = re.search(r"\d,\d", text) is not None
    for mark in JOINED:  # a mark at the edge of a word goes, one within becomes a space
        at_edge = f"{mark} " in text or f" {mark}" in text or has_number
        answer = answer.replace(mark, "" if at_edge else " ")
    words = re.sub(r"(?<!\d)\.(?!\d)", "", answer.lower(), count=32).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" in words
