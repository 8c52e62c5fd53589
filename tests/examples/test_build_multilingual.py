"""The program that makes data multilingual, from an audit to rows for training, on human translations."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "examples" / "emoji"))
import build_multilingual  # noqa: E402
import parallel  # noqa: E402


RECIPES = sorted((ROOT / "configuration" / "data").glob("*.yaml")) + sorted(
    (ROOT / "examples" / "emoji" / "recipes").glob("translate_*.yaml")
)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """Naming questions about emoji in English, with their translations, and a recipe for three languages."""
    folder = tmp_path_factory.mktemp("emoji")
    parallel.write(folder, views=1, captions_per_image=1, questions=400)
    recipe = yaml.safe_load((ROOT / "examples/emoji/recipes/translate_questions.yaml").read_text(encoding="utf-8"))
    recipe |= {"languages": ["cs", "ru", "zh"], "output": str(folder / "built"), "rows_per_file": 30}
    recipe |= {"source": {"path": str(folder / "english_questions.json"), "image_folder": str(folder)}}
    recipe["translator"]["path"] = str(folder / "translations.csv")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def run(capsys, *arguments):
    build_multilingual.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path):
    settings, output = build_multilingual.read_recipe(str(path), [])
    assert len(settings.languages) == 9 and str(output) != "."
    assert build_multilingual.read_recipe(str(path), ["--languages", "[cs]"])[0].languages == ["cs"]


def test_the_whole_way(emoji, capsys):
    recipe = emoji / "recipe.yaml"
    printed = run(capsys, "audit", f"english={emoji / 'english_questions.json'}", "--output", emoji / "audit")
    assert "| en " in printed and (emoji / "audit" / "audit.png").stat().st_size > 1000

    printed = run(capsys, "build", recipe, "--dry-run")
    assert "rows into cs, ru, zh" in printed and not (emoji / "built").exists()
    for index in (1, 2):
        printed = run(capsys, "build", recipe, "--shard", f"{index}/2")
    rows = [row for path in sorted((emoji / "built").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    english = json.loads((emoji / "english_questions.json").read_text(encoding="utf-8"))
    assert [row["texts"]["en"][0]["answer"] for row in rows] == [row["conversations"][1]["value"] for row in english]
    known = {line["en"]: line for line in parallel.translations(read_lines(emoji / "questions.jsonl"))}
    for row in rows:
        answer = (row["texts"]["cs"] or row["pending"]["cs"])[0]["answer"]
        assert answer == known[row["texts"]["en"][0]["answer"]]["cs"]

    printed = run(capsys, "report", recipe)
    assert f"{len(rows):,} rows in" in printed and (emoji / "built" / "report" / "quality.png").exists()

    printed = run(capsys, "review", recipe, emoji / "review.csv")
    waiting = int(printed.split(" with ")[1].split(" ")[0])
    text = (emoji / "review.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(text) >= waiting + 1 and text[0].endswith(",correction")
    (emoji / "review.csv").write_text("\n".join([text[0], *(line + "ok" for line in text[1:])]), encoding="utf-8")
    printed = run(capsys, "apply", recipe, emoji / "review.csv")
    assert "0 dropped, 0 waiting" in printed

    mixture = emoji / "mixture.yaml"
    shares = {"languages": {"en": 0.4, "cs": 0.2, "ru": 0.2, "zh": 0.2}, "tasks": {"mvqa": 0.5, "ep_vqa": 0.5}}
    mixture.write_text(yaml.safe_dump(shares), encoding="utf-8")
    printed = run(capsys, "rows", recipe, "--mixture", mixture, "--output", emoji / "rows.parquet")
    assert "en: " in printed and "(40.0%)" in printed
    made = pq.read_table(emoji / "rows.parquet").to_pylist()
    assert {row["task"] for row in made} == {"mvqa", "ep_vqa"}
    pivot = next(row for row in made if row["task"] == "ep_vqa")
    assert pivot["messages"][1]["content"][0]["text"].startswith("English: ")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["build", "none"], "Recipe none does not exist. Available: lrm_llava"),
        (["build", "RECIPE", "--langauges", "[cs]"], "unknown argument --langauges"),
        (["build", "RECIPE", "--source.paht", "x"], "unknown key `paht`. Did you mean `path`"),
        (["build", "RECIPE", "--source.path", "gone.json"], "gone.json does not exist"),
        (["build", "RECIPE", "--translator.kind", "magic"], "magic"),
        (["build", "RECIPE", "--quality", "{min_bleu: 3}"], "Unknown quality setting 'min_bleu'"),
        (["report", "RECIPE", "--output", "nothing"], "nothing was built there"),
        (["audit", "gone.json", "--output", "x"], "gone.json does not exist"),
    ],
)
def test_mistakes_are_named(emoji, arguments, complaint):
    arguments = [str(emoji / "recipe.yaml") if text == "RECIPE" else text for text in arguments]
    with pytest.raises(SystemExit, match=complaint):
        build_multilingual.main(arguments)


def test_a_bad_shard_is_refused(emoji, capsys):
    with pytest.raises(SystemExit):
        build_multilingual.main(["build", str(emoji / "recipe.yaml"), "--shard", "4/3"])
    assert "shard" in capsys.readouterr().err
