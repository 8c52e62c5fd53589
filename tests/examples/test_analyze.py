"""`analyze.py` as people call it: every plot comes with the data that it shows, and missing arguments are named."""

import csv
import json
import sys
from pathlib import Path

import pytest
import tiny_models
from PIL import Image
from tiny_data import encoded, write_tsv


pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import analyze  # noqa: E402


QUESTIONS = {"en": ("What is this?", "a cat", "a dog"), "ru": ("Что это?", "кошка", "собака")}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("benchmark"), []
    for language, (question, one, other) in QUESTIONS.items():
        rows = [
            {"index": n, "image": encoded(n), "question": question, "A": one, "B": other, "answer": "AB"[n % 2]}
            for n in range(12)
        ]
        files.append(write_tsv(folder / f"mmmb_{language}.tsv", rows))
    return files


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["analyze.py", *map(str, arguments)])
    analyze.main()


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path):
    with Image.open(path) as image:
        return image.width > 300 and len(image.convert("L").getcolors()) > 2


def test_experts_gives_every_language_weights_that_sum_to_one(checkpoint, benchmark, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "experts", "--model", checkpoint, "--benchmark", *benchmark, "--output", tmp_path)
    rows = read_csv(tmp_path / "experts.csv")
    for language in QUESTIONS:
        weights = [float(row["mean weight"]) for row in rows if row["language"] == language]
        assert len(weights) == 3 and sum(weights) == pytest.approx(1, abs=1e-4)
    assert is_picture(tmp_path / "experts.png") and "experts.csv" in capsys.readouterr().out


def test_words_shows_text_that_may_hold_markup_and_shares_that_sum_to_one(checkpoint, tmp_path, monkeypatch):
    tiny_models.picture(0).save(tmp_path / "image.png")
    question = "ماذا <b>في</b> الصورة؟"
    run(monkeypatch, "words", "--model", checkpoint, "--image", tmp_path / "image.png", "--question", question,
        "--output", tmp_path)  # fmt: skip
    page = (tmp_path / "words.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "dir='auto'" in page
    for name, column in (("words", "weight"), ("regions", "share")):
        assert sum(float(row[column]) for row in read_csv(tmp_path / f"{name}.csv")) == pytest.approx(1, abs=1e-3)
    assert is_picture(tmp_path / "regions.png")


def test_gap_has_numbers_for_each_language_beside_the_plot(checkpoint, benchmark, tmp_path, monkeypatch):
    run(monkeypatch, "gap", "--model", checkpoint, "--benchmark", *benchmark, "--output", tmp_path)
    rows = read_csv(tmp_path / "gap.csv")
    assert [row["language"] for row in rows] == list(QUESTIONS)
    assert all(0 <= float(row["separability"]) <= 1 and -1 <= float(row["mean cosine"]) <= 1 for row in rows)
    assert len(read_csv(tmp_path / "gap_points.csv")) == 2 * 2 * 12 and is_picture(tmp_path / "gap.png")


def scores_file(path, model, values, title="MMMB"):
    content = {
        "title": title, "settings": {"model": model}, "rates": dict.fromkeys(values, {}),
        "scores": {language: {"accuracy": [value, value, value]} for language, value in values.items()},
    }  # fmt: skip
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_radar_draws_several_models_and_refuses_other_benchmarks(tmp_path, monkeypatch):
    one = scores_file(tmp_path / "one.json", "a/first", {"en": 70, "zh": 60, "ar": 50})
    two = scores_file(tmp_path / "two.json", "second", {"en": 72, "zh": 50, "ar": 40, "tr": 3})
    run(monkeypatch, "radar", "--scores", one, two, "--output", tmp_path)
    rows = read_csv(tmp_path / "radar.csv")
    assert [(row["model"], row["language"]) for row in rows[:3]] == [("first", "en"), ("first", "zh"), ("first", "ar")]
    assert len(rows) == 6 and is_picture(tmp_path / "radar.png")

    content = json.loads(one.read_text(encoding="utf-8"))
    one.write_text(json.dumps({**content, "likelihood": {"texts": content["scores"]}}), encoding="utf-8")
    run(monkeypatch, "radar", "--scores", one, two, "--output", tmp_path)
    assert [row["way"] for row in read_csv(tmp_path / "radar.csv")] == 3 * ["answers"] + 3 * ["likelihood"] + 3 * [
        "answers"
    ]

    other = scores_file(tmp_path / "other.json", "second", {"en": 72, "zh": 50, "ar": 40}, title="POPE")
    with pytest.raises(SystemExit, match="one benchmark in at least three languages"):
        run(monkeypatch, "radar", "--scores", one, other, "--output", tmp_path)


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "words", "--model", "somewhere", "--output", tmp_path / "new")
    assert "words needs --image and --question" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
