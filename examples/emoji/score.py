"""Score a checkpoint on the emoji questions, per language.

    python examples/emoji/score.py --model DIR --data DIR --output FILE.json

`--data` is what `conversations.py` wrote. Answers are generated, never ranked. Reported per language:

- `choice`: share of 4-way questions (distractors of the same group) answered with the right option.
- `naming`: share of pictures named exactly as CLDR names them.
- `in_language`: share of answers that are in the question's language, of those where that can be told.
- `control`: `choice` again with each question put to another question's picture; chance is 25%.
- `text`: text-only questions (no picture), to see whether training on pictures eroded the language model.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from conversations import PARROT_LANGUAGES, name_languages
from emoji_data import load_data
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from parrot_eval.generation import Asker, Request


Row = dict[str, Any]
Scores = dict[str, dict[str, float]]  # {measure: {language: per cent}}


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def with_other_pictures(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """The rows with pictures shuffled among them: the same exchange in every language, and no picture of its own."""
    pictures = sorted({(row["concept"], row["image"]) for row in rows})
    order = list(range(len(pictures)))
    random.Random(seed).shuffle(order)
    # A cycle through a random order gives every picture to another one; concepts drawn twice need a second look.
    given = {pictures[a]: pictures[b] for a, b in zip(order, [*order[1:], order[0]], strict=True)}
    kept = [row for row in rows if given[row["concept"], row["image"]][0] != row["concept"]]
    return [{**row, "image": given[row["concept"], row["image"]][1]} for row in kept]


def answer(
    model, processor, rows: Sequence[Row], folder: Path, *, batch_size: int = 64, max_new_tokens: int = 24
) -> tuple[list[str], list[list[float] | None]]:
    """
    Greedy answers to the rows' questions.

    Returns:
        The answers, and each row's expert probabilities (None without a picture or without experts).
    """
    asker = Asker(model, processor, max_new_tokens)
    # Questions of similar length share a batch, so that little of it is padding.
    order = sorted(range(len(rows)), key=lambda i: ("image" in rows[i], len(rows[i]["question"])))
    answers: list[str] = [""] * len(rows)
    routing: list[list[float] | None] = [None] * len(rows)
    probabilities: list[torch.Tensor] = []
    experts = getattr(model.model, "language_experts", None)
    hook = experts and experts.router.register_forward_hook(
        lambda *call: probabilities.append(call[2].float().softmax(-1))
    )
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        requests = [
            Request(rows[i]["question"], [Image.open(folder / rows[i]["image"])] if "image" in rows[i] else [])
            for i in part
        ]
        texts = asker.answers(requests)
        rows_routing = iter(torch.cat(probabilities).tolist() if probabilities else [])
        probabilities.clear()
        for i, text in zip(part, texts, strict=True):
            answers[i] = text
            if hook and "image" in rows[i]:
                routing[i] = next(rows_routing)
    if hook:
        hook.remove()
    return answers, routing


def is_right(row: Row, text: str) -> bool:
    """Naming: the name itself. Choice: the right option and no other is named."""
    text = text.strip(" .。!！").casefold()
    if not row["options"]:
        return text == row["answer"].casefold()
    named = [option for option in row["options"] if option.casefold() == text]
    return named == [row["answer"]]


def answered_language(text: str, names: dict[str, set[str]]) -> set[str]:
    """The languages an answer may be in: those that call something so, or almost so; empty if none does."""
    text = text.strip(" .。!！").casefold()
    if text not in names:
        text = next(iter(get_close_matches(text, names, n=1, cutoff=0.6)), "")
    return names.get(text, set())


def percentages(hits: Iterable[tuple[str, bool]], languages: Sequence[str]) -> dict[str, float]:
    """Per cent of hits per language, their mean, and the mean of the languages other than English."""
    found: dict[str, list[bool]] = defaultdict(list)
    for language, hit in hits:
        found[language].append(hit)
    result = {lang: 100 * sum(found[lang]) / len(found[lang]) for lang in languages if found[lang]}
    others = [value for lang, value in result.items() if lang != "en"]
    means = {"mean": sum(result.values()) / len(result), "non-English": sum(others) / len(others)}
    return {lang: round(value, 1) for lang, value in {**result, **means}.items()}


def score(rows: Sequence[Row], answers: Sequence[str], names: dict[str, set[str]], languages: Sequence[str]) -> Scores:
    """Scores of one set of questions: one measure per kind of question, and the answers' language."""
    pairs = list(zip(rows, answers, strict=True))
    scores = {
        kind: percentages([(r["language"], is_right(r, text)) for r, text in pairs if r["kind"] == kind], languages)
        for kind in sorted({r["kind"] for r in rows})
    }
    spoken = [(r["language"], answered_language(text, names)) for r, text in pairs if r["language_marked"]]
    # An answer that two languages spell alike shows neither.
    scores["in_language"] = percentages(
        [(lang, found == {lang}) for lang, found in spoken if not (lang in found and len(found) > 1)], languages
    )
    return scores


