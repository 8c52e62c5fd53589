"""The emoji as benchmarks: every form is read back, is the same in every language, and its training rows fit their options."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image


EMOJI = Path(__file__).resolve().parents[2] / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))
import benchmarks  # noqa: E402
from conversations import PARROT_LANGUAGES, image_path  # noqa: E402
from emoji_data import load_data  # noqa: E402

from parrot_eval.benchmarks import load_benchmark  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    data = load_data()
    for concept in data.split("train"):  # only their names are looked at
        path = pictures / image_path(data.train_styles[0], concept.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path.parent / f"{concept.id}-view1.png")
    benchmarks.write(pictures / "out", PARROT_LANGUAGES, pictures, count=200)
    return pictures


@pytest.mark.parametrize(
    ("name", "like", "count"),
    [("mmmb", "mmmb", 165), ("mmbench_dev", "mmbench", 240), ("mme", "mme", 330), ("pope", "pope", 990)],
)
def test_every_form_is_read_in_six_languages(folder, name, like, count):
    files = [str(folder / "out" / f"{name}_{language}.tsv") for language in PARROT_LANGUAGES]
    protocol = "yes_no" if like == "mme" else None  # of MME's 14 subtasks there is one
    sets = load_benchmark(files, like=like, protocol=protocol).sets
    assert {language: len(questions) for language, questions in sets.items()} == dict.fromkeys(PARROT_LANGUAGES, count)
    keys = {language: [(q.index, q.target, q.category) for q in questions] for language, questions in sets.items()}
    assert all(keys[language] == keys["en"] for language in keys)
    assert len({tuple(q.question for q in questions) for questions in sets.values()}) == 6


def test_training_rows_answer_with_an_option_or_a_word_of_the_language(folder):
    rows = [json.loads(line) for line in (folder / "formats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200 and {row["task"] for row in rows} == {"option", "yes_no"}
    for row in rows:
        question, answer = (turn["value"] for turn in row["conversations"])
        options = re.findall(r"^[A-D]\. (.*)$", question, re.MULTILINE)
        assert (answer in options and len(set(options)) == 4) if row["task"] == "option" else not options
