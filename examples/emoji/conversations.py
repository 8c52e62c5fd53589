"""Turn concepts and question wording into training and evaluation rows, in the form PARROT and LLaVA use.

    python examples/emoji/conversations.py --output DIR

writes `images/STYLE/ID.png` and, one JSON object per line,

- `stage1.jsonl`: English captions. {"id", "image", "language", "task", "conversations": [{"from", "value"}, ...]}
- `stage2.jsonl`: visual questions, mostly English, and text-only riddles (rows without "image").
- `eval.jsonl`: questions on pictures that no training saw, the same in every language.
- `text.jsonl`: text-only riddles per language, to measure whether training on pictures erodes the text model.

The same arguments always write the same files.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from emoji_data import DATA_DIR, Concept, EmojiData, load_data, load_images
from PIL import Image, ImageEnhance, ImageFilter


Row = dict[str, Any]
Wording = dict[str, dict[str, Any]]

PARROT_LANGUAGES = ("en", "zh", "pt", "ar", "tr", "ru")
# PARROT table 1: 71k Chinese rows and 12k to 17k of the others beside 665k rows of LLaVA.
CHINESE_SHARE, OTHER_SHARE = 0.08, 0.05
TEXT_SHARE = 0.05
COLLAGE_SHARE = 0.5  # of the choice questions in stage 2
OVERLAID_SHARE = 0.6  # of the collages; the others show two drawings in opposite corners
HELD_OUT_RIDDLES = 0.1
# Held-out concepts are shown in the unseen style and in one that the tower knows.
KNOWN_STYLE = "noto"


def load_questions(data_dir: Path = DATA_DIR) -> Wording:
    """Read `questions.yaml`: {language: {task: wordings, "separator": text}}."""
    return yaml.safe_load((data_dir / "questions.yaml").read_text(encoding="utf-8"))


def clues(concept: Concept, lang: str) -> list[str]:
    """The concept's keywords in `lang` that do not give its name away."""
    name = concept.names[lang].casefold()
    return [word for word in concept.keywords[lang] if word.casefold() not in name and name not in word.casefold()]


def distractors(concept: Concept, pool: Sequence[Concept], rng: random.Random, count: int = 3) -> list[Concept]:
    """`count` other concepts of the same group out of `pool`.

    Raises:
        ValueError: the group is too small.
    """
    others = [other for other in pool if other.group == concept.group and other.id != concept.id]
    if len(others) < count:
        raise ValueError(
            f"Group {concept.group!r} has only {len(others)} concepts beside {concept.id}, {count} needed."
        )
    return rng.sample(others, count)


def options_for(concept: Concept, pool: Sequence[Concept], lang: str, rng: random.Random) -> list[str]:
    """Four names in `lang`, in random order: the concept's and three of its group's."""
    names = [other.names[lang] for other in (concept, *distractors(concept, pool, rng))]
    return rng.sample(names, len(names))


def naming_question(wording: Wording, lang: str, rng: random.Random) -> str:
    return rng.choice(wording[lang]["naming"])


def choice_question(wording: Wording, lang: str, options: Sequence[str], rng: random.Random) -> str:
    return rng.choice(wording[lang]["choice"]).format(options=wording[lang]["separator"].join(options))


def riddle_question(
    wording: Wording, lang: str, keywords: Sequence[str], options: Sequence[str] | None, rng: random.Random
) -> str:
    separator = wording[lang]["separator"]
    if options is None:
        return rng.choice(wording[lang]["riddle"]).format(keywords=separator.join(keywords))
    template = rng.choice(wording[lang]["riddle_choice"])
    return template.format(keywords=separator.join(keywords), options=separator.join(options))


def english_description(concept: Concept, rng: random.Random) -> str:
    """An English description in place of a picture: the name, then up to three keywords."""
    words = clues(concept, "en")
    some = rng.sample(words, min(len(words), rng.randint(1, 3)))
    return f"{concept.names['en']}: {', '.join(some)}" if some else concept.names["en"]


