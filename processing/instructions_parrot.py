"""LRM-LLaVA's instruction formats: from questions and answers in parallel languages to chat turns, and back.

- MVQA (equation 6): question and answer in one language.
- EP-VQA (equation 7): the instruction asks to translate the question into English first. The answer to learn is the
  English question, then the answer in the language; `parse_pivot` takes both apart again.
- BVQA (equation 8): the question is in one language, the answer in another, English being one of the two. The
  instruction, in the question's language, says which language to answer in.

Stage 1 uses MVQA only, stage 2 all three (section "Cross-Modal Regularizer"). The instructions are the lines of
`parrot_data/instructions.yaml`, several per language; which one a row gets depends on its id and on nothing else, so
that shards, workers and later runs agree. Pure functions of text: no image is opened, no file but the wording is read.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


TASKS = ("mvqa", "ep_vqa", "bvqa")
PIVOT_LABEL = "English: "
IMAGE_MARKER = "<image>"

Instructions = dict[str, dict[str, Any]]
Turn = Mapping[str, str]  # {"question", "answer"}


def load_instructions(*paths: str | Path) -> Instructions:
    """
    The wording of instructions in 13 languages, and of further files.

    Args:
        paths: YAML files of the same form as `instructions.yaml`; a language in a later file replaces that of an
            earlier one.

    Raises:
        ValueError: a language lacks its name or lines; names file, language and key.
    """
    return read_languages(Path(__file__).parent / "parrot_data" / "instructions.yaml", paths, check_language)


def read_languages(
    standard: Path, further: Sequence[str | Path], check: Callable[[Any, Any, str], None]
) -> dict[str, dict[str, Any]]:
    """
    {language: its content} of YAML files, where a language in a later file replaces that of an earlier one.

    Args:
        standard: the package's own file.
        further: those of a user, of the same form.
        check: called with each language, its content and its file; raises ValueError.
    """
    import yaml

    result: dict[str, dict[str, Any]] = {}
    for path in (standard, *map(Path, further)):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected languages with what belongs to them, as in {standard.name}.")
        for language, own in content.items():
            check(language, own, str(path))
        result |= content
    return result


def check_language(language: str, lines: Any, where: str) -> None:
    """Refuses wording that lacks a key or has an empty list, naming it."""
    lists = ("answer_in",) if language == "en" else ("pivot", "answer_in_english")
    for key, kind in {"name": str, "in_english": str, **dict.fromkeys(lists, list)}.items():
        value = lines.get(key) if isinstance(lines, Mapping) else None
        texts = value if isinstance(value, list) else [value]
        if (
            not isinstance(value, kind)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            what = "a text" if kind is str else "a list of one or more texts"
            raise ValueError(f"{where}: language {language!r} needs {what} under `{key}`.")
    if language == "en" and not all("{language}" in text for text in lines["answer_in"]):
        raise ValueError(f"{where}: every line of `en: answer_in` needs {{language}} where the language's name goes.")


def pick(lines: Sequence[str], row_id: str) -> str:
    """One of several lines, by the row's id."""
    return lines[stable_number(row_id) % len(lines)]


def build_instruction(
    task: str,
    question: str,
    language: str,
    instructions: Instructions,
    *,
    answer_language: str | None = None,
    row_id: str = "",
) -> str:
    """
    The user's text: the question, and on a line of its own what the task asks for beyond an answer.

    Args:
        task: "mvqa", "ep_vqa" or "bvqa".
        question: in `language`.
        answer_language: of BVQA, one of the two languages being English. Other tasks answer in `language`.
        row_id: chooses among the lines.

    Raises:
        ValueError: unknown task, a language without wording, or a pair of languages that the task does not have.
    """
    wording = _wording(language, instructions)
    if task == "mvqa":
        return question
    if task == "ep_vqa":
        if language == "en":
            raise ValueError('Task "ep_vqa" translates into English first, so its language cannot be English.')
        return f"{question}\n{pick(wording['pivot'], row_id)}"
    if task != "bvqa":
        raise ValueError(f"Unknown task {task!r}. Tasks: {', '.join(TASKS)}.")
    if answer_language is None or (language == "en") == (answer_language == "en"):
        raise ValueError(
            f'Task "bvqa" asks in one language and wants the answer in another, one of them English; got a question '
            f"in {language!r} and answer_language={answer_language!r}."
        )
    if answer_language == "en":
        return f"{question}\n{pick(wording['answer_in_english'], row_id)}"
    name = _wording(answer_language, instructions)["in_english"]
    return f"{question}\n{pick(wording['answer_in'], row_id).format(language=name)}"


