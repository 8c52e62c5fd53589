"""Any tower with any language model, from LLaVA and back."""

import pytest
import torch
from tiny_models import (
    LANGUAGE_MODELS,
    NUM_PATCHES,
    REFUSED_LANGUAGE_MODELS,
    TOWERS,
    encode,
    picture,
    save_language_model,
    save_tower,
    tokenizer,
    user,
)
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from modeling_parrot import ParrotConfig, ParrotForConditionalGeneration, ParrotProcessor


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
def test_text_only_logits_are_the_language_models_own(tiny, tmp_path, tower, language_model):
    model, processor = tiny(tower=tower, language_model=language_model)
    original = AutoModelForCausalLM.from_pretrained(save_language_model(tmp_path, language_model)).eval()
    ids = torch.randint(5, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, rtol=0, atol=1e-5)
        inputs = encode(processor, [user("What?", picture(0))], [user("Что?", picture(1))])
        assert model(**inputs).router_probs.shape == (2, 6)


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
def test_tied_head_stays_tied(tmp_path, language_model):
    save_tower(tmp_path / "tower")
    save_language_model(tmp_path / "text", language_model, tie_word_embeddings=True)
    build = ParrotForConditionalGeneration.from_vision_text_pretrained
    model = build(tmp_path / "tower", tmp_path / "text", expert_intermediate_size=8)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "saved")
    again = ParrotForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("kind", REFUSED_LANGUAGE_MODELS)
def test_heads_that_cannot_be_reproduced_are_refused_by_name(tmp_path, kind):
    save_tower(tmp_path / "tower")
    save_language_model(tmp_path / "text", kind)
    with pytest.raises(ValueError, match=f"(?i){kind}ForCausalLM"):
        ParrotForConditionalGeneration.from_vision_text_pretrained(tmp_path / "tower", tmp_path / "text")


def test_config_with_such_a_head_is_refused():
    with pytest.raises(Exception, match="final_logit_softcapping"):
        ParrotConfig(text_config={"model_type": "gemma2"})


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("strategy", ["full", "default"])
def test_processor_expands_to_as_many_tokens_as_the_tower_gives(tiny, tower, strategy):
    model, processor = tiny(tower=tower, vision_feature_select_strategy=strategy)
    has_cls = tower != "siglip"
    expected = NUM_PATCHES + (1 if has_cls and strategy == "full" else 0)
    inputs = encode(processor, [user("What?", picture(0))])
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == expected
    assert expected == processor.num_image_tokens == model.config.image_seq_length
    assert processor._get_num_multimodal_tokens(image_sizes=[(480, 640)])["num_image_tokens"] == [expected]
    assert model(**inputs).image_hidden_states.shape[0] == expected


def test_dual_encoder_gives_its_vision_half(tmp_path):
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    }
    text = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    save_tower(tmp_path / "preprocessor")
    (tmp_path / "preprocessor" / "preprocessor_config.json").rename(tmp_path / "clip" / "preprocessor_config.json")
    save_language_model(tmp_path / "text")
    model = ParrotForConditionalGeneration.from_vision_text_pretrained(
        tmp_path / "clip", tmp_path / "text", expert_intermediate_size=8
    )
    expected = clip.vision_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.model.vision_tower.state_dict().items())
    assert ParrotProcessor.from_vision_text_pretrained(tmp_path / "clip", tmp_path / "text").patch_size == 7


@pytest.mark.parametrize("free_rows", [16, 1, 0])
def test_embeddings_grow_only_without_a_free_row(tmp_path, free_rows):
    save_tower(tmp_path / "tower")
    save_language_model(tmp_path / "text", free_rows=free_rows)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "text").get_input_embeddings().weight
    model = ParrotForConditionalGeneration.from_vision_text_pretrained(
        tmp_path / "tower", tmp_path / "text", expert_intermediate_size=8
    )
    processor = ParrotProcessor.from_vision_text_pretrained(tmp_path / "tower", tmp_path / "text")
    after = model.get_input_embeddings().weight
    assert (len(after) == len(before)) == (free_rows > 0)
    assert torch.equal(after[: len(before)], before)
    assert processor.image_token_id == model.config.image_token_id < len(after)
    assert model.lm_head.out_features == model.config.text_config.vocab_size == len(after)


@pytest.fixture
def llava(tmp_path):
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                           "num_attention_heads": 4, "image_size": 28, "patch_size": 7},
        text_config={"model_type": "llama", "vocab_size": 420, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2},
        image_token_index=405,
        image_seq_length=16,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "llava")
    return model, tmp_path / "llava"


LLAVA_INPUTS = {
    "input_ids": torch.tensor([[7, 8, *[405] * 16, 9, 10, 11]]),
    "pixel_values": torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1)),
}
ROUTING = {"routing_input_ids": torch.tensor([[9, 10, 11]])}


@torch.no_grad()
def test_llava_becomes_a_parrot_that_answers_the_same(llava):
    model, folder = llava
    parrot = ParrotForConditionalGeneration.from_llava_pretrained(
        folder, num_language_experts=6, expert_intermediate_size=8
    )
    torch.testing.assert_close(parrot(**LLAVA_INPUTS, **ROUTING).logits, model(**LLAVA_INPUTS).logits)
    # Its processor fits it: the folder of a real LLaVA has an image processor and a tokenizer as well.
    save_tower(folder.parent / "tower")
    (folder.parent / "tower" / "preprocessor_config.json").rename(folder / "preprocessor_config.json")
    tokenizer("</s>").save_pretrained(folder)
    processor = ParrotProcessor.from_llava_pretrained(folder)
    assert processor.num_image_tokens == parrot.config.image_seq_length == 16
    report = parrot.set_training_stage("instruction")
    assert set(report["trainable"]) == {"projector", "experts", "language_model", "head"}


@torch.no_grad()
def test_parrot_without_experts_exports_to_native_llava(llava, tmp_path):
    model, folder = llava
    parrot = ParrotForConditionalGeneration.from_llava_pretrained(folder, num_language_experts=0)
    parrot.to_llava().save_pretrained(tmp_path / "exported")
    native = LlavaForConditionalGeneration.from_pretrained(tmp_path / "exported")
    torch.testing.assert_close(native(**LLAVA_INPUTS).logits, parrot(**LLAVA_INPUTS).logits)
    torch.testing.assert_close(native(**LLAVA_INPUTS).logits, model(**LLAVA_INPUTS).logits)


def test_parrot_with_experts_is_not_exported(tiny):
    with pytest.raises(ValueError, match="6 language experts"):
        tiny()[0].to_llava()