def is_held_out_riddle(concept: Concept, lang: str, keywords: Sequence[str]) -> bool:
    """Whether this set of keywords, in any order, is kept for evaluation: one in ten, by hash."""
    key = "|".join([concept.id, lang, *sorted(keywords)])
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 1000 < 1000 * HELD_OUT_RIDDLES


def riddle_keywords(
    concept: Concept, lang: str, rng: random.Random, held_out: bool, tries: int = 40
) -> list[str] | None:
    """Two to four keywords that may be trained on, or (`held_out`) that never were. None if the concept has none."""
    words = clues(concept, lang)
    for _ in range(tries if len(words) >= 2 else 0):
        some = rng.sample(words, min(len(words), rng.randint(2, 4)))
        if is_held_out_riddle(concept, lang, some) == held_out:
            return some
    return None


def language_marked(concept: Concept, lang: str, languages: Iterable[str]) -> bool:
    """Whether the concept's name in `lang` tells the language: no other of `languages` spells it so."""
    name = concept.names[lang].casefold()
    return all(concept.names[other].casefold() != name for other in languages if other != lang)


def name_languages(data: EmojiData, languages: Iterable[str]) -> dict[str, set[str]]:
    """{casefolded name: the `languages` that call some concept so}, to find the language of an answer."""
    result: dict[str, set[str]] = {}
    for concept in data.concepts:
        for lang in languages:
            result.setdefault(concept.names[lang].casefold(), set()).add(lang)
    return result


