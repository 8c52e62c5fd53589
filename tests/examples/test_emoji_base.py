"""The emoji example's base models: loadable by name of a folder, small, and as good as their card says."""

import json
from pathlib import Path

import pytest
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModel,
)


BASE = Path(__file__).parents[2] / "examples" / "emoji" / "base"
LANGUAGES = ["en", "zh", "pt", "ar", "tr", "ru", "cs", "de", "fr", "hr", "it", "ro", "es"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE / "llm")


def test_both_are_small():
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 16e6


def test_the_whole_clip_and_its_vision_half_load_without_missing_keys():
    _, info = CLIPModel.from_pretrained(BASE / "clip", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tower, info = CLIPVisionModel.from_pretrained(BASE / "clip", output_loading_info=True)
    assert not info["missing_keys"]
    assert tower.config.num_hidden_layers >= 2, "Parrot reads the last layer but one"
    processor = AutoImageProcessor.from_pretrained(BASE / "clip")
    assert processor.crop_size["height"] == tower.config.image_size == 64


def test_the_language_model_answers_in_the_language_of_the_question(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(BASE / "llm")
    for question, expected in [
        ("cat\nWhat is in the picture?", "cat"),
        ("cat\nЧто изображено на картинке?", "кошка"),
        ("cat\nWhat is in the picture? Choose one: dog, horse, cat, lion.", "cat"),
        ("cat\n图片里是什么？", "猫"),
        ("cat\nO que há na imagem?", "gato"),
    ]:
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == expected


def test_the_tokenizer_keeps_every_text_and_leaves_rows_free(tokenizer):
    config = AutoConfig.from_pretrained(BASE / "llm")
    assert config.vocab_size % 64 == 0 and config.vocab_size > len(tokenizer)
    for text in ("une image : chat, chien ?", "قِطَّة، كلب؟", "猫、狗。\n", "¿Qué  es?", "🦜 emoji\tand <tags>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_template_is_chatml_and_marks_answers_with_their_end(tokenizer):
    chat = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "gato"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\ngato<|im_end|>\n"
    )
    tokens = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i, mask in zip(tokens["input_ids"], tokens["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(answer) == "gato<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_the_measured_numbers_reach_their_aims():
    tower = json.loads((BASE / "clip" / "metrics.json").read_text())
    assert tower["held_out_style/choice"] >= 0.8
    assert tower["probe_mlp/choice"] >= 0.8
    assert 0.2 < tower["held_out_style/choice_shuffled_images"] < 0.3
    llm = json.loads((BASE / "llm" / "metrics.json").read_text())
    assert list(llm["languages"]) == LANGUAGES
    assert min(scores["naming"] for scores in llm["languages"].values()) >= 0.95
    choices = [scores["choice"] for scores in llm["languages"].values()]
    assert min(choices) >= 0.8 and sum(choices) / len(choices) >= 0.87
