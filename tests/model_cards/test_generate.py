"""The committed cards are what the generator makes, and the papers' numbers in them are marked as the papers'."""

import runpy
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard


CARDS = Path(__file__).parents[2] / "model_cards"
RECIPES = CARDS.parent / "configuration" / "recipes"
NAMES = ["parrot-7b", "parrot-14b", "lrm-llava-13b", "lrm-llava-7b"]


@pytest.mark.parametrize("name", NAMES)
def test_committed_card_is_the_generated_one(name):
    generated = runpy.run_path(str(CARDS / "generate.py"))["preset_cards"]()
    assert set(generated) == {CARDS / f"{name}.md" for name in NAMES}
    assert (CARDS / f"{name}.md").read_text(encoding="utf-8") == generated[CARDS / f"{name}.md"]


@pytest.mark.parametrize("name", NAMES)
def test_papers_numbers_are_no_results_of_ours(name):
    card = ModelCard.load(CARDS / f"{name}.md")
    assert card.data.eval_results is None
    scores = card.text.split("## Scores")[1].split("## Limits")[0]
    assert "Measured on this checkpoint" not in card.text
    assert scores.strip().startswith("**Not measured on this checkpoint.** Reported by the ")
    assert "No weights come with it" in card.text


@pytest.mark.parametrize("name", NAMES)
def test_recipe_on_the_card_is_the_committed_recipe(name):
    entry = yaml.safe_load((CARDS / "presets.yaml").read_text(encoding="utf-8"))["cards"][name]
    family = "parrot" if name.startswith("parrot") else "lrm_llava"
    for number, stage in enumerate(entry["training"], start=1):
        recipe = yaml.safe_load((RECIPES / f"{family}_stage{number}.yaml").read_text(encoding="utf-8"))
        on_card = stage["hyperparameters"]
        assert stage["name"] == recipe["stage"]
        assert float(on_card["learning rate"]) == recipe["learning_rate"]
        assert on_card["batch size (all devices)"] == recipe["global_batch_size"]
        assert on_card["epochs"] == recipe["num_train_epochs"]
        assert on_card["maximum length"] == recipe["max_length"]


def test_generator_fills_the_card_of_a_checkpoint(tiny, tmp_path, monkeypatch):
    model, _ = tiny()
    model.save_pretrained(tmp_path / "model")
    facts = {
        "model_id": "me/tiny", "languages": ["en", "tr"], "base_models": ["a/b"], "datasets": ["c/d"], "license": "mit",
        "scores": [{"benchmark": "MMMB", "metric": "accuracy", "values": {"en": 50.0, "tr": 40.0}}],
        "training": [{"name": "alignment", "trains": "projector", "hyperparameters": {"epochs": 1}}],
    }  # fmt: skip
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(facts))
    arguments = ["--model", str(tmp_path / "model"), "--facts", str(tmp_path / "facts.yaml")]
    monkeypatch.setattr("sys.argv", ["generate.py", *arguments])
    runpy.run_path(str(CARDS / "generate.py"), run_name="__main__")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert {result.metric_value for result in card.data.eval_results} == {50.0, 40.0}
    assert "| epochs | 1 |" in card.text