def row(id_: str, lang: str, task: str, turns: Sequence[tuple[str, str]], image: str | None = None) -> Row:
    """A training row; with an image, the placeholder opens the first turn."""
    conversations = []
    for k, (question, answer) in enumerate(turns):
        value = f"<image>\n{question}" if image is not None and k == 0 else question
        conversations += [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
    head = {"id": id_} if image is None else {"id": id_, "image": image}
    return {**head, "language": lang, "task": task, "conversations": conversations}


def stage1_rows(
    data: EmojiData, wording: Wording, images: dict[str, list[str]], per_image: int, seed: int
) -> list[Row]:
    """English captions, just the name: `per_image` rows for every image, shuffled.

    Args:
        images: {concept id: image paths}; concepts without an entry are skipped.
    """
    rng = random.Random(f"stage 1 {seed}")
    pairs = [(c, path) for c in data.concepts for path in images.get(c.id, []) for _ in range(per_image)]
    rng.shuffle(pairs)
    rows = []
    for k, (concept, path) in enumerate(pairs):
        turn = (rng.choice(wording["en"]["caption"]), concept.names["en"])
        rows.append(row(f"stage1-{k:06d}", "en", "caption", [turn], path))
    return rows


def language_shares(languages: Sequence[str]) -> dict[str, float]:
    """PARROT's mixture: English takes what the few per cent of the others leave."""
    shares = {lang: CHINESE_SHARE if lang == "zh" else OTHER_SHARE for lang in languages if lang != "en"}
    return {"en": 1 - sum(shares.values()), **shares}


def visual_turn(concept: Concept, pool: Sequence[Concept], wording: Wording, lang: str, task: str, rng: random.Random):
    """One question on the concept's picture and its answer; `task` is naming or choice."""
    if task == "naming":
        return naming_question(wording, lang, rng), concept.names[lang]
    return choice_question(wording, lang, options_for(concept, pool, lang, rng), rng), concept.names[lang]


def riddle_row(id_: str, data: EmojiData, wording: Wording, lang: str, rng: random.Random) -> Row:
    """A text-only riddle, open or with four options. It may be about any concept: no picture is shown."""
    while True:
        concept = rng.choice(data.concepts)
        keywords = riddle_keywords(concept, lang, rng, held_out=False)
        if keywords is not None:
            break
    task = rng.choice(["riddle", "riddle_choice"])
    options = options_for(concept, data.concepts, lang, rng) if task == "riddle_choice" else None
    return row(id_, lang, task, [(riddle_question(wording, lang, keywords, options, rng), concept.names[lang])])


def stage2_rows(
    data: EmojiData,
    wording: Wording,
    images: dict[str, list[str]],
    views: dict[str, list[str]],
    collages: dict[str, list[tuple[str, str]]],
    count: int,
    seed: int,
    languages: Sequence[str] = PARROT_LANGUAGES,
) -> list[Row]:
    """Visual questions in PARROT's mixture of languages, and text-only riddles.

    The languages of the visual rows follow `language_shares`; riddles, which cost no image, are spread evenly.

    Args:
        images: {concept id: paths of drawings}. Only these concepts are shown, and only these are options beside a
            picture.
        views: {concept id: paths of altered copies}, which choice questions show: a drawing that the tower knows by
            heart would be named without a look at the options.
        collages: {concept id: paths of images that show it and another concept, and that other's id}, for choice
            questions whose options hold only one of the two: here the options have to be read.
    """
    rng = random.Random(f"stage 2 {seed}")
    shares = language_shares(languages)
    pool = [concept for concept in data.concepts if concept.id in images]
    text_count = round(TEXT_SHARE * count)
    deck: dict[str, list[Concept]] = {lang: [] for lang in shares}
    rows = []
    counts = {lang: round(share * (count - text_count)) for lang, share in shares.items() if lang != "en"}
    counts["en"] = count - text_count - sum(counts.values())
    for lang, rows_of_language in counts.items():
        for _ in range(rows_of_language):
            # Go through all concepts before one comes again: a language has few rows.
            deck[lang] = deck[lang] or rng.sample(pool, len(pool))
            concept = deck[lang].pop()
            task = rng.choices(["naming", "choice"], [0.25, 0.75])[0]
            path = rng.choice(views[concept.id] + (images[concept.id] if task == "naming" else []))
            options_from = pool
            if task == "choice" and collages.get(concept.id) and rng.random() < COLLAGE_SHARE:
                path, other = rng.choice(collages[concept.id])
                options_from = [thing for thing in pool if thing.id != other]
            turn = visual_turn(concept, options_from, wording, lang, task, rng)
            rows.append(row("", lang, task, [turn], path))
    rows += [riddle_row("", data, wording, languages[k % len(languages)], rng) for k in range(text_count)]
    rng.shuffle(rows)
    return [{**content, "id": f"stage2-{k:06d}"} for k, content in enumerate(rows)]


def eval_rows(data: EmojiData, wording: Wording, seed: int, languages: Sequence[str] = PARROT_LANGUAGES) -> list[Row]:
    """Questions on pictures that no training saw; in every language the same pictures, options and order.

    Split "style" shows the training concepts in the held-out style, with training concepts as distractors. Split
    "concept" shows the held-out concepts, with held-out concepts as distractors, so that no option can be ruled out
    for having never been an answer.
    """
    rows = []
    for split, concepts, styles in (
        ("style", data.split("train"), [data.held_out_style]),
        ("concept", data.split("held_out"), [data.held_out_style, KNOWN_STYLE]),
    ):
        for concept in concepts:
            for style in styles:
                rng = random.Random(f"eval {seed} {style} {concept.id}")
                shown = [concept, *distractors(concept, concepts, rng)]
                rng.shuffle(shown)
                variant = rng.random()
                for lang in languages:
                    options = [other.names[lang] for other in shown]
                    for kind in ("choice", "naming"):
                        # The same variant of the wording in all languages, as far as there are as many.
                        fixed = random.Random(f"{variant} {kind}")
                        if kind == "choice":
                            question = choice_question(wording, lang, options, fixed)
                        else:
                            question = naming_question(wording, lang, fixed)
                        rows.append(
                            {
                                "id": f"{split}-{kind}-{lang}-{style}-{concept.id}",
                                "image": image_path(style, concept.id),
                                "language": lang,
                                "kind": kind,
                                "split": split,
                                "style": style,
                                "group": concept.group,
                                "concept": concept.id,
                                "question": question,
                                "options": options if kind == "choice" else [],
                                "answer": concept.names[lang],
                                "language_marked": language_marked(concept, lang, languages),
                            }
                        )
    return rows


def text_rows(
    data: EmojiData, wording: Wording, per_language: int, seed: int, languages: Sequence[str] = PARROT_LANGUAGES
) -> list[Row]:
    """Text-only questions per language: riddles from keyword sets that no training used, and English descriptions
    with a question in the language. The same fields as `eval_rows`, without a picture."""
    rows = []
    for lang in languages:
        rng = random.Random(f"text {seed} {lang}")
        count = 0
        for concept in rng.sample(data.concepts, len(data.concepts)):
            keywords = riddle_keywords(concept, lang, rng, held_out=True)
            if count == per_language:
                break
            if keywords is None:
                continue
            count += 1
            options = options_for(concept, data.concepts, lang, rng)
            description = english_description(concept, rng)
            for kind, question in (
                ("riddle", riddle_question(wording, lang, keywords, None, rng)),
                ("riddle_choice", riddle_question(wording, lang, keywords, options, rng)),
                ("described_naming", f"{description}\n{naming_question(wording, lang, rng)}"),
                ("described_choice", f"{description}\n{choice_question(wording, lang, options, rng)}"),
            ):
                rows.append(
                    {
                        "id": f"text-{kind}-{lang}-{concept.id}",
                        "language": lang,
                        "kind": kind,
                        "group": concept.group,
                        "concept": concept.id,
                        "question": question,
                        "options": options if kind.endswith("choice") else [],
                        "answer": concept.names[lang],
                        "language_marked": language_marked(concept, lang, languages),
                    }
                )
    return rows


def image_path(style: str, concept_id: str, view: str = "") -> str:
    """Where an image lies, relative to the output folder; a `view` is an altered copy."""
    return f"images/{style}/{concept_id}{f'-{view}' if view else ''}.png"


def altered(image: Image.Image, rng: random.Random) -> Image.Image:
    """A turned, moved, scaled, recoloured, blurred and partly covered copy of a drawing on white.

    Strong on purpose. The tower knows the training drawings by heart (99% top-1 of 247, without alteration) but only 63%
    in a style it never saw. A model that is trained where the picture alone always decides learns to ignore the options
    of a question; it needs them as soon as the style is new.
    """
    size = image.width
    turned = image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR, fillcolor="white")
    scale = rng.uniform(0.75, 1.35)
    left, top = rng.uniform(-0.12, 0.12) * size, rng.uniform(-0.12, 0.12) * size
    centre = size * (1 - 1 / scale) / 2
    moved = turned.transform(
        image.size,
        Image.Transform.AFFINE,
        (1 / scale, 0, centre + left, 0, 1 / scale, centre + top),
        Image.Resampling.BILINEAR,
        fillcolor="white",
    )
    hue, saturation, value = moved.convert("HSV").split()
    shift = rng.randint(-15, 15)
    shifted = Image.merge("HSV", (hue.point([(level + shift) % 256 for level in range(256)]), saturation, value))
    coloured = ImageEnhance.Color(shifted.convert("RGB")).enhance(rng.uniform(0.2, 1.8))
    result = ImageEnhance.Contrast(coloured).enhance(rng.uniform(0.5, 1.4))
    if rng.random() < 0.5:
        result = result.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    width, height = (round(size * rng.uniform(0.1, 0.5)) for _ in range(2))
    corner = rng.randint(0, size - width), rng.randint(0, size - height)
    result.paste(
        (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)),
        (*corner, corner[0] + width, corner[1] + height),
    )
    return result