def split_formats(text: str, instructions: Instructions) -> list[tuple[str | None, str]]:
    """
    English text cut at LLaVA-1.5's response-format prompts ("Answer the question using a single word or phrase.").

    They are given in each language's own words instead of being translated anew in every row.

    Returns:
        [(key of `formats`, the prompt) or (None, text between)], which joined is the text again.
    """
    keys = {prompt: key for key, prompt in instructions["en"]["formats"].items()}
    longest_first = sorted(keys, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [(keys.get(piece), piece) for piece in pieces if piece]


def build_pivot(english_question: str, answer: str) -> str:
    """EP-VQA's target: the English question in one paragraph after a label, an empty line, the answer."""
    return f"{PIVOT_LABEL}{one_paragraph(english_question)}\n\n{answer.strip()}"


def parse_pivot(text: str) -> tuple[str | None, str]:
    """
    EP-VQA's answer taken apart: the English question and the answer. The inverse of `build_pivot`.

    A text that does not begin with the label has no English question (None): all of it is the answer. One that
    breaks off before the answer has an empty one.
    """
    text = text.strip()
    if not text.startswith(PIVOT_LABEL.strip()):
        return None, text
    question, _, answer = text[len(PIVOT_LABEL.strip()) :].partition("\n\n")
    return question.strip(), answer.strip()


def one_paragraph(text: str) -> str:
    """Text without image markers and empty lines, so that an empty line can end it. Its other lines stay."""
    lines = (line.strip() for line in text.replace(IMAGE_MARKER, " ").splitlines())
    return "\n".join(line for line in lines if line)


def build_turns(
    task: str,
    texts: Mapping[str, Sequence[Turn]],
    language: str,
    instructions: Instructions,
    *,
    answer_language: str | None = None,
    row_id: str = "",
) -> list[dict[str, str]]:
    """
    The turns of one training row in one format.

    Args:
        task: "mvqa", "ep_vqa" or "bvqa".
        texts: the same turns in English (`en`) and in other languages. Questions hold `<image>` where images go.
        language: the language that the row teaches; of BVQA the one beside English.
        answer_language: of BVQA, `language` or "en"; by default one or the other, by the row's id.
        row_id: chooses lines and direction.

    Returns:
        [{"question", "answer"}, ...], as many as there were, images where they were.

    Raises:
        ValueError: see `build_instruction`; or the languages do not align (missing, other number of turns or images,
            empty text), named by row and turn.
    """
    if task not in TASKS:
        raise ValueError(f"Row {row_id!r}: unknown task {task!r}. Tasks: {', '.join(TASKS)}.")
    check_parallel(texts, (language,) if task == "mvqa" else ("en", language), row_id)
    asked = answered = language
    if task == "bvqa":
        answered = answer_language or ("en" if stable_number(f"direction {row_id}") % 2 else language)
        asked = language if answered == "en" else "en"
    turns = []
    for k, (question, answer) in enumerate(zip(texts[asked], texts[answered], strict=True)):
        text = build_instruction(
            task, question["question"], asked, instructions, answer_language=answered, row_id=f"{row_id} {k}"
        )
        target = answer["answer"]
        if task == "ep_vqa":
            target = build_pivot(texts["en"][k]["question"], target)
        turns.append({"question": text, "answer": target})
    return turns


def check_parallel(texts: Mapping[str, Sequence[Turn]], languages: Sequence[str], row_id: str) -> None:
    """
    Refuses a row whose languages do not say the same turns.

    Raises:
        ValueError: what differs, by row, turn and language.
    """
    for language in languages:
        if not texts.get(language):
            present = ", ".join(key for key, turns in texts.items() if turns) or "none"
            raise ValueError(f"Row {row_id!r} has no text in {language!r}. Languages it has: {present}.")
    first = languages[0]
    for language in languages:
        if len(texts[language]) != len(texts[first]):
            raise ValueError(
                f"Row {row_id!r}: {len(texts[first])} turn(s) in {first!r} but {len(texts[language])} in {language!r}. "
                "Parallel texts need the same turns."
            )
        for k, turn in enumerate(texts[language]):
            for part in ("question", "answer"):
                if not turn[part].replace(IMAGE_MARKER, "").strip():
                    raise ValueError(f"Row {row_id!r}, turn {k}, {language!r}: the {part} is empty.")
            wanted = texts[first][k]["question"].count(IMAGE_MARKER)
            found = turn["question"].count(IMAGE_MARKER)
            if found != wanted:
                raise ValueError(
                    f"Row {row_id!r}, turn {k}: {wanted} {IMAGE_MARKER} in {first!r} but {found} in {language!r}. "
                    "A translation has to keep them."
                )


def build_row(
    task: str, row: Mapping[str, Any], language: str, instructions: Instructions, *, answer_language: str | None = None
) -> dict[str, Any]:
    """
    One training row, in the form that LLaVA's data has, from a parallel one.

    Args:
        row: {"id", "texts": see `build_turns`} and, unless it is text-only, `image` or `images`.
        task, language, answer_language: see `build_turns`.

    Returns:
        {"id", "conversations", "language", "task"} and the row's image or images.
    """
    row_id = str(row["id"])
    turns = build_turns(task, row["texts"], language, instructions, answer_language=answer_language, row_id=row_id)
    conversations = []
    for turn in turns:
        conversations += [{"from": "human", "value": turn["question"]}, {"from": "gpt", "value": turn["answer"]}]
    pictures = {key: row[key] for key in ("image", "images") if row.get(key)}
    return {
        "id": f"{row_id}-{task}-{language}", **pictures, "conversations": conversations, "language": language, "task": task
    }  # fmt: skip


def _wording(language: str, instructions: Instructions) -> dict[str, Any]:
    if language not in instructions:
        raise ValueError(
            f"No instructions in language {language!r}. There are: {', '.join(instructions)}. Add the language to a "
            "YAML file with the keys of instructions.yaml and load it with `load_instructions(FILE)`."
        )
    return instructions[language]


def stable_number(text: str) -> int:
    """64 bits that the text decides: the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
