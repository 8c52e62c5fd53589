"""4 and 8 bit by bitsandbytes and torchao: the language model is quantised, what every image passes through is not."""

import copy

import pytest
import torch
from tiny_models import encode, picture, user
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

from modeling_parrot import ParrotForConditionalGeneration


def bitsandbytes(**options):
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


def torchao(**options):
    weights = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(weights.Int8WeightOnlyConfig(), **options)


# What a user writes, and how near the logits are to those in full precision (cosine) with random weights of width 48.
ENGINES = {
    "bitsandbytes-4bit": (lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), 0.8),
    "bitsandbytes-8bit": (lambda: bitsandbytes(load_in_8bit=True), 0.999),
    "torchao-8bit": (torchao, 0.999),
}


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A saved model of which two of six experts are active, inputs with two images, and its outputs for them."""
    model, processor = tiny(num_active_experts=2)
    folder = tmp_path_factory.mktemp("full_precision")
    model.save_pretrained(folder)
    chats = [[user("What?", picture(0))], [user("Resimde ne var?", picture(1))]]
    inputs = encode(processor, *chats)
    with torch.no_grad():
        return folder, inputs, model(**inputs)


def linear_layers(model, quantized: bool) -> set[str]:
    """Engines put their layer in place of a linear one, or their tensor in place of its weight."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (type(module.weight) is not nn.Parameter) == quantized
    }


@torch.no_grad()
@pytest.mark.parametrize("engine", ENGINES)
def test_the_language_model_is_quantized_and_nothing_else(checkpoint, tmp_path, engine):
    folder, inputs, expected = checkpoint
    configuration, nearness = ENGINES[engine][0](), ENGINES[engine][1]
    before = copy.deepcopy(configuration.to_dict())
    model = ParrotForConditionalGeneration.from_pretrained(folder, quantization_config=configuration)
    assert configuration.to_dict() == before
    decoder = {name for name in linear_layers(model, True) | linear_layers(model, False) if "language_model." in name}
    assert linear_layers(model, quantized=True) == decoder and len(decoder) == 14

    outputs = model(**inputs)
    assert torch.equal(outputs.image_hidden_states, expected.image_hidden_states)
    assert torch.equal(outputs.router_probs, expected.router_probs)
    mask = inputs["attention_mask"].bool()
    near = nn.functional.cosine_similarity(outputs.logits[mask].float().flatten(), expected.logits[mask].flatten(), 0)
    assert nearness < near < 1

    tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (2, inputs["input_ids"].shape[1] + 4)

    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert linear_layers(again, quantized=True) == decoder
    assert torch.equal(again(**inputs).logits, outputs.logits)


def test_a_plain_mapping_will_do(checkpoint):
    pytest.importorskip("bitsandbytes")
    model = ParrotForConditionalGeneration.from_pretrained(checkpoint[0], quantization_config={"load_in_8bit": True})
    assert all("language_model." in name for name in linear_layers(model, quantized=True))
    assert linear_layers(model, quantized=True)


@torch.no_grad()
def test_a_list_of_the_callers_own_wins_and_quantized_experts_still_work(checkpoint):
    """Trap: torchao quantises the weight inside a plain layer, where active experts must not be cut out of it."""
    folder, inputs, expected = checkpoint
    quantization = torchao(modules_to_not_convert=["lm_head", "model.vision_tower", "model.multi_modal_projector"])
    model = ParrotForConditionalGeneration.from_pretrained(folder, quantization_config=quantization)
    experts = {name for name in linear_layers(model, quantized=True) if "language_experts" in name}
    assert {name.rpartition(".")[2] for name in experts} == {"router", "gate_proj", "up_proj", "down_proj"}
    found = model(**inputs).image_hidden_states
    assert not torch.equal(found, expected.image_hidden_states)
    assert nn.functional.cosine_similarity(found.flatten(), expected.image_hidden_states.flatten(), 0) > 0.999


def test_new_experts_join_a_quantized_base(tiny, tmp_path):
    """Stage 2 may start on a quantised stage-1 checkpoint: its experts are plain and change nothing at first."""
    configuration = bitsandbytes(load_in_4bit=True)
    model, processor = tiny(num_language_experts=0)
    model.save_pretrained(tmp_path)
    options = {"quantization_config": configuration}
    before = ParrotForConditionalGeneration.from_pretrained(tmp_path, **options)
    after = ParrotForConditionalGeneration.from_pretrained(tmp_path, num_language_experts=4, **options)
    inputs = encode(processor, [user("What?", picture(0))])
    inputs["routing_input_ids"] = torch.tensor([[1, 2]])
    with torch.no_grad():
        assert torch.equal(before(**inputs).logits, after(**inputs).logits)