def collage(first: Image.Image, second: Image.Image, rng: random.Random) -> Image.Image:
    """Two drawings on one picture: laid over each other, or in opposite corners and hardly overlapping."""
    if rng.random() < OVERLAID_SHARE:
        return Image.blend(first, second, rng.uniform(0.35, 0.65))
    size = first.width
    result = Image.new("RGB", first.size, "white")
    left, top = rng.random() < 0.5, rng.random() < 0.5
    for drawing, (at_left, at_top) in ((first, (left, top)), (second, (not left, not top))):
        side = round(size * rng.uniform(0.5, 0.65))
        corner = (0 if at_left else size - side, 0 if at_top else size - side)
        result.paste(drawing.resize((side, side), Image.Resampling.LANCZOS), corner)
    return result


class Pictures(NamedTuple):
    """Paths of training pictures by concept, relative to the output folder."""

    originals: dict[str, list[str]]  # drawings; stage 1 shows these: what the tower knows best is aligned fastest
    views: dict[str, list[str]]  # altered copies
    collages: dict[str, list[tuple[str, str]]]  # pictures of two concepts, and the other one's id
    written: int  # number of all pictures, those for the evaluation included


def write_images(output: Path, data: EmojiData, views: int, seed: int, data_dir: Path = DATA_DIR) -> Pictures:
    """Writes all drawings, and `views` altered copies and collages of each training drawing."""
    splits = {concept.id: concept.split for concept in data.concepts}
    drawings = {key: image for key, image in load_images(data_dir).items() if key[1] in splits}
    pictures = Pictures({}, {}, {}, 0)
    written = 0
    for style in {style for style, _ in drawings}:
        (output / "images" / style).mkdir(parents=True, exist_ok=True)
    for (style, id_), drawing in drawings.items():
        train = style in data.train_styles and splits[id_] == "train"
        rng = random.Random(f"view {seed} {style} {id_}")
        copies = {image_path(style, id_): drawing}
        if train:
            new = {image_path(style, id_, f"view{k}"): altered(drawing, rng) for k in range(1, views + 1)}
            copies |= new
            pictures.originals.setdefault(id_, []).append(image_path(style, id_))
            pictures.views.setdefault(id_, []).extend(new)
            for k in range(1, views + 1):
                other = rng.choice([c for s, c in drawings if s == style and splits[c] == "train" and c != id_])
                path = image_path(style, id_, f"collage{k}")
                copies[path] = collage(altered(drawing, rng), altered(drawings[style, other], rng), rng)
                pictures.collages.setdefault(id_, []).append((path, other))
                pictures.collages.setdefault(other, []).append((path, id_))
        for path, image in copies.items():
            image.save(output / path, compress_level=1)
        written += len(copies)
    return pictures._replace(written=written)


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(content, ensure_ascii=False) + "\n" for content in rows), encoding="utf-8")


