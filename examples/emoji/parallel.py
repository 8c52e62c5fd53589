"""The emoji training data in parallel languages, as LRM-LLaVA's instruction formats need it.

    python examples/emoji/parallel.py --output DIR

writes the pictures of `conversations.py` and, one JSON object per line, {"id", "image", "kind", "texts":
{language: [{"question", "answer"}]}} in 13 languages:

- `captions.jsonl`: a request for a caption, and the name (stage 1).
- `questions.jsonl`: naming and 4-way choice (stage 2). The same picture, options and wording in every language.

and `eval.jsonl`, the evaluation of `conversations.py` in these languages. Names and questions are human translations
(Unicode CLDR, `data/questions.yaml`), so nothing here depends on how well a machine translates.

For `build_multilingual.py`, which makes parallel texts out of English ones, it also writes

- `english_captions.json`, `english_questions.json`: captions and naming questions in English, in LLaVA's form.
- `translations.csv`: each English text in these rows, and its translation in every language.
"""

import argparse
import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

from conversations import (
    COLLAGE_SHARE,
    Pictures,
    Row,
    Wording,
    choice_question,
    distractors,
    eval_rows,
    load_questions,
    naming_question,
    write_images,
    write_jsonl,
)
from emoji_data import Concept, EmojiData, load_data


LANGUAGES = ("en", "zh", "pt", "ar", "tr", "ru", "cs", "de", "fr", "hr", "it", "ro", "es")
NAMING_SHARE = 0.25  # of the questions; the others are choices, as in `conversations.stage2_rows`


def caption_rows(data: EmojiData, wording: Wording, pictures: Pictures, per_image: int, seed: int) -> list[Row]:
    """Captions of every training drawing: `per_image` rows each, shuffled."""
    rng = random.Random(f"captions {seed}")
    pairs = [(c, path) for c in data.concepts for path in pictures.originals.get(c.id, []) for _ in range(per_image)]
    rng.shuffle(pairs)
    rows = []
    for k, (concept, path) in enumerate(pairs):
        variant = rng.random()
        questions = {lang: random.Random(variant).choice(wording[lang]["caption"]) for lang in LANGUAGES}
        rows.append(parallel_row(f"caption-{k:06d}", path, questions, concept, "caption"))
    return rows


def question_rows(data: EmojiData, wording: Wording, pictures: Pictures, count: int, seed: int) -> list[Row]:
    """`count` visual questions, with pictures and options as in `conversations.stage2_rows`."""
    rng = random.Random(f"questions {seed}")
    pool = [concept for concept in data.concepts if concept.id in pictures.originals]
    deck: list[Concept] = []
    rows = []
    for k in range(count):
        deck = deck or rng.sample(pool, len(pool))  # go through all concepts before one comes again
        concept = deck.pop()
        variant = rng.random()
        kind = "naming" if rng.random() < NAMING_SHARE else "choice"
        if kind == "naming":
            path = rng.choice(pictures.views[concept.id] + pictures.originals[concept.id])
            questions = {lang: naming_question(wording, lang, random.Random(variant)) for lang in LANGUAGES}
        else:
            path, other = rng.choice(pictures.views[concept.id]), None
            if pictures.collages.get(concept.id) and rng.random() < COLLAGE_SHARE:
                path, other = rng.choice(pictures.collages[concept.id])
            options = [concept, *distractors(concept, [thing for thing in pool if thing.id != other], rng)]
            rng.shuffle(options)
            questions = {
                lang: choice_question(wording, lang, [thing.names[lang] for thing in options], random.Random(variant))
                for lang in LANGUAGES
            }
        rows.append(parallel_row(f"question-{k:06d}", path, questions, concept, kind))
    return rows


def english_rows(rows: Sequence[Row]) -> list[Row]:
    """The English side of parallel rows, in LLaVA's form."""
    result = []
    for row in rows:
        turn = row["texts"]["en"][0]
        conversations = [{"from": "human", "value": turn["question"]}, {"from": "gpt", "value": turn["answer"]}]
        result.append({"id": row["id"], "image": row["image"], "conversations": conversations})
    return result


def translations(rows: Sequence[Row]) -> list[dict[str, str]]:
    """{language: text} for every English text of parallel rows, once, without the image marker.

    Two concepts may share an English name; the first one's translation stands for both.
    """
    result: dict[str, dict[str, str]] = {}
    for row in rows:
        for part in ("question", "answer"):
            line = {lang: turns[0][part].removeprefix("<image>\n") for lang, turns in row["texts"].items()}
            result.setdefault(line["en"], line)
    return list(result.values())


def parallel_row(id_: str, image: str, questions: dict[str, str], concept: Concept, kind: str) -> Row:
    texts = {
        lang: [{"question": f"<image>\n{question}", "answer": concept.names[lang]}]
        for lang, question in questions.items()
    }
    return {"id": id_, "image": image, "kind": kind, "texts": texts}


def write(
    output_dir: str | Path,
    *,
    languages: Sequence[str] = LANGUAGES,
    views: int = 3,
    captions_per_image: int = 8,
    questions: int = 12_000,
    seed: int = 0,
) -> dict[str, int]:
    """Writes pictures and JSONL files to `output_dir`.

    Args:
        languages: of the evaluation; training rows are in all 13.
        views: altered copies per training drawing, and as many collages.
        captions_per_image: rows of `captions.jsonl` per training drawing.
        questions: rows of `questions.jsonl`.

    Returns:
        number of rows (and images) written, by file name.
    """
    output = Path(output_dir)
    data, wording = load_data(), load_questions()
    pictures = write_images(output, data, views, seed)
    captions = caption_rows(data, wording, pictures, captions_per_image, seed)
    asked = question_rows(data, wording, pictures, questions, seed)
    naming = [row for row in asked if row["kind"] == "naming"]
    files = {
        "captions.jsonl": captions,
        "questions.jsonl": asked,
        "eval.jsonl": eval_rows(data, wording, seed, languages),
        "english_captions.json": english_rows(captions),
        "english_questions.json": english_rows(naming),
        "translations.csv": translations(captions + naming),
    }
    for name, rows in files.items():
        if name.endswith(".jsonl"):
            write_jsonl(output / name, rows)
        elif name.endswith(".json"):
            (output / name).write_text(json.dumps(rows, indent=1), encoding="utf-8")
        else:
            with open(output / name, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, LANGUAGES)
                writer.writeheader()
                writer.writerows(rows)
    return {"images": pictures.written, **{name: len(rows) for name, rows in files.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=12_000)
    parser.add_argument("--captions-per-image", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args())
    for name, number in write(args.pop("output"), **args).items():
        print(f"{number:7,d} {name}")
