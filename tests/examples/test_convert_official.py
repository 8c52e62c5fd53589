"""
The authors' checkpoints, converted: equal to what the authors' code computed.

`tests/fixtures/official_parrot_tiny` was written by that code with random weights: a checkpoint, its tokenizer, and what
the code answered (`reference.*`). The other checkpoints here are made in the same layout by this file, and compared with
the straightforward computation below: one image and one expert at a time.
"""

import json
import shutil
from pathlib import Path

import convert_official
import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from stranger import run_as_stranger
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor


FIXTURE = Path(__file__).parents[1] / "fixtures" / "official_parrot_tiny"
TOWER = FIXTURE / "openai" / "clip-vit-tiny"
TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
IMAGE = -200  # the authors' mark for an image in their token ids


# ---------------------------------------------------------------------------------------- what their code computed


@pytest.fixture(scope="module")
def reference():
    return load_file(FIXTURE / "reference.safetensors") | json.loads((FIXTURE / "reference.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "parrot"
    convert_official.convert(FIXTURE, output, TOWER)
    return output


@pytest.fixture(scope="module")
def converted(folder):
    return load(folder)


def load(folder):
    model, info = ParrotForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    return model.eval(), ParrotProcessor.from_pretrained(folder)


def padded(rows: list[list[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and their mask."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


def inputs_of(model, rows: list[list[int]], routing: list[list[int]], pixel_values) -> dict[str, torch.Tensor]:
    """Our inputs for token ids in which -200 stands for an image."""
    image = [model.config.image_token_id] * model.config.image_seq_length
    expanded = [[token for id in row for token in (image if id == IMAGE else [id])] for row in rows]
    ids, mask = padded(expanded, pad=model.config.text_config.pad_token_id)
    routing_ids, routing_mask = padded(routing)
    return {
        "input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values,
        "routing_input_ids": routing_ids, "routing_attention_mask": routing_mask,
    }  # fmt: skip


def reference_rows(reference, answers: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of the reference's batch without padding, and the text that their code routes on, with answers or without."""
    rows, routing = [], []
    for ids, labels, mask in zip(
        *(reference[k].tolist() for k in ("input_ids", "labels", "attention_mask")), strict=True
    ):
        kept = [(id, label) for id, label, real in zip(ids, labels, mask, strict=True) if real]
        rows.append([id for id, _ in kept])
        routing.append([id for id, label in kept if id != IMAGE and (answers or label == -100)])
    return rows, routing


@torch.no_grad()
def test_training_step_equals_theirs(converted, reference):
    model, _ = converted
    rows, routing = reference_rows(reference, answers=False)
    inputs = inputs_of(model, rows, routing, reference["pixel_values"])
    assert torch.equal(inputs["attention_mask"], reference["expanded_attention_mask"])
    outputs = model(**inputs, labels=reference["expanded_labels"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(outputs.router_probs, reference["router_weights"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.logits[real], reference["train_logits"][real], rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.loss, reference["train_loss"][0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_inference_equals_theirs_which_routes_on_all_text(converted, reference):
    model, _ = converted
    rows, routing = reference_rows(reference, answers=True)
    inputs = inputs_of(model, rows, routing, reference["pixel_values"])
    real = inputs["attention_mask"].bool()
    logits = model(**inputs).logits
    torch.testing.assert_close(logits[real], reference["infer_logits"][real], rtol=0, atol=1e-4)
    # The two ways of routing differ, or the test above would prove nothing about the rows.
    assert (logits[real] - reference["train_logits"][real]).abs().max() > 1e-2


@torch.no_grad()
def test_question_about_an_image_equals_theirs(converted, reference):
    model, processor = converted
    question = {"role": "user", "content": [{"type": "image", "image": Image.open(FIXTURE / reference["image"])},
                                            {"type": "text", "text": reference["question"]}]}  # fmt: skip
    assert processor.apply_chat_template([question], add_generation_prompt=True) == reference["prompt"]
    inputs = processor.apply_chat_template(
        [question], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    torch.testing.assert_close(inputs["pixel_values"], reference["query_pixel_values"], rtol=0, atol=1e-4)
    text = [id for id in reference["query_input_ids"][0].tolist() if id != IMAGE]
    assert inputs["routing_input_ids"][0].tolist() == text
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.router_probs[0], reference["query_router_weights"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.logits, reference["query_logits"], rtol=0, atol=1e-4)
    generated = model.generate(**inputs, max_new_tokens=reference["max_new_tokens"])
    assert torch.equal(generated[:, inputs["input_ids"].shape[1] :], reference["query_generated_ids"])


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (33, 33), (7, 90), (200, 199), (1, 5)])
def test_pixels_equal_padding_and_resizing_by_hand(converted, size):
    _, processor = converted
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image, settings = Image.fromarray(noise.numpy()), processor.image_processor
    side = max(size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in settings.image_mean))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    resized = square.resize((28, 28), Image.Resampling.BICUBIC)
    pixels = torch.tensor(numpy.asarray(resized), dtype=torch.float32) / 255
    expected = ((pixels - torch.tensor(settings.image_mean)) / torch.tensor(settings.image_std)).permute(2, 0, 1)
    actual = settings(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_pixels_do_not_depend_on_torchvision(converted):
    class LlavaImageProcessor(LlavaImageProcessorPil):
        """Stands for the torchvision version, which transformers picks for a saved folder where it can."""

    _, processor = converted
    other = LlavaImageProcessor.from_dict(processor.image_processor.to_dict())
    rebuilt = ParrotProcessor(image_processor=other, tokenizer=processor.tokenizer, patch_size=14)
    assert type(rebuilt.image_processor) is LlavaImageProcessorPil
    assert rebuilt.image_processor.to_dict() == processor.image_processor.to_dict()


def test_pixels_without_padding_equal_the_towers_own(tmp_path):
    config, tower = official_config(image_aspect_ratio=None), CLIPVisionConfig(**SMALL_TOWER)
    source = write_official(tmp_path / "official", config, tower, official_tensors(config, tower))
    convert_official.convert(source, tmp_path / "parrot")
    processor = ParrotProcessor.from_pretrained(tmp_path / "parrot")
    image = Image.open(FIXTURE / "image.png")
    expected = CLIPImageProcessorPil.from_pretrained(TOWER)(image, return_tensors="pt")["pixel_values"]
    actual = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert actual.shape == (1, 3, 28, 28)


def test_saved_settings(converted, folder):
    model, processor = converted
    config, words = model.config, processor.tokenizer
    assert (config.num_language_experts, config.expert_type, config.expert_intermediate_size) == (6, "swiglu", 24)
    assert (config.expert_scale, config.residual_scale, config.num_active_experts) == (1.0, 0.1, None)
    assert (config.routing_scope, processor.routing_scope) == ("prompt", "prompt")
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "full")
    assert config.image_seq_length == processor.num_image_tokens == 5
    assert config.image_token_id == processor.image_token_id < config.text_config.vocab_size == 320
    assert (words.eos_token, words.pad_token, words.padding_side) == ("<|im_end|>", "<|endoftext|>", "left")
    assert model.generation_config.eos_token_id == words.eos_token_id == 261
    assert model.generation_config.pad_token_id == words.pad_token_id == 262
    assert model.generation_config.do_sample is not True
    processor.check_training_template()
    # The folder is what saving the loaded model would give.
    again = folder.parent / "again"
    model.save_pretrained(again)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert str(FIXTURE) not in (folder / "config.json").read_text() + (folder / "tokenizer_config.json").read_text()


def test_loads_where_the_package_is_not_installed(folder, reference, tmp_path):
    code = """
from PIL import Image
folder, image, question = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": question}]}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
print(model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1]:].tolist())
"""
    printed = run_as_stranger(code, folder, FIXTURE / "image.png", reference["question"], cache=tmp_path)
    assert json.loads(printed.splitlines()[-1]) == reference["query_generated_ids"][0].tolist()


# ---------------------------------------------------------------------------------------- other checkpoints


def official_config(**changes) -> dict:
    return json.loads((FIXTURE / "config.json").read_text()) | changes


def official_tensors(config: dict, tower: CLIPVisionConfig) -> dict[str, torch.Tensor]:
    """Random weights under the names of the authors' checkpoints."""
    random = torch.Generator().manual_seed(0)
    width, experts, hidden = config["hidden_size"], config["num_experts"], config["moe_intermediate_size"]
    text_config = Qwen2Config(**text_settings(config))
    shapes = {key: value.shape for key, value in Qwen2ForCausalLM(text_config).state_dict().items()}
    shapes |= {TOWER_PREFIX + key: value.shape for key, value in CLIPVisionModel(tower).state_dict().items()}
    shapes |= {"model.mm_projector.0.weight": (width, tower.hidden_size), "model.mm_projector.0.bias": (width,)}
    shapes |= {"model.mm_projector.2.weight": (width, width), "model.mm_projector.2.bias": (width,)}
    shapes |= {"model.moe_model.gate.weight": (experts, width)}
    for expert in range(experts):
        prefix = f"model.moe_model.experts.{expert}."
        shapes |= {prefix + "gate_proj.weight": (hidden, width), prefix + "up_proj.weight": (hidden, width)}
        shapes |= {prefix + "down_proj.weight": (width, hidden)}
    tensors = {key: torch.randn(tuple(shape), generator=random) * 0.3 for key, shape in shapes.items()}
    tensors |= {key: 1 + 0.1 * value for key, value in tensors.items() if "norm" in key and key.endswith("weight")}
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def text_settings(config: dict) -> dict:
    return {key: config[key] for key in convert_official.QWEN2_SETTINGS if key in config}


def write_official(
    folder: Path, config: dict, tower: CLIPVisionConfig, tensors: dict, layout: str = "model.safetensors"
):
    """A checkpoint folder; `layout` names the weight file, or the index of two of them."""
    shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "reference*"))
    (folder / "config.json").write_text(json.dumps(config))
    tower.save_pretrained(folder / "openai" / "clip-vit-tiny")
    side = {"height": tower.image_size, "width": tower.image_size}
    settings = json.loads((TOWER / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": tower.image_size}, "crop_size": side}
    (folder / "openai" / "clip-vit-tiny" / "preprocessor_config.json").write_text(json.dumps(settings))
    name, keys = layout.removesuffix(".index.json"), list(tensors)
    parts = [keys] if name == layout else [keys[::2], keys[1::2]]  # experts end up in both files
    weight_map = {}
    for number, part in enumerate(parts, 1):
        stem, suffix = name.rsplit(".", 1)
        file = name if len(parts) == 1 else f"{stem}-{number:05d}-of-{len(parts):05d}.{suffix}"
        content = {key: tensors[key] for key in part}
        if suffix == "bin":
            torch.save(content, folder / file)
        else:
            save_file({key: value.clone() for key, value in content.items()}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if len(parts) > 1:
        (folder / layout).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@torch.no_grad()
def official_logits(config: dict, tower_config, tensors: dict, rows, routing, pixel_values) -> list[torch.Tensor]:
    """PARROT's equations 2 to 5 with the authors' residual, one image and one expert at a time."""
    tower = CLIPVisionModel(tower_config).eval()
    tower.load_state_dict({k.removeprefix(TOWER_PREFIX): v for k, v in tensors.items() if k.startswith(TOWER_PREFIX)})
    language_model = Qwen2ForCausalLM(Qwen2Config(**text_settings(config))).eval()
    language_model.load_state_dict({key: tensors[key] for key in language_model.state_dict()})
    embed = language_model.model.embed_tokens
    result = []
    for row, text, pixels in zip(rows, routing, pixel_values, strict=True):
        features = tower(pixels[None], output_hidden_states=True).hidden_states[config["mm_vision_select_layer"]][0]
        features = F.linear(features, tensors["model.mm_projector.0.weight"], tensors["model.mm_projector.0.bias"])
        features = F.linear(
            F.gelu(features), tensors["model.mm_projector.2.weight"], tensors["model.mm_projector.2.bias"]
        )
        visual = features
        if config.get("use_moe", True):
            words = embed(torch.tensor(text))
            guidance = (features[0] @ words.T / config["hidden_size"] ** 0.5).softmax(-1) @ words
            weights = (tensors["model.moe_model.gate.weight"] @ guidance).softmax(-1)
            visual = torch.zeros_like(features)
            for expert in range(config["num_experts"]):
                gate, up, down = (tensors[f"model.moe_model.experts.{expert}.{part}_proj.weight"]
                                  for part in ("gate", "up", "down"))  # fmt: skip
                visual = visual + weights[expert] * ((F.silu(features @ gate.T) * (features @ up.T)) @ down.T)
            if config.get("use_moe_residual", True):
                visual = visual + config.get("moe_weight", 1.0) * features
        if config["mm_vision_select_feature"] == "patch":
            visual = visual[1:]
        pieces = [visual if id == IMAGE else embed(torch.tensor([id])) for id in row]
        result.append(language_model(inputs_embeds=torch.cat(pieces)[None]).logits[0])
    return result


SMALL_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
               "image_size": 28, "patch_size": 14, "hidden_act": "quick_gelu", "projection_dim": 16}  # fmt: skip
OTHER_TOWER = SMALL_TOWER | {"hidden_size": 24, "num_hidden_layers": 2, "image_size": 42}
OTHER_SIZES = {"hidden_size": 48, "moe_hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3,
               "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 300, "mm_hidden_size": 24,
               "num_experts": 3, "moe_intermediate_size": 20, "rope_theta": 5e3, "rms_norm_eps": 1e-5}  # fmt: skip

VARIANTS = {
    "as the fixture": {},
    "tied embeddings": {"tie_word_embeddings": True},
    "other sizes": OTHER_SIZES,
    "one expert": {"num_experts": 1},
    "no residual": {"use_moe_residual": False},
    "other residual": {"moe_weight": 0.3, "moe_top_k": 2},  # their code runs all experts, whatever top_k says
    "experts off": {"use_moe": False},
    "experts off, patches": {"use_moe": False, "mm_vision_select_feature": "patch"},
    "patches": {"mm_vision_select_feature": "patch"},
    "last layer": {"mm_vision_select_layer": -1},
    "layer from the front": {"mm_vision_select_layer": 1},
}
LAYOUTS = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]


def compare(folder, config, tower, tensors, columns=None):
    """The converted model's logits on two images with different texts against the computation above."""
    model, processor = load(folder)
    rows = [[5, 9, IMAGE, 40, 41, 42, 77], [IMAGE, 100, 7]]
    routing = [[5, 9, 40, 41], [100, 7]]
    pixels = torch.randn(2, 3, tower.image_size, tower.image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        inputs = inputs_of(model, rows, routing, pixels)
        logits = model(**inputs).logits
    for ours, real, theirs in zip(
        logits, inputs["attention_mask"], official_logits(config, tower, tensors, rows, routing, pixels), strict=True
    ):
        torch.testing.assert_close(ours[: real.sum(), :columns], theirs, rtol=0, atol=1e-4)
    return model, processor


@pytest.mark.parametrize("index", range(len(VARIANTS)), ids=VARIANTS)
def test_other_settings(index, tmp_path):
    changes = list(VARIANTS.values())[index]
    config = official_config(**changes)
    tower = CLIPVisionConfig(**(OTHER_TOWER if changes is OTHER_SIZES else SMALL_TOWER))
    tensors = official_tensors(config, tower)
    source = write_official(tmp_path / "official", config, tower, tensors, LAYOUTS[index % len(LAYOUTS)])
    convert_official.convert(source, tmp_path / "parrot")  # the tower is found beside the checkpoint by its name
    model, _ = compare(tmp_path / "parrot", config, tower, tensors)
    assert (model.model.language_experts is None) == (not config["use_moe"])
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == config["tie_word_embeddings"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_weights_gives_the_same_model(layout, tmp_path):
    config, tower = official_config(), CLIPVisionConfig(**SMALL_TOWER)
    tensors = official_tensors(config, tower)
    source = write_official(tmp_path / "official", config, tower, tensors, layout)
    convert_official.convert(source, tmp_path / "parrot")
    weights = load_file(tmp_path / "parrot" / "model.safetensors")
    experts = [tensors[f"model.moe_model.experts.{i}.down_proj.weight"] for i in range(6)]
    assert torch.equal(weights["model.language_experts.down_proj.weight"], torch.cat(experts, dim=1))
    compare(tmp_path / "parrot", config, tower, tensors)


def test_settings_their_code_has_defaults_for(tmp_path):
    config, tower = official_config(), CLIPVisionConfig(**SMALL_TOWER)
    for name in ("use_moe", "use_moe_residual", "moe_weight"):
        del config[name]
    tensors = official_tensors(config, tower)
    convert_official.convert(write_official(tmp_path / "official", config, tower, tensors), tmp_path / "parrot")
    model, _ = compare(tmp_path / "parrot", config, tower, tensors)
    assert model.config.residual_scale == 1.0


def test_large_weights_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_official, "MAX_SHARD_BYTES", 60_000)
    config, tower = official_config(), CLIPVisionConfig(**SMALL_TOWER)
    tensors = official_tensors(config, tower)
    source = write_official(tmp_path / "official", config, tower, tensors, "model.safetensors.index.json")
    convert_official.convert(source, tmp_path / "parrot")
    files = sorted((tmp_path / "parrot").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= 60_000 for file in files)
    compare(tmp_path / "parrot", config, tower, tensors)


def test_dtype_is_kept_or_changed_on_request(tmp_path):
    config, tower = official_config(), CLIPVisionConfig(**SMALL_TOWER)
    tensors = {key: value.bfloat16() for key, value in official_tensors(config, tower).items()}
    source = write_official(tmp_path / "official", config, tower, tensors)
    convert_official.convert(source, tmp_path / "kept")
    model, _ = load(tmp_path / "kept")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    convert_official.convert(source, tmp_path / "changed", dtype=torch.float32)
    model, _ = compare(tmp_path / "changed", config, tower, {key: value.float() for key, value in tensors.items()})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_tower_weights_come_from_its_folder_when_the_checkpoint_has_none(tmp_path):
    config, tower = official_config(mm_vision_tower="not/to-be-found"), CLIPVisionConfig(**SMALL_TOWER)
    tensors = official_tensors(config, tower)
    language = {key: value for key, value in tensors.items() if not key.startswith(TOWER_PREFIX)}
    source = write_official(tmp_path / "official", config, tower, language)
    folder = source / "openai" / "clip-vit-tiny"
    # The tower's weights under the names of transformers 4.
    kept = {
        key.removeprefix("model.vision_tower.vision_tower."): tensors[key] for key in tensors.keys() - language.keys()
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    convert_official.convert(source, tmp_path / "parrot", folder)
    compare(tmp_path / "parrot", config, tower, tensors)


def test_ids_are_fetched_from_the_hub(tmp_path, monkeypatch):
    asked = {}

    def fetch(name, allow_patterns):
        asked.setdefault(name, set()).update(allow_patterns)
        return {"AIDC-AI/Parrot-7B": FIXTURE, "openai/clip-vit": TOWER}[name]

    monkeypatch.setattr(convert_official, "snapshot_download", fetch)
    convert_official.convert("AIDC-AI/Parrot-7B", tmp_path / "parrot", "openai/clip-vit")
    load(tmp_path / "parrot")
    assert {"*.safetensors", "*.bin", "*.json", "*.txt"} <= asked["AIDC-AI/Parrot-7B"]
    assert asked["openai/clip-vit"] == {"*.json"}  # the checkpoint carries the tower's weights


def test_an_embedding_without_a_free_row_grows(tmp_path, capsys):
    config, tower = official_config(vocab_size=264), CLIPVisionConfig(**SMALL_TOWER)  # as many as the tokenizer has
    tensors = official_tensors(config, tower)
    convert_official.convert(write_official(tmp_path / "official", config, tower, tensors), tmp_path / "parrot")
    model, _ = compare(tmp_path / "parrot", config, tower, tensors, columns=264)
    assert model.lm_head.weight.shape[0] == model.config.text_config.vocab_size == 265
    assert "265 rows" in capsys.readouterr().out


def test_tensors_without_effect_are_left_out(tmp_path, capsys):
    config, tower = official_config(use_moe=False), CLIPVisionConfig(**SMALL_TOWER)
    tensors = official_tensors(config, tower)
    buffers = {TOWER_PREFIX + "embeddings.position_ids": torch.arange(5)[None],
               "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # fmt: skip
    source = write_official(tmp_path / "official", config, tower, tensors | buffers)
    convert_official.convert(source, tmp_path / "parrot")
    compare(tmp_path / "parrot", config, tower, tensors)
    assert f"{2 + 1 + 3 * 6} tensors" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def official(tmp_path):
    """`official(tensors_changed, **config_changes)` writes a checkpoint."""

    def build(change=lambda tensors: tensors, **changes) -> Path:
        config, tower = official_config(**changes), CLIPVisionConfig(**SMALL_TOWER)
        return write_official(tmp_path / "official", config, tower, change(official_tensors(config, tower)))

    return build


def assert_refused(source, output, *needles, **options) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        convert_official.convert(source, output, **options)
    for needle in needles:
        assert needle in str(caught.value)
    assert not output.exists()
    return str(caught.value)


def test_all_unknown_missing_and_misshapen_weights_are_listed(official, tmp_path):
    def change(tensors):
        del tensors["model.moe_model.experts.2.up_proj.weight"], tensors["model.layers.1.self_attn.q_proj.bias"]
        tensors |= {"model.image_newline": torch.zeros(32), "model.extra.weight": torch.zeros(2)}
        return tensors | {"model.norm.weight": torch.zeros(31)}

    message = assert_refused(official(change), tmp_path / "parrot")
    assert "missing: model.moe_model.experts.2.up_proj.weight [24, 32]" in message
    assert "missing: model.layers.1.self_attn.q_proj.bias [32]" in message
    assert "unknown: model.image_newline [32]" in message and "unknown: model.extra.weight [2]" in message
    assert "wrong shape: model.norm.weight is [31]" in message
    assert len(message.splitlines()) == 1 + 5


def test_a_head_is_missed_only_when_it_is_not_tied(official, tmp_path):
    def change(tensors):
        del tensors["lm_head.weight"]
        return tensors

    assert_refused(official(change), tmp_path / "parrot", "missing: lm_head.weight")


@pytest.mark.parametrize(
    "changes, needles",
    [
        ({"model_type": "llava"}, ["'llava'", "parrot_qwen2"]),
        ({"model_type": "parrot"}, ["already"]),
        ({"mm_projector_type": "linear"}, ["mm_projector_type 'linear'"]),
        ({"mm_projector_type": "mlp3x_gelu", "image_aspect_ratio": "anyres"}, ["mlp3x_gelu", "anyres"]),
        ({"mm_vision_select_feature": "cls"}, ["mm_vision_select_feature 'cls'"]),
        ({"mm_vision_select_layer": -7}, ["-7", "3 layers"]),
        ({"moe_hidden_size": 16}, ["moe_hidden_size 16"]),
        ({"mm_vision_tower": "openai/elsewhere"}, ["openai/elsewhere", "neither a folder"]),
    ],
)
def test_configs_that_cannot_be_converted(official, tmp_path, changes, needles):
    assert_refused(official(**changes), tmp_path / "parrot", *needles)


def test_missing_and_broken_files(official, tmp_path):
    output = tmp_path / "parrot"
    assert_refused(tmp_path / "nowhere", output, "nowhere", "neither a folder")
    source = official()
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-1000])
    assert_refused(source, output, "model.safetensors", "cannot be read")
    (source / "model.safetensors").unlink()
    assert_refused(source, output, "has no weights")
    (source / "pytorch_model.bin").write_bytes(b"no weights")
    assert_refused(source, output, "pytorch_model.bin", "cannot be read")
    (source / "pytorch_model.bin").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(source, output, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (source / "config.json").write_text("{")
    assert_refused(source, output, "config.json is no JSON")
    (source / "config.json").unlink()
    assert_refused(source, output, "has no config.json")


def test_towers_and_tokenizers_that_do_not_fit(official, tmp_path):
    source, output = official(), tmp_path / "parrot"
    tower = source / "openai" / "clip-vit-tiny"
    CLIPVisionConfig(**(SMALL_TOWER | {"num_hidden_layers": 2})).save_pretrained(tower)
    assert_refused(source, output, "unknown: " + TOWER_PREFIX + "encoder.layers.2.mlp.fc1.weight")
    CLIPVisionConfig(**(SMALL_TOWER | {"image_size": 42})).save_pretrained(tower)
    assert_refused(source, output, "42 x 42")
    (tower / "config.json").write_text(json.dumps({"model_type": "siglip_vision_model"}))
    assert_refused(source, output, "siglip_vision_model", "CLIP")
    CLIPVisionConfig(**SMALL_TOWER).save_pretrained(tower)
    words = json.loads((source / "tokenizer.json").read_text())
    words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] != "<|im_start|>"]
    (source / "tokenizer.json").write_text(json.dumps(words))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"], settings["additional_special_tokens"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert_refused(source, output, "<|im_start|>")


def test_output_is_checked_before_the_work(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        convert_official.convert(FIXTURE, taken, TOWER)
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="cannot be made"):
        convert_official.convert(FIXTURE, taken / "notes.txt" / "parrot", TOWER)


def test_command_line(tmp_path, capsys):
    options = ["--vision-tower", str(TOWER), "--output", str(tmp_path / "parrot")]
    convert_official.main(["--checkpoint", str(FIXTURE), "--dtype", "bfloat16", *options])
    printed = capsys.readouterr().out
    assert str(tmp_path / "parrot") in printed and "trust_remote_code=True" in printed and "bfloat16" in printed
    with pytest.raises(SystemExit, match="error: .*not an empty folder"):
        convert_official.main(["--checkpoint", str(FIXTURE), *options])
