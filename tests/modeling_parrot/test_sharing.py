"""What would go to the Hub, without a network: the calls to `HfApi` are caught and their files looked at."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_models import encode, picture, user
from transformers import AutoModelForImageTextToText

from configuration_parrot import SHIPPED_MODULES
from modeling_parrot.model_card import write_model_card
from modeling_parrot.sharing import share, shareable_files


FACTS = {"languages": ["en", "ar"], "base_models": ["a/b", "c/d"], "datasets": [], "license": "apache-2.0"}
CODE = {f"{module.rsplit('.')[-1]}.py" for module in SHIPPED_MODULES}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A tiny checkpoint with its processor."""
    folder = tmp_path_factory.mktemp("saved")
    for part in tiny():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A complete checkpoint, among what a training run leaves beside it."""
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    write_model_card(folder, **FACTS)
    for leftover in (
        "training_args.bin", "optimizer.pt", "trainer_state.json", ".env", "notes.txt", "checkpoint-10/model.safetensors",
        "checkpoint-10/config.json", "checkpoint-10/optimizer.pt", "__pycache__/modeling_parrot.cpython-311.pyc",
        "runs/events.out.tfevents.1", "unrelated.py", "pytorch_model.bin",
    ):  # fmt: skip
        (folder / leftover).parent.mkdir(exist_ok=True)
        (folder / leftover).write_text("{}")
    return folder


@pytest.fixture
def uploads(monkeypatch):
    """The uploads that were asked for: repository, arguments and the files that the arguments select."""
    seen = []

    def create_repo(self, repo_id, **options):
        repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
        seen.append({"created": repo_id, **options})
        return SimpleNamespace(repo_id=repo_id, __str__=lambda: repo_id)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns=None, ignore_patterns=None, **options):
        paths = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        selected = filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        card = (folder_path / "README.md").read_text(encoding="utf-8")
        seen.append({"repo_id": repo_id, "files": set(selected), "card": card, **options})

    def create_commit(self, repo_id, operations, **options):
        seen.append({"repo_id": repo_id, "files": {operation.path_in_repo for operation in operations}})

    for replacement in (create_repo, upload_folder, create_commit):
        monkeypatch.setattr(HfApi, replacement.__name__, replacement)
    return seen


def test_one_call_uploads_model_processor_code_and_card_and_nothing_else(folder, uploads):
    share(folder, "tiny-parrot", private=True, revision="v1")
    created, upload = uploads
    assert (created["created"], created["private"], created["exist_ok"]) == ("me/tiny-parrot", True, True)
    assert (upload["repo_id"], upload["revision"]) == ("me/tiny-parrot", "v1")
    assert upload["files"] == {*MODEL, *PROCESSOR, *CODE, "README.md"}
    assert 'model_id = "me/tiny-parrot"' in upload["card"] and str(folder) not in upload["card"]


def test_sharded_weights_and_the_cards_pictures_go_along(tiny, folder, uploads):
    model, _ = tiny()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "router.png").write_bytes(b"a picture")
    write_model_card(folder, pictures={"Router weights per language": "router.png"}, **FACTS)
    share(folder, "me/tiny")
    shards = {path.name for path in folder.glob("model-*-of-*.safetensors")}
    assert len(shards) > 1
    assert uploads[-1]["files"] == {
        *MODEL, *PROCESSOR, *CODE, *shards, "README.md", "router.png", "model.safetensors.index.json",
    } - {"model.safetensors"}  # fmt: skip


def test_push_to_hub_of_model_and_processor_carries_the_code(tiny, uploads, monkeypatch):
    model, processor = tiny()
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card", lambda *a, **k: SimpleNamespace(save=print)
    )
    model.push_to_hub("me/tiny")
    processor.push_to_hub("me/tiny")
    of_model, of_processor = (call["files"] for call in uploads if "files" in call)
    assert MODEL | CODE <= of_model
    assert PROCESSOR | CODE <= of_processor


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "README.md"])
def test_missing_file_is_named_before_anything_is_uploaded(folder, uploads, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing.*(save|write)"):
        share(folder, "me/tiny")
    assert uploads == []


@pytest.mark.parametrize("name", ["language_experts_parrot.py", "processing_parrot.py"])
def test_missing_code_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        shareable_files(folder)


def test_all_problems_are_listed_at_once(folder):
    for name in ("README.md", "tokenizer.json", "model.safetensors", "configuration_parrot.py"):
        (folder / name).unlink()
    with pytest.raises(ValueError) as caught:
        shareable_files(folder)
    for name in ("README.md", "tokenizer.json", "model.safetensors", "configuration_parrot.py"):
        assert f"{name} is missing" in str(caught.value)


def test_config_without_auto_map_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="auto_map"):
        shareable_files(folder)


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors is missing or not complete"):
        shareable_files(folder)


def test_a_missing_shard_is_refused(tiny, folder):
    model, _ = tiny()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    lost = sorted(folder.glob("model-*-of-*.safetensors"))[-1]
    lost.unlink()
    with pytest.raises(ValueError, match=lost.name):
        shareable_files(folder)


def test_an_adapter_alone_is_refused(tiny, folder):
    model, _ = tiny()
    (folder / "model.safetensors").unlink()
    get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj")).save_pretrained(folder)
    write_model_card(folder, parameters=1, **FACTS)
    with pytest.raises(ValueError, match="merge"):
        shareable_files(folder)


def test_a_merged_adapter_is_a_checkpoint_like_any_other(tiny, folder):
    model, processor = tiny()
    inputs = encode(processor, [user("What?", picture(0))])
    plain = set(load_file(folder / "model.safetensors"))
    config = LoraConfig(
        target_modules=r".*language_model.*q_proj", modules_to_save=["language_experts"], init_lora_weights=False
    )
    adapted = get_peft_model(model, config).eval()
    before = adapted(**inputs).logits
    adapted.merge_and_unload().save_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder)
    torch.testing.assert_close(again(**inputs).logits, before, rtol=1e-4, atol=1e-4)
    assert set(load_file(folder / "model.safetensors")) == plain
    assert {*MODEL, *CODE} <= set(shareable_files(folder))


def test_a_card_the_hub_cannot_sort_is_refused(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    with pytest.raises(ValueError, match="pipeline_tag"):
        shareable_files(folder)


@pytest.mark.parametrize("link", ["absent.png", "../outside.png"])
def test_a_picture_outside_the_folder_is_refused(folder, link):
    (folder.parent / "outside.png").write_bytes(b"a picture")
    write_model_card(folder, pictures={"Picture": link}, **FACTS)
    with pytest.raises(ValueError, match=link):
        shareable_files(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        share(tmp_path / "absent", "me/tiny")
