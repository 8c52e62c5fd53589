"""What a model is asked, word for word. A score belongs to its prompts, so their style is written beside every score."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import yaml

from instructions_parrot import load_instructions, stable_number
from parrot_eval.questions import NO, YES, Question


STYLES = ("parrot", "vlmevalkit")
Wording = Mapping[str, Mapping[str, str]]


@cache
def load_wording() -> Wording:
    """{language: lines of wording.yaml and `option_letter` of instructions.yaml}"""
    content = yaml.safe_load((Path(__file__).parent / "wording.yaml").read_text(encoding="utf-8"))
    formats = {code: lines["formats"] for code, lines in load_instructions().items()}
    return {code: {**lines, "option_letter": formats[code]["option_letter"]} for code, lines in content.items()}


def wording_of(language: str) -> Mapping[str, str]:
    """
    Raises:
        ValueError: the language has no wording.
    """
    known = load_wording()
    if language not in known:
        raise ValueError(
            f"There are no prompts in language {language!r}, only in {', '.join(known)}. Add it to "
            "parrot_eval/wording.yaml and parrot_data/instructions.yaml, or ask with `--prompts vlmevalkit`, whose "
            "prompts are English."
        )
    return known[language]


def prompt(question: Question, style: str = "parrot", *, asks_itself: bool = False) -> str:
    """
    The text that goes with the images.

    Args:
        style: "parrot", LLaVA-1.5's layout and response formats in the question's language; or "vlmevalkit", that
            harness's English layout.
        asks_itself: the question says how to answer (MME's end with "Please answer yes or no."), so nothing is added.

    Raises:
        ValueError: unknown style, or no wording in the language.
    """
    if style not in STYLES:
        raise ValueError(f"Unknown prompts {style!r}. There are: {', '.join(STYLES)}.")
    if not question.options and not isinstance(question.target, bool):
        return question.question  # its hint describes the image to the judge
    options = [f"{letter}. {text}" for letter, text in question.options.items()]
    if style == "vlmevalkit":
        if not options:
            return question.question
        lines = [f"Hint: {question.hint}"] if question.hint else []
        lines += [f"Question: {question.question}", "Options:", *options]
        return "\n".join([*lines, "Please select the correct answer from the options above. \n"])
    lines = [question.hint] if question.hint else []
    lines += [question.question, *options]
    if options:
        lines.append(wording_of(question.language)["option_letter"])
    elif isinstance(question.target, bool) and not asks_itself:
        lines.append(wording_of(question.language)["yes_no"])
    return "\n".join(lines)


def yes_no_pairs(questions: Sequence[Question]) -> list[Question]:
    """
    Two Yes/No questions for each question with options: whether the right one is the answer, and whether a wrong one is
    (PARROT, section 3.3 and figure 8). Only both together count, so guessing is worth a quarter, as with four options.

    The wrong option is chosen by the question's index: the same letter in every language, whatever the order of rows.

    Raises:
        ValueError: a question has fewer than two options.
    """
    pairs = []
    for question in questions:
        wrong = [letter for letter in question.options if letter != question.answer]
        if not wrong:
            raise ValueError(f"Question {question.index} has no wrong option, so it cannot become Yes/No questions.")
        words = wording_of(question.language)
        chosen = wrong[stable_number(f"wrong option {question.index}") % len(wrong)]
        for letter, answer in ((question.answer, YES), (chosen, NO)):
            text = "\n".join([question.question, f"{words['proposed']} {question.options[letter]}", words["correct"]])
            index = f"{question.index}-{answer.lower()}"
            pairs.append(
                replace(question, index=index, question=text, answer=answer, options={}, group=question.index)
            )
    return pairs


def fingerprint(texts: Sequence[str]) -> str:
    """Identifies prompts, so that scores of different ones are not mixed up."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
