"""The model card: its front matter, its tables, and a usage snippet that runs as it is printed."""

import io
import re
import shutil
from pathlib import Path

import pytest
import tiny_models
import yaml
from huggingface_hub import ModelCard
from stranger import run_as_stranger
from transformers import TrainingArguments

from modeling_parrot.model_card import Score, TrainingStage, write_model_card


FACTS = {
    "languages": ["en", "zh"],
    "base_models": ["openai/clip-vit-base-patch16", "Qwen/Qwen1.5-0.5B-Chat"],
    "datasets": ["AIDC-AI/Parrot-dataset", "our own pictures"],
    "license": "apache-2.0",
}


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A tiny checkpoint with its processor."""
    folder = tmp_path_factory.mktemp("saved")
    for part in tiny():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the checkpoint for one test, and an image beside it."""
    tiny_models.picture().save(tmp_path / "image.png")
    return Path(shutil.copytree(saved, tmp_path / "tiny-parrot"))


def rows_of(text: str, first_cell: str) -> list[list[str]]:
    """Cells of the table rows that begin with a cell."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first_cell} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_snippet_runs_as_printed_without_the_package(tiny, folder, tmp_path):
    model, processor = tiny()
    inputs = tiny_models.encode(processor, [tiny_models.user("What is in the picture?", tiny_models.picture())])
    prompt = inputs["input_ids"].shape[1]
    answer = model.generate(**inputs, max_new_tokens=8)[0, prompt:]
    model.generation_config.eos_token_id = int(answer[-1])  # ends the answer early, to keep the test short
    model.generation_config.save_pretrained(folder)
    card = write_model_card(folder, **FACTS).read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    printed = run_as_stranger(snippet, cache=tmp_path)
    expected = processor.decode(model.generate(**inputs, max_new_tokens=256)[0, prompt:], skip_special_tokens=True)
    assert len(expected) > 0
    assert printed == io.StringIO(expected + "\n", newline=None).read()


def test_front_matter_is_what_the_hub_reads(folder):
    scores = [
        Score("MMMB", "accuracy", {"en": 61.25, "zh": 58.0, "mean": 59.6}, dataset="AIDC-AI/Parrot-dataset"),
        Score("MMBench", "accuracy", {"en": 70.7}, source="the paper"),
    ]
    data = ModelCard.load(write_model_card(folder, model_id="me/tiny", scores=scores, **FACTS)).data
    assert data.language == ["en", "zh"]
    assert data.base_model == FACTS["base_models"]
    assert data.datasets == ["AIDC-AI/Parrot-dataset"]  # what is no Hub id stays out
    assert (data.pipeline_tag, data.library_name, data.license) == ("image-text-to-text", "transformers", "apache-2.0")
    assert {"parrot", "multilingual", "mixture-of-experts"} <= set(data.tags)
    assert data.model_name == "tiny"
    # Only what was measured on the checkpoint is a result of the checkpoint.
    results = {(result.dataset_config, result.metric_value) for result in data.eval_results}
    assert results == {("en", 61.25), ("zh", 58.0), ("mean", 59.6)}
    assert {result.dataset_type for result in data.eval_results} == {"AIDC-AI/Parrot-dataset"}


def test_scores_are_tables_by_language_and_reported_ones_name_their_source(folder):
    scores = [
        Score("emoji", "4-way accuracy", {"zh": 71.0, "en": 75.55, "mean": 73.3}, split="held-out style"),
        Score("MMMB", "accuracy", {"en": 70.0, "zh": 68.13}, source="the PARROT paper, table 2", decimals=2),
    ]
    text = write_model_card(folder, scores=scores, **FACTS).read_text(encoding="utf-8")
    assert rows_of(text, "benchmark")[0] == ["benchmark", "metric", "en", "zh", "mean"]
    assert rows_of(text, "emoji, held-out style") == [
        ["emoji, held-out style", "4-way accuracy", "75.5", "71.0", "73.3"]
    ]
    assert rows_of(text, "MMMB") == [["MMMB", "accuracy", "70.00", "68.13"]]
    measured, reported = text.split("**Not measured on this checkpoint.** Reported by the PARROT paper, table 2:")
    assert "emoji" in measured and "| MMMB" not in measured and "| MMMB" in reported


def test_training_and_architecture_are_recorded(folder, tmp_path):
    arguments = TrainingArguments(
        output_dir=tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=8, learning_rate=2e-5,
        lr_scheduler_type="cosine", warmup_steps=0.03, num_train_epochs=2, use_cpu=True, seed=7,
    )  # fmt: skip
    stages = [
        TrainingStage("alignment", "projector", ["captions, 10K"], {"learning rate": 1e-3}),
        TrainingStage.from_arguments(
            "instruction", arguments, trains="projector, experts", data=["questions, 5K"], max_length=2048
        ),
    ]
    text = write_model_card(folder, training=stages, **FACTS).read_text(encoding="utf-8")
    assert rows_of(text, "trains") == [["trains", "projector", "projector, experts"]]
    assert rows_of(text, "learning rate") == [["learning rate", "0.001", "2e-05"]]
    assert rows_of(text, "batch size (all devices)") == [["batch size (all devices)", "", "32"]]
    assert rows_of(text, "warm-up") == [["warm-up", "", "3% of the steps"]]
    assert rows_of(text, "max length") == [["max length", "", "2048"]]
    assert "captions, 10K" in text and "questions, 5K" in text
    model = tiny_models.ParrotForConditionalGeneration.from_pretrained(folder)
    assert rows_of(text, "parameters") == [["parameters", f"{model.num_parameters():,}"]]
    assert rows_of(text, "language experts")[0][1].startswith("6, each SwiGLU with 20 hidden units")


def test_model_without_experts_says_so(tiny, tmp_path):
    model, _ = tiny(num_language_experts=0)
    model.save_pretrained(tmp_path)
    card = write_model_card(tmp_path, **FACTS)
    assert rows_of(card.read_text(encoding="utf-8"), "language experts")[0][1].startswith("none")
    assert "mixture-of-experts" not in ModelCard.load(card).data.tags


def test_local_base_models_stay_out_of_the_front_matter(folder, tmp_path, monkeypatch):
    (tmp_path / "outputs" / "tower").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    facts = {**FACTS, "base_models": ["outputs/tower", str(tmp_path / "outputs" / "tower")]}
    card = write_model_card(folder, model_id="me/tiny", **facts)
    text = card.read_text(encoding="utf-8")
    assert ModelCard.load(card).data.base_model is None
    assert "built from outputs/tower and tower." in text and str(tmp_path) not in text


def test_every_block_of_the_card_is_well_formed(folder):
    text = write_model_card(folder, scores=[Score("a", "b", {"en": 1.0})], **FACTS).read_text(encoding="utf-8")
    yaml.safe_load(text.split("---")[1])
    assert text.count("```") % 2 == 0 and "{{" not in text.replace("{{LRM-LLaVA}", "") and "{%" not in text
    assert text.endswith("```\n") and "\n\n\n" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):  # the rows of a table have equally many cells
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "sun2025parrot" in text and "li2025lrmllava" in text


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"languages": []}, "languages"), ({"languages": ["English"]}, "ISO 639"), ({"base_models": []}, "base models")],
)
def test_incomplete_facts_are_refused_before_anything_is_written(folder, facts, message):
    with pytest.raises(ValueError, match=message):
        write_model_card(folder, **{**FACTS, **facts})
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("values", [{}, {"en": float("nan")}, {"en": "70"}])
def test_a_score_without_numbers_is_refused(values):
    with pytest.raises(ValueError, match="MMMB"):
        Score("MMMB", "accuracy", values)
