"""Write benchmarks about the emoji in the form of VLMEvalKit's files, and training rows in their response formats.

    python examples/emoji/benchmarks.py --output DIR [--languages en zh ...]

writes, from pictures in the style that no training saw, for each language

- `mmmb_LANG.tsv`: questions with four options of one group, as in MMMB.
- `mmbench_dev_LANG.tsv`: some of them with the options in every order, as in MMBench.
- `mme_LANG.tsv`: two Yes/No questions on each picture that say how to answer, as in MME (subtask existence).
- `pope_LANG.tsv`: Yes/No questions on things that are shown and things that are not, as in POPE: random ones, popular
  ones, and ones of the same group (adversarial).

and, with `--pictures` (what `conversations.py` wrote), into that folder `formats.jsonl`: such questions on training pictures,
answered with an option's text or with yes or no, in PARROT's mixture of languages. `recipes/stage2.yaml` trains on them too.
"""

import argparse
import base64
import csv
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from conversations import (
    PARROT_LANGUAGES,
    Row,
    Wording,
    distractors,
    image_path,
    language_shares,
    load_questions,
    naming_question,
    row,
    write_jsonl,
)
from emoji_data import Concept, EmojiData, load_data, load_images

from parrot_eval.prompts import prompt, wording_of
from parrot_eval.questions import CIRCLE, LETTERS, NO, YES, Question


CIRCLES = 60  # questions of mmbench, each in four orders
POPULAR = 3  # of each group


