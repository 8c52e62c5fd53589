"""A saved folder loads, answers, and can be saved again where nothing of ours is installed."""

import json

import pytest
import torch
from stranger import run_as_stranger
from tiny_models import encode, picture, user

from configuration_parrot import AUTO_MAP
from modeling_parrot import ParrotForConditionalGeneration


ANSWER = """
from PIL import Image
folder, image = sys.argv[1:3]
options = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(folder, **options)
model = AutoModelForImageTextToText.from_pretrained(folder, **options)
chat = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "Resimde ne var?"}]}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
print(tokens[0, inputs["input_ids"].shape[1]:].tolist())
"""

SAVE_AGAIN = """
folder, target = sys.argv[1:3]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(target)
processor.save_pretrained(target)
"""


@pytest.fixture
def saved(tiny, tmp_path):
    """A saved checkpoint, an image file, and the tokens the model answers here."""
    model, processor = tiny()
    image = tmp_path / "image.png"
    picture(5).save(image)
    inputs = encode(processor, [user("Resimde ne var?", picture(5))])
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved", image, tokens


def test_saved_folder_answers_the_same_without_the_package(saved, tmp_path):
    folder, image, tokens = saved
    assert json.loads(run_as_stranger(ANSWER, folder, image, cache=tmp_path)) == tokens


def test_model_loaded_as_remote_code_can_be_saved_again(saved, tmp_path):
    folder, image, tokens = saved
    run_as_stranger(SAVE_AGAIN, folder, tmp_path / "again", cache=tmp_path)
    # A module cache of its own, and the first folder gone: the second must stand alone.
    folder.rename(tmp_path / "moved")
    (tmp_path / "cache").mkdir()
    assert json.loads(run_as_stranger(ANSWER, tmp_path / "again", image, cache=tmp_path / "cache")) == tokens


def test_auto_classes_resolve_without_the_package(saved, tmp_path):
    folder, *_ = saved
    code = """
    options = {"trust_remote_code": True}
    print(type(AutoConfig.from_pretrained(sys.argv[1], **options)).__name__)
    print(type(AutoModel.from_pretrained(sys.argv[1], **options)).__name__)
    print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1], **options)).__name__)
    """.replace("\n    ", "\n")
    names = run_as_stranger(code, folder, cache=tmp_path).split()
    assert names == ["ParrotConfig", "ParrotModel", "ParrotForConditionalGeneration"]


def test_processor_saved_alone_loads_without_the_package(tiny, tmp_path):
    _, processor = tiny()
    processor.save_pretrained(tmp_path / "processor")
    code = "print(type(AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)"
    assert run_as_stranger(code, tmp_path / "processor", cache=tmp_path).strip() == "ParrotProcessor"


def test_config_lists_auto_classes_config_first(saved):
    folder, *_ = saved
    written = json.loads((folder / "config.json").read_text())["auto_map"]
    assert written == AUTO_MAP and next(iter(AUTO_MAP)) == "AutoConfig"


def test_shipped_code_holds_no_absolute_import_of_ours(saved):
    folder, *_ = saved
    for file in folder.glob("*_parrot.py"):
        lines = [line for line in file.read_text().splitlines() if line.startswith(("import", "from"))]
        assert not [line for line in lines if "_parrot" in line and not line.startswith("from .")], file.name


def test_installed_package_needs_no_remote_code(saved):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, *_ = saved
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is ParrotForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(folder)).__module__ == "processing_parrot"


STAGE_2 = """
from PIL import Image
folder, image, result = sys.argv[1:4]
model = AutoModelForImageTextToText.from_pretrained(
    folder, trust_remote_code=True, num_language_experts=6, expert_intermediate_size=20
)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open(image), text="<image>What?", return_tensors="pt")
output = model(**inputs)
assert output.router_probs.shape == (1, 6), output.router_probs
assert torch.equal(output.router_probs, torch.full((1, 6), 1 / 6))
torch.save(output.logits, result)
"""


def test_stage_1_folder_with_new_experts_gives_bit_equal_logits(tiny, tmp_path):
    """DESIGN: stage 2 starts exactly where stage 1 ended, through a folder and a new process."""
    model, processor = tiny(num_language_experts=0)
    image = tmp_path / "image.png"
    picture(1).save(image)
    with torch.no_grad():
        expected = model(**processor(images=picture(1), text="<image>What?", return_tensors="pt")).logits
    model.save_pretrained(tmp_path / "stage1")
    processor.save_pretrained(tmp_path / "stage1")
    run_as_stranger(STAGE_2, tmp_path / "stage1", image, tmp_path / "logits.pt", cache=tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_trained_folder_reloads_unchanged(tiny, tmp_path):
    model, _ = tiny()
    model.save_pretrained(tmp_path)
    again = ParrotForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("asked", [0, 4])
def test_another_number_of_experts_is_refused(tiny, tmp_path, asked):
    model, _ = tiny()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"saved with 6 language experts, but {asked} were asked for"):
        ParrotForConditionalGeneration.from_pretrained(tmp_path, num_language_experts=asked)


def test_folder_without_projector_is_refused(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = tiny()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "multi_modal_projector" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds no projector.*from_vision_text_pretrained"):
        ParrotForConditionalGeneration.from_pretrained(tmp_path)


def test_folder_with_a_part_of_the_experts_is_refused(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = tiny()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "router" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="router"):
        ParrotForConditionalGeneration.from_pretrained(tmp_path)