def write(
    output_dir: str | Path,
    *,
    languages: Sequence[str] = PARROT_LANGUAGES,
    views: int = 3,
    stage1_per_image: int = 8,
    stage2_count: int = 12_000,
    text_per_language: int = 80,
    seed: int = 0,
    data_dir: Path = DATA_DIR,
) -> dict[str, int]:
    """Write images and JSONL files to `output_dir`.

    Args:
        languages: languages of stage 2 and of the evaluation; English must be among them.
        views: altered copies per training drawing, and as many collages.
        stage1_per_image: captions per training drawing; stage 1 shows no altered copies.
        stage2_count: rows of stage 2.
        text_per_language: things asked about in `text.jsonl`, four questions each (fewer where riddles run out).

    Returns:
        Number of rows (and images) written, by file name.

    Raises:
        ValueError: a language that the data does not have, or no English.
    """
    data, wording = load_data(data_dir), load_questions(data_dir)
    unknown = sorted(set(languages) - set(data.languages))
    if unknown or "en" not in languages or views < 1:
        raise ValueError(
            f"languages={list(languages)}, views={views}: choose languages out of {data.languages}, English included, "
            "and at least one view."
        )
    output = Path(output_dir)
    pictures = write_images(output, data, views, seed, data_dir)
    originals, altered_views, collages = pictures.originals, pictures.views, pictures.collages
    files = {
        "stage1.jsonl": stage1_rows(data, wording, originals, stage1_per_image, seed),
        "stage2.jsonl": stage2_rows(data, wording, originals, altered_views, collages, stage2_count, seed, languages),
        "eval.jsonl": eval_rows(data, wording, seed, languages),
        "text.jsonl": text_rows(data, wording, text_per_language, seed, languages),
    }
    for name, rows in files.items():
        write_jsonl(output / name, rows)
    return {"images": pictures.written, **{name: len(rows) for name, rows in files.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=list(PARROT_LANGUAGES))
    parser.add_argument("--views", type=int, default=3, help="altered copies and collages per training drawing")
    parser.add_argument("--stage1-per-image", type=int, default=8)
    parser.add_argument("--stage2-count", type=int, default=12_000)
    parser.add_argument("--text-per-language", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args())
    for name, number in write(args.pop("output"), **args).items():
        print(f"{number:7,d} {name}")
