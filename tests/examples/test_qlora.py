"""QLoRA: training on a language model of 4 bits. Runs where bitsandbytes is installed, which also knows CPUs."""

import sys
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import EXPERTS, moved_parts, part_of, weights


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import train  # noqa: E402
from train_report import count, parameter_table  # noqa: E402

from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor  # noqa: E402


pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = yaml.safe_load((ROOT / "configuration/recipes/parrot_stage2_qlora.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def qlora(recipe):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    lora = {**SHIPPED["lora"], "r": 4, "lora_alpha": 8}
    return recipe(
        quantization=SHIPPED["quantization"], lora=lora, merge_lora=True, max_steps=2, learning_rate=1e-2,
        gradient_checkpointing=True,
    )  # fmt: skip


def test_the_language_model_is_quantized_and_what_trains_is_not(qlora):
    trainer, _, _ = train.prepare([qlora])
    parameters = dict(trainer.model.named_parameters())
    packed = {name for name, parameter in parameters.items() if parameter.dtype == torch.uint8}
    assert len(packed) == 14 and all("language_model" in name and "_proj" in name for name in packed)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert {part_of(name) for name in trained} == {"multi_modal_projector", "language_experts", "language_model"}
    assert all("lora_" in name for name in trained if part_of(name) == "language_model")
    assert all(parameters[name].dtype == torch.float32 for name in trained)


def test_the_report_counts_values_not_bytes(qlora, recipe):
    plain, _, _ = train.prepare([recipe("plain", lora={**SHIPPED["lora"], "r": 4})])
    packed, _, _ = train.prepare([qlora])
    for trainable in (True, False):
        of_plain, of_packed = (count(list(t.model.parameters()), trainable) for t in (plain, packed))
        assert of_plain == of_packed > 0
    assert "uint8" in parameter_table(packed.model)


def test_two_steps_and_a_merged_checkpoint_in_full_precision(parts, qlora, tmp_path):
    import peft

    train.main([qlora])
    folder = tmp_path / "run"
    saved = load_file(folder / "adapter_model.safetensors")
    assert {part_of(name) for name in saved} == {"multi_modal_projector", "language_experts", "language_model"}
    assert any(value.any() for name, value in saved.items() if "lora_B" in name)  # they start at zero

    merged = ParrotForConditionalGeneration.from_pretrained(folder / "merged").eval()
    assert not hasattr(merged.config, "quantization_config")
    base = ParrotForConditionalGeneration.from_pretrained(parts.stage1, num_language_experts=4, **EXPERTS)
    adapted = peft.PeftModel.from_pretrained(base, folder).eval()
    processor = ParrotProcessor.from_pretrained(folder / "merged")
    inputs = tiny_models.encode(processor, [tiny_models.user("What is it?", tiny_models.picture())])
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, merged(**inputs).logits, atol=1e-4, rtol=1e-4)
    before, after = weights(parts.stage1), weights(folder / "merged")
    moved, stayed = moved_parts(before, {name: after[name] for name in before})
    assert {"multi_modal_projector", "language_model"} <= moved
    assert "vision_tower" in stayed and not {"vision_tower", "lm_head"} & moved
    assert all(value.dtype == torch.float32 for value in after.values())


def test_a_checkpoint_that_is_no_parrot_is_refused(parts, recipe):
    pytest.importorskip("bitsandbytes")
    path = recipe(quantization=SHIPPED["quantization"], lora={"r": 4}, checkpoint=str(parts.folder / "lm"))
    with pytest.raises(SystemExit, match="`quantization` needs a Parrot checkpoint; .* is a qwen2"):
        train.main([path])


def test_the_stage_alone_cannot_train_quantized_weights(parts):
    pytest.importorskip("bitsandbytes")
    model = ParrotForConditionalGeneration.from_pretrained(
        parts.stage1, quantization_config={"load_in_4bit": True}, num_language_experts=4, **EXPERTS
    )
    with pytest.raises(ValueError, match="trains the language model, whose weights are quantised.*LoRA"):
        model.set_training_stage("instruction")
    assert set(model.set_training_stage("alignment")["trainable"]) == {"projector"}
