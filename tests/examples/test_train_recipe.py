"""Recipes: what ships is readable, overrides win, and mistakes get one clear error."""

import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from train_recipe import read_recipe, sources  # noqa: E402

from parrot_data import Mixture  # noqa: E402


RECIPES = sorted((ROOT / "configuration" / "recipes").glob("*.yaml"))
ACCELERATE = sorted((ROOT / "configuration" / "accelerate").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    """Writes a small recipe with the given changes and returns its path."""

    def write(**changes):
        content = {
            "vision_tower": "tower",
            "language_model": "lm",
            "train_data": [{"path": "data.json", "image_folder": "images"}],
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return str(path)

    return write


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path):
    model, data, training = read_recipe([str(path), "--use_cpu", "--bf16", "false", "--tf32", "false"])
    assert model.checkpoint or (model.vision_tower and model.language_model)
    train, _ = sources(data)
    if isinstance(train, Mixture):
        assert len(train.languages) == 10 and train.languages["en"] == pytest.approx(0.5, abs=0.005)
    else:
        assert all(source.weight == 1 for source in train)
    assert training.gradient_accumulation_steps * training.per_device_train_batch_size == data.global_batch_size
    assert data.max_length == 2048 and training.num_train_epochs == 1 and training.weight_decay == 0


def test_shipped_recipes_hold_the_papers_numbers():
    def settings(name):
        model, data, training = read_recipe(
            [str(ROOT / "configuration/recipes" / name), "--use_cpu", "--bf16", "false", "--tf32", "false"]
        )
        return model.stage, training.learning_rate, data.global_batch_size, model.adapter.get("num_language_experts")

    assert settings("parrot_stage1.yaml") == ("alignment", 1e-3, 256, 0)
    assert settings("parrot_stage2.yaml") == ("instruction", 2e-5, 128, 6)
    assert settings("lrm_llava_stage1.yaml") == ("alignment", 1e-3, 24 * 8, 0)
    assert settings("lrm_llava_stage2.yaml")[:3] == ("instruction", 2e-5, 32 * 8)


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_shipped_accelerate_configurations_load(path):
    config = load_config_from_file(str(path))
    assert config.to_dict()["num_processes"] == 8
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    assert arguments.training_script == "train.py"


def test_the_command_line_wins(recipe):
    path = recipe(learning_rate="1e-3", lora={"r": 8}, max_length=100)
    model, data, training = read_recipe(
        [path, "--learning_rate", "5e-4", "--lora.r", "16", "--train_data.0.path=other.json", "--max_length", "50"]
    )
    assert training.learning_rate == 5e-4 and model.lora == {"r": 16}
    assert data.train_data[0] == {"path": "other.json", "image_folder": "images"} and data.max_length == 50
    assert read_recipe([path, "--train_data", "[{path: a.json}]"])[1].train_data == [{"path": "a.json"}]
    assert read_recipe([path])[2].learning_rate == 1e-3  # YAML reads 1e-3 as a text


@pytest.mark.parametrize(
    ("changes", "extra", "complaint"),
    [
        ({"learning_rat": 1e-3}, [], "unknown key `learning_rat`. Did you mean `learning_rate`"),
        ({}, ["--learning_rat", "1"], "learning_rat"),
        ({"max_length": "long"}, [], "argument --max_length/--max-length: invalid int value: 'long'"),
        ({"stage": "third"}, [], "argument --stage: invalid choice"),
        ({"on_bad_image": "ignore"}, [], "argument --on_bad_image/--on-bad-image: invalid choice"),
        ({"train_data": None}, [], "`train_data` is missing"),
        ({"train_data": [{"image_folder": "x"}]}, [], "entry 0 must be an entry with a `path`"),
        ({"train_data": [{"path": "x", "wieght": 2}]}, [], "unknown key `wieght`. Did you mean `weight`"),
        ({"train_data": [{"path": "x", "weight": -2}]}, [], "weight must be a number above 0"),
        ({"eval_data": {"en": {"path": "x", "streaming": True}}}, [], "an evaluation set cannot be a stream"),
        ({"language_model": None}, [], "must name the model in one way"),
        ({"checkpoint": "x"}, [], "must name the model in one way"),
        ({"preset": "parrot-8b"}, [], "Preset parrot-8b does not exist. Available: .*parrot-7b"),
        ({"stage": "alignment", "lora": {"r": 8}}, [], "`lora` belongs to the instruction stage"),
        ({"merge_lora": True}, [], "`merge_lora` needs `lora`"),
        ({"quantization": {"load_in_4bit": True}}, [], "`quantization` needs `lora`.*and a `checkpoint`"),
        ({"quantization": {}, "lora": {"r": 8}}, [], "`quantization` needs `lora`.*and a `checkpoint`"),
        ({"global_batch_size": 12, "per_device_train_batch_size": 8}, [], "is no multiple of 8 rows"),
        ({}, ["--train_data.3.path", "x"], "the recipe has no entry '3' there"),
    ],
)
def test_mistakes_are_named(recipe, changes, extra, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        read_recipe([recipe(**changes), *extra])


def test_a_mixture_is_a_file_and_what_the_recipe_changes(recipe):
    path = recipe(train_data={"mixture": "lrm_llava_stage2", "sources": {"a": {"path": "a.parquet"}}})
    train, _ = sources(read_recipe([path, "--train_data.non_english_ratio", "0.4", "--train_data.rows", "700"])[1])
    assert (
        train.languages["en"] == pytest.approx(1 / 1.4)
        and train.rows == 700
        and train.sources["a"].path == "a.parquet"
    )
    tasks = "--train_data.tasks={mvqa: 0.5, bvqa: 0.5}"
    assert sources(read_recipe([path, tasks])[1])[0].tasks == {"mvqa": 0.5, "bvqa": 0.5}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mixture": "lrm"}, "Mixture lrm does not exist. Available: lrm_llava_stage1, "),
        ({"langauges": {}}, "unknown key `langauges`. Did you mean `languages`"),
        ({"sources": None}, "a mixture needs `sources`"),
        ({"sources": {"a": {"file": "x"}}}, "source a must be an entry with a `path`"),
        ({"weights": {"b": 1.0}}, "name different things: a, b"),
    ],
)
def test_mistakes_in_a_mixture_are_named(recipe, changes, complaint):
    entry = {"mixture": "lrm_llava_stage2", "sources": {"a": {"path": "a.parquet"}}} | changes
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        read_recipe([recipe(train_data=entry)])


def test_unreadable_recipes(tmp_path):
    with pytest.raises(ValueError, match="first argument must be a recipe"):
        read_recipe(["--learning_rate", "1"])
    with pytest.raises(FileNotFoundError, match="none.yaml does not exist"):
        read_recipe([str(tmp_path / "none.yaml")])
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1,")
    with pytest.raises(ValueError, match="bad.yaml is not valid YAML"):
        read_recipe([str(bad)])
    bad.write_text("just text")
    with pytest.raises(ValueError, match="must hold keys and values"):
        read_recipe([str(bad)])


def test_presets_give_what_the_recipe_leaves_open(recipe):
    path = recipe(preset="parrot-7b", vision_tower=None, language_model="other", adapter={"num_language_experts": 2})
    model = read_recipe([path])[0]
    assert model.vision_tower == "openai/clip-vit-large-patch14-336" and model.language_model == "other"
    assert model.adapter["num_language_experts"] == 2 and model.adapter["expert_type"] == "swiglu"
