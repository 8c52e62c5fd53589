"""Tiny random towers, language models, tokenizers and Parrots, built in code. Nothing is downloaded."""

from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    ChineseCLIPVisionConfig,
    ChineseCLIPVisionModel,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor


IMAGE_SIZE, PATCH = 28, 7
NUM_PATCHES = (IMAGE_SIZE // PATCH) ** 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
CORPUS = [
    "What is in the picture? 图中是什么？ O que há na imagem? ماذا في الصورة؟ Resimde ne var? Что на картинке?",
    "You are a helpful assistant. system user assistant USER: ASSISTANT: A chat between a curious user",
    "a cat and a dog, 一只猫, um gato, قطة, bir kedi, кошка",
]

TOWERS = {
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "chinese_clip": (ChineseCLIPVisionConfig, ChineseCLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
}
LANGUAGE_MODELS = {"qwen2": Qwen2Config, "llama": LlamaConfig, "gemma": GemmaConfig}
REFUSED_LANGUAGE_MODELS = {"gemma2": Gemma2Config, "phi": PhiConfig}


def tokenizer(eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 400 entries, with ChatML's and Llama's special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, bos_token="<s>", pad_token="<|endoftext|>", padding_side="left"
    )


def save_tower(folder: Path, kind: str = "clip", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config_class, model_class = TOWERS[kind]
    config = config_class(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH, projection_dim=16,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(folder)
    return folder


def save_language_model(folder: Path, kind: str = "qwen2", seed: int = 1, free_rows: int = 16, **options) -> Path:
    torch.manual_seed(seed)
    words = tokenizer("</s>" if kind != "qwen2" else "<|im_end|>")
    config_class = {**LANGUAGE_MODELS, **REFUSED_LANGUAGE_MODELS}[kind]
    config = config_class(**{
        "vocab_size": len(words) + free_rows, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 512,
        "initializer_range": 0.2, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id, **options,
    })  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def parrot(
    folder: Path, tower: str = "clip", language_model: str = "qwen2", trained: bool = True, **options
) -> tuple[ParrotForConditionalGeneration, ParrotProcessor]:
    """
    A Parrot of a tiny tower and a tiny language model, float32, in eval mode, and its processor.

    With `trained`, experts and router hold random values instead of the zeros they start with, so that routing
    matters to the result.
    """
    tower_dir, text_dir = folder / f"tower_{tower}", folder / f"text_{language_model}"
    if not tower_dir.exists():
        save_tower(tower_dir, tower)
    if not text_dir.exists():
        save_language_model(text_dir, language_model)
    options = {"expert_intermediate_size": 20, **options}
    shared = {k: v for k, v in options.items() if k in ("routing_scope", "vision_feature_select_strategy")}
    processor = ParrotProcessor.from_vision_text_pretrained(tower_dir, text_dir, **shared)
    torch.manual_seed(2)
    model = ParrotForConditionalGeneration.from_vision_text_pretrained(tower_dir, text_dir, **options)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "multi_modal_projector" in name or (trained and "language_experts" in name):
                parameter.normal_(std=0.4)
    return model, processor


def picture(index: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A deterministic noise image, different for each index."""
    generator = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def user(text: str, *images: Image.Image) -> dict:
    return {
        "role": "user",
        "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}],
    }


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def encode(processor: ParrotProcessor, *chats: list[dict], generate: bool = True, **options):
    """Model inputs of conversations, padded."""
    return processor.apply_chat_template(
        list(chats), add_generation_prompt=generate, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True, **options},
    )  # fmt: skip