def evaluate(
    model, processor, data: Path, languages: Sequence[str] = PARROT_LANGUAGES, per_language: int | None = None
) -> dict[str, Any]:
    """
    All measures of a checkpoint.

    Args:
        data: folder written by `conversations.write`.
        per_language: use only so many questions of each split, kind and language.

    Returns:
        `{"style": Scores, "concept": Scores, "control": Scores, "text": Scores}`.
    """
    names = name_languages(load_data(), languages)
    rows = limited(read_rows(data / "eval.jsonl"), per_language)
    answers, _ = answer(model, processor, rows, data)
    result: dict[str, Any] = {"questions": len(rows)}
    for split in ("style", "concept"):
        chosen = [i for i, row in enumerate(rows) if row["split"] == split]
        result[split] = score([rows[i] for i in chosen], [answers[i] for i in chosen], names, languages)
    shuffled = with_other_pictures([row for row in rows if row["split"] == "style" and row["kind"] == "choice"])
    result["control"] = score(shuffled, answer(model, processor, shuffled, data)[0], names, languages)
    result["text"] = evaluate_text(model, processor, data, languages, per_language)
    result["samples"] = [
        {key: row[key] for key in ("image", "language", "question", "answer")} | {"answered": text}
        for row, text in list(zip(rows, answers, strict=True))[:: max(1, len(rows) // 12)]
    ]
    return result


def mean_routing(rows: Sequence[Row], routing: Sequence[list[float] | None]) -> dict[str, list[float]]:
    """Mean expert weights of each question language: {language: [E]}, empty without experts."""
    by_language: dict[str, list[list[float]]] = defaultdict(list)
    for row, probabilities in zip(rows, routing, strict=True):
        if probabilities is not None:
            by_language[row["language"]].append(probabilities)
    return {lang: torch.tensor(rows).mean(0).tolist() for lang, rows in by_language.items()}


def evaluate_pictures(
    folder: Path, data: Path, languages: Sequence[str], per_language: int | None = None
) -> dict[str, Any]:
    """
    Only the questions on held-out pictures, in any of the 13 languages.

    Returns:
        `{"style": Scores, "concept": Scores, "router": {language: [E]}}`.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    names = name_languages(load_data(), languages)
    asked = [row for row in read_rows(data / "eval.jsonl") if row["language"] in languages]
    rows = limited(asked, per_language)
    answers, routing = answer(model, processor, rows, data)
    result: dict[str, Any] = {"router": mean_routing(rows, routing)}
    for split in ("style", "concept"):
        chosen = [i for i, row in enumerate(rows) if row["split"] == split]
        result[split] = score([rows[i] for i in chosen], [answers[i] for i in chosen], names, languages)
    return result


def evaluate_text(model, processor, data: Path, languages: Sequence[str], per_language: int | None = None) -> Scores:
    """Text-only scores: riddles from keywords never trained on, and questions on an English description."""
    rows = limited(read_rows(data / "text.jsonl"), per_language)
    answers, _ = answer(model, processor, rows, data)
    return score(rows, answers, name_languages(load_data(), languages), languages)


def limited(rows: list[Row], per_language: int | None) -> list[Row]:
    """The first `per_language` rows of every split, kind and language, in a fixed random order of concepts."""
    if per_language is None:
        return rows
    counts: dict[tuple, int] = defaultdict(int)
    kept = []
    for row in sorted(rows, key=lambda row: random.Random(row["concept"] + row.get("style", "")).random()):
        key = (row.get("split"), row["kind"], row["language"])
        counts[key] += 1
        if counts[key] <= per_language:
            kept.append(row)
    return kept


def table(columns: dict[str, dict[str, float]], languages: Sequence[str]) -> str:
    """A Markdown table: a line per language and for the two means, a column per measure."""
    lines = ["| language | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for lang in [*languages, "mean", "non-English"]:
        cells = [f"{values[lang]:.1f}" if lang in values else "" for values in columns.values()]
        lines.append(f"| {lang} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def columns(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The measures of one checkpoint as columns of a table."""
    return {
        "4-way, new style": result["style"]["choice"],
        "naming, new style": result["style"]["naming"],
        "in language": result["style"]["in_language"],
        "4-way, new concept": result["concept"]["choice"],
        "naming, new concept": result["concept"]["naming"],
        "control": result["control"]["choice"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or id of a Parrot checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder that conversations.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the scores")
    parser.add_argument("--languages", nargs="+", default=list(PARROT_LANGUAGES))
    parser.add_argument("--per-language", type=int, help="use only so many questions per split, kind and language")
    args = parser.parse_args()
    logging.disable_progress_bar()
    model = AutoModelForImageTextToText.from_pretrained(args.model, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    result = evaluate(model, processor, args.data, args.languages, args.per_language)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    print(table(columns(result), args.languages))
    print(f"Scores of {result['questions']} questions per run in {args.output}")


if __name__ == "__main__":
    main()
