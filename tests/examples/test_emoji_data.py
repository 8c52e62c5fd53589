"""The emoji example's data and rows: what is held out stays out, wording is complete, writing repeats itself."""

import json
import random
import re
import string
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image


EMOJI = Path(__file__).parents[2] / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))

import conversations  # noqa: E402
import emoji_data  # noqa: E402
import make_data  # noqa: E402


LANGUAGES = ["en", "zh", "pt", "ar", "tr", "ru", "cs", "de", "fr", "hr", "it", "ro", "es"]
PLACEHOLDERS = {
    "caption": set(),
    "naming": set(),
    "choice": {"options"},
    "shown": {"name"},
    "riddle": {"keywords"},
    "riddle_choice": {"keywords", "options"},
}


@pytest.fixture(scope="module")
def data():
    return emoji_data.load_data()


@pytest.fixture(scope="module")
def everything():
    """Also the training concepts that the tower alone has seen."""
    return emoji_data.load_data(trained_per_group=None)


@pytest.fixture(scope="module")
def wording():
    return conversations.load_questions()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder as `write` makes it, small, and the counts that it reported."""
    folder = tmp_path_factory.mktemp("emoji")
    counts = conversations.write(folder, views=1, stage1_per_image=1, stage2_count=1500, text_per_language=10)
    return folder, counts


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


# The shipped data


def test_concepts_cover_the_groups_and_hold_out_a_share_of_each(everything):
    assert everything.languages == LANGUAGES
    assert len(everything.concepts) >= 200
    groups = Counter(concept.group for concept in everything.concepts)
    held_out = Counter(concept.group for concept in everything.split("held_out"))
    assert len(groups) == 6
    for group, count in groups.items():
        assert held_out[group] == round(0.15 * count)
        assert held_out[group] >= 4, "a held-out concept needs three distractors of its own split"


def test_questions_are_about_part_of_what_the_tower_saw(data, everything):
    assert 200 <= len(data.concepts) < len(everything.concepts)
    assert data.split("held_out") == everything.split("held_out")
    seen = [concept.id for concept in everything.split("train")]
    asked = Counter(concept.group for concept in data.split("train") if concept.id in seen)
    assert asked.total() == len(data.split("train")) and max(asked.values()) == emoji_data.TRAINED_PER_GROUP


def test_names_are_unique_and_without_list_separators(everything, wording):
    for lang in LANGUAGES:
        names = [concept.names[lang] for concept in everything.concepts]
        assert len({name.casefold() for name in names}) == len(names)
        assert all(name and wording[lang]["separator"].strip() not in name for name in names)


def test_names_spelled_as_in_english_are_marked(everything):
    for concept in everything.concepts:
        same = [x for x in LANGUAGES[1:] if concept.names[x].casefold() == concept.names["en"].casefold()]
        assert concept.spelled_as_english == same


def test_every_concept_is_drawn_in_the_held_out_style_and_in_several_others(everything):
    images = emoji_data.load_images()
    assert everything.held_out_style not in everything.train_styles and len(everything.train_styles) >= 4
    assert not {"fluent3d", "fluentflat"} & {everything.held_out_style}, "both draw the same designs"
    for concept in everything.concepts:
        assert (everything.held_out_style, concept.id) in images
        assert (conversations.KNOWN_STYLE, concept.id) in images
        assert sum((style, concept.id) in images for style in everything.train_styles) >= 3
    assert {image.size for image in images.values()} == {(everything.image_size, everything.image_size)}


def test_no_drawing_of_evaluation_is_also_one_of_training(everything):
    images = emoji_data.load_images()
    trained = {
        images[style, concept.id].tobytes()
        for concept in everything.split("train")
        for style in everything.train_styles
        if (style, concept.id) in images
    }
    held_out = {concept.id for concept in everything.split("held_out")}
    unseen = [image for (style, id_), image in images.items() if style == everything.held_out_style or id_ in held_out]
    assert not any(image.tobytes() in trained for image in unseen)


def test_files_are_small_and_every_style_has_its_licence(everything):
    assert sum(path.stat().st_size for path in (EMOJI / "data").iterdir()) < 12e6
    licences = (EMOJI / "data" / "LICENSES.md").read_text(encoding="utf-8")
    for style in [*everything.train_styles, everything.held_out_style]:
        assert f"| {style} |" in licences
    assert "Unicode-3.0" in licences


def test_images_survive_the_encoding_without_loss():
    drawing = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGBA")
    shown = make_data.flatten(make_data.encode(drawing))
    assert shown.tobytes() == drawing.convert("RGB").tobytes()


# Wording


@pytest.mark.parametrize("lang", LANGUAGES)
def test_wording_is_complete(wording, lang):
    for task, expected in PLACEHOLDERS.items():
        lines = wording[lang][task]
        assert len(lines) == len(set(lines)) >= 2
        for line in lines:
            assert {field for _, field, _, _ in string.Formatter().parse(line) if field} == expected
    assert {len(wording[lang][task]) for task in PLACEHOLDERS} <= {2, 3, 4}
    assert set(wording[lang]) == {"language", "separator", *PLACEHOLDERS}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_language_has_as_many_variants_as_english(wording, lang):
    assert all(len(wording[lang][task]) == len(wording["en"][task]) for task in PLACEHOLDERS)


@pytest.mark.parametrize(
    ("lang", "question"),
    [("zh", "？"), ("ar", "؟"), ("es", "¿"), ("fr", " ?"), ("en", "?")],
)
def test_languages_keep_their_punctuation(wording, lang, question):
    assert all(question in line for line in wording[lang]["riddle"])
    foreign = {"?", "？", "؟"} - {question.strip() if question != "¿" else "?"}
    assert not any(mark in line for task in PLACEHOLDERS for line in wording[lang][task] for mark in foreign)


# Written rows


def test_no_stage_shows_a_held_out_style_or_concept(written, data):
    folder, _ = written
    held_out = {concept.id for concept in data.split("held_out")}
    for name in ("stage1.jsonl", "stage2.jsonl"):
        shown = [Path(row["image"]) for row in read(folder, name) if "image" in row]
        assert shown
        for path in shown:
            assert path.parent.name in data.train_styles
            assert re.sub("-(view|collage).$", "", path.stem) not in held_out
            assert (folder / path).is_file()


def test_choices_show_no_drawing_as_the_tower_knows_it(written):
    rows = [row for row in read(written[0], "stage2.jsonl") if "image" in row]
    shown = {(row["task"], "-view" in row["image"] or "-collage" in row["image"]) for row in rows}
    assert shown == {("choice", True), ("naming", True), ("naming", False)}


def test_a_collage_asks_for_one_of_its_two_things_and_does_not_offer_the_other(data, wording):
    concepts = data.split("train")
    images = {concept.id: ["one.png"] for concept in concepts}
    pairs = dict(zip((c.id for c in concepts), (c.id for c in [*concepts[1:], concepts[0]]), strict=True))
    collages = {id_: [(f"{id_} {other}.png", other)] for id_, other in pairs.items()}
    names = {concept.names["en"]: concept.id for concept in data.concepts}
    seen = 0
    for row in conversations.stage2_rows(data, wording, images, images, collages, 1500, 0):
        question, answer = (turn["value"] for turn in row["conversations"])
        if row["language"] == "en" and row.get("image", "one.png") != "one.png":
            asked, other = row["image"].removesuffix(".png").split()
            listed = re.search(r": (.*?)[.?]", question)
            options = [names[name] for name in listed[1].split(", ")]
            assert names[answer] == asked and asked in options and other not in options
            seen += 1
    assert seen > 100


def test_no_answer_or_option_beside_a_training_picture_is_a_held_out_name(written, data):
    folder, _ = written
    for row in read(folder, "stage2.jsonl"):
        if "image" in row and row["task"] != "caption":
            answers = {turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"}
            assert not answers & {concept.names[row["language"]] for concept in data.split("held_out")}


def test_training_rows_are_llava_rows(written):
    folder, counts = written
    for name in ("stage1.jsonl", "stage2.jsonl"):
        rows = read(folder, name)
        assert len(rows) == counts[name] == len({row["id"] for row in rows})
        for row in rows:
            values = [turn["value"] for turn in row["conversations"]]
            roles = [turn["from"] for turn in row["conversations"]]
            assert roles == ["human", "gpt"] * (len(roles) // 2)
            assert all(value.strip() for value in values)
            assert "".join(values).count("<image>") == ("image" in row)
            assert values[0].startswith("<image>\n") == ("image" in row)


def test_stage2_is_rich_in_english_and_has_every_language(written):
    rows = read(written[0], "stage2.jsonl")
    shown = Counter(row["language"] for row in rows if "image" in row)
    share = {lang: count / shown.total() for lang, count in shown.items()}
    assert share["en"] > 0.7
    assert share["zh"] == pytest.approx(conversations.CHINESE_SHARE, abs=0.01)
    for lang in ("pt", "ar", "tr", "ru"):
        assert share[lang] == pytest.approx(conversations.OTHER_SHARE, abs=0.01)
    texts = Counter(row["language"] for row in rows if "image" not in row)
    assert set(texts) == set(shown) and max(texts.values()) - min(texts.values()) <= 1


def test_choice_answers_are_one_of_the_options_and_of_their_group(written, data):
    rows = read(written[0], "eval.jsonl")
    by_name = {lang: {concept.names[lang]: concept for concept in data.concepts} for lang in LANGUAGES}
    position = Counter()
    for row in rows:
        if row["kind"] == "choice":
            options = [by_name[row["language"]][name] for name in row["options"]]
            assert len({option.id for option in options}) == 4
            assert {option.group for option in options} == {row["group"]}
            assert all(name in row["question"] for name in row["options"])
            position[row["options"].index(row["answer"])] += 1
    assert min(position.values()) > 0.2 * position.total(), "the right option must not have a favourite place"


def test_eval_shows_only_what_no_training_saw_and_the_same_in_every_language(written, data):
    rows = read(written[0], "eval.jsonl")
    held_out = {concept.id for concept in data.split("held_out")}
    for row in rows:
        if row["split"] == "style":
            assert row["style"] == data.held_out_style and row["concept"] not in held_out
        else:
            assert row["concept"] in held_out
        assert (written[0] / row["image"]).is_file()
    asked = {
        lang: [(row["kind"], row["image"]) for row in rows if row["language"] == lang]
        for lang in conversations.PARROT_LANGUAGES
    }
    assert all(questions == asked["en"] for questions in asked.values())


def test_language_marked_names_are_spelled_so_in_one_language_only(written, data):
    concepts = {concept.id: concept for concept in data.concepts}
    for row in read(written[0], "eval.jsonl"):
        spellings = [concepts[row["concept"]].names[lang].casefold() for lang in conversations.PARROT_LANGUAGES]
        assert row["language_marked"] == (spellings.count(row["answer"].casefold()) == 1)


def test_riddles_of_training_and_evaluation_differ(data):
    rng = random.Random(0)
    for concept in data.concepts[:60]:
        for lang in ("en", "ar"):
            trained = conversations.riddle_keywords(concept, lang, rng, held_out=False)
            asked = conversations.riddle_keywords(concept, lang, rng, held_out=True)
            assert trained is None or asked is None or set(trained) != set(asked)


def test_clues_do_not_give_the_name_away(data):
    for concept in data.concepts:
        for lang in LANGUAGES:
            name = concept.names[lang].casefold()
            assert not any(name in word.casefold() for word in conversations.clues(concept, lang))


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(written, tmp_path):
    folder, counts = written
    options = {"views": 1, "stage1_per_image": 1, "stage2_count": 1500, "text_per_language": 10}
    assert conversations.write(tmp_path / "again", **options) == counts
    for path in sorted(folder.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path
    data, wording = emoji_data.load_data(), conversations.load_questions()
    images = {concept.id: [f"images/noto/{concept.id}.png"] for concept in data.split("train")}
    rows = [conversations.stage2_rows(data, wording, images, images, {}, 200, seed) for seed in (0, 1)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("options", [{"languages": ["en", "xx"]}, {"languages": ["zh"]}, {"views": 0}])
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises(ValueError, match="choose languages out of"):
        conversations.write(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_small_group_is_refused(data, wording):
    concept = data.concepts[0]
    with pytest.raises(ValueError, match="has only 2 concepts beside"):
        conversations.options_for(concept, data.concepts[:3], "en", random.Random(0))