def encoded(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def choice_rows(data: EmojiData, wording: Wording, lang: str, pictures: dict[str, str]) -> Iterator[Row]:
    """The same questions, options and order in every language."""
    concepts = data.split("train")
    for number, concept in enumerate(concepts, start=1):
        rng = random.Random(f"mmmb {concept.id}")
        shown = [concept, *distractors(concept, concepts, rng)]
        rng.shuffle(shown)
        options = {letter: other.names[lang] for letter, other in zip(LETTERS, shown, strict=False)}
        question = naming_question(wording, lang, random.Random(f"mmmb wording {concept.id}"))
        yield {
            "index": number, "image": pictures[concept.id], "question": question, "hint": "", **options,
            "answer": LETTERS[shown.index(concept)], "category": concept.group, "split": "style",
        }  # fmt: skip


def circular_rows(rows: Sequence[Row]) -> Iterator[Row]:
    """Every question in four rows, its options moved on by one each time; only the first holds the picture."""
    letters = LETTERS[:4]
    for content in rows:
        for turn in range(4):
            options = {letter: content[letters[(k + turn) % 4]] for k, letter in enumerate(letters)}
            answer = letters[(letters.index(content["answer"]) - turn) % 4]
            image = content["image"] if turn == 0 else content["index"]
            yield {**content, **options, "index": content["index"] + turn * CIRCLE, "image": image, "answer": answer,
                   "l2-category": "recognition", "split": "dev"}  # fmt: skip


def shown_question(wording: Wording, lang: str, thing: Concept, rng: random.Random) -> str:
    return rng.choice(wording[lang]["shown"]).format(name=thing.names[lang])


def mme_rows(data: EmojiData, wording: Wording, lang: str, pictures: dict[str, str]) -> Iterator[Row]:
    concepts = data.split("train")
    for number, concept in enumerate(concepts):
        rng = random.Random(f"mme {concept.id}")
        other = rng.choice([thing for thing in concepts if thing.group != concept.group])
        for k, (thing, answer) in enumerate(((concept, YES), (other, NO))):
            question = f"{shown_question(wording, lang, thing, rng)} {wording_of(lang)['yes_no']}"
            yield {"index": 2 * number + k, "image": pictures[concept.id], "image_path": f"{concept.id}.png",
                   "question": question, "answer": answer, "category": "existence"}  # fmt: skip


def pope_rows(data: EmojiData, wording: Wording, lang: str, pictures: dict[str, str]) -> Iterator[Row]:
    concepts = data.split("train")
    groups: dict[str, list[Concept]] = {}
    for concept in concepts:
        groups.setdefault(concept.group, []).append(concept)
    popular = [concept for members in groups.values() for concept in members[:POPULAR]]
    index = 0
    for concept in concepts:
        for setting, pool in (("random", concepts), ("popular", popular), ("adversarial", groups[concept.group])):
            rng = random.Random(f"pope {setting} {concept.id}")
            other = rng.choice([thing for thing in pool if thing.id != concept.id])
            for thing, answer in ((concept, YES), (other, NO)):
                question = shown_question(wording, lang, thing, rng)
                yield {"index": index, "image": pictures[concept.id], "image_path": f"{concept.id}.png",
                       "question": question, "answer": answer, "category": setting}  # fmt: skip
                index += 1


def format_rows(
    data: EmojiData, wording: Wording, views: dict[str, list[str]], count: int, seed: int, languages: Sequence[str]
) -> list[Row]:
    """
    Training rows asked as `parrot_eval` asks, answered with an option's text or with yes or no.

    The text, though a letter is asked for: a model this small soon learns to repeat the right option, and does not learn
    within the demo's steps to point at it.
    """
    rng = random.Random(f"formats {seed}")
    shares = language_shares(languages)
    pool = [concept for concept in data.split("train") if concept.id in views]
    rows = []
    for number in range(count):
        lang = rng.choices(list(shares), list(shares.values()))[0]
        concept = rng.choice(pool)
        if rng.random() < 0.5:
            shown = [concept, *distractors(concept, pool, rng)]
            rng.shuffle(shown)
            options = {letter: other.names[lang] for letter, other in zip(LETTERS, shown, strict=False)}
            letter = LETTERS[shown.index(concept)]
            question = Question("", lang, naming_question(wording, lang, rng), letter, options)
            answer, task = concept.names[lang], "option"
        else:
            other = rng.choice([thing for thing in pool if thing.id != concept.id])
            thing, yes = (concept, True) if rng.random() < 0.5 else (other, False)
            question = Question("", lang, shown_question(wording, lang, thing, rng), YES if yes else NO)
            answer, task = wording_of(lang)["yes" if yes else "no"], "yes_no"
        rows.append(
            row(f"format-{number:06d}", lang, task, [(prompt(question), answer)], rng.choice(views[concept.id]))
        )
    return rows


def write_tsv(path: Path, rows: Sequence[Row]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write(
    output: Path, languages: Sequence[str], pictures: Path | None = None, count: int = 6000, seed: int = 0
) -> dict[str, int]:
    """
    Args:
        pictures: folder that `conversations.write` wrote; None: no training rows.
        count: training rows.

    Returns:
        Number of rows by file.
    """
    data, wording = load_data(), load_questions()
    shown = {id_: encoded(image) for (style, id_), image in load_images().items() if style == data.held_out_style}
    output.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Row]] = {}
    for lang in languages:
        files[f"mmmb_{lang}.tsv"] = list(choice_rows(data, wording, lang, shown))
        chosen = random.Random("mmbench").sample(files[f"mmmb_{lang}.tsv"], CIRCLES)
        files[f"mmbench_dev_{lang}.tsv"] = list(circular_rows(chosen))
        files[f"mme_{lang}.tsv"] = list(mme_rows(data, wording, lang, shown))
        files[f"pope_{lang}.tsv"] = list(pope_rows(data, wording, lang, shown))
    for name, rows in files.items():
        write_tsv(output / name, rows)
    if pictures is not None:
        views: dict[str, list[str]] = {}
        for concept in data.split("train"):
            for style in data.train_styles:
                found = sorted((pictures / image_path(style, concept.id)).parent.glob(f"{concept.id}-view*.png"))
                views.setdefault(concept.id, []).extend(str(path.relative_to(pictures)) for path in found)
        views = {id_: paths for id_, paths in views.items() if paths}
        files["formats.jsonl"] = format_rows(data, wording, views, count, seed, languages)
        write_jsonl(pictures / "formats.jsonl", files["formats.jsonl"])
    return {name: len(rows) for name, rows in files.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=list(PARROT_LANGUAGES))
    parser.add_argument("--pictures", type=Path, help="folder that conversations.py wrote, for training rows")
    parser.add_argument("--rows", type=int, default=6000, help="training rows")
    args = parser.parse_args()
    for name, number in write(args.output, args.languages, args.pictures, args.rows).items():
        print(f"{number:7,d} {name}")
