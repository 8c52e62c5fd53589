"""What `benchmark.py` compares: shapes, random models of three kinds that share them, and batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from modeling_parrot import ParrotConfig, ParrotForConditionalGeneration
from modeling_parrot.language_experts_parrot import ParrotLanguageExperts


SIDES = ("parrot", "llava", "published")


@dataclass(frozen=True)
class Shape:
    """Widths, layers and lengths of a benchmark. Images are squares of `grid` x `grid` patches and a CLS token."""

    name: str
    grid: int
    patch: int
    tower_width: int
    tower_layers: int
    tower_heads: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    hidden: int
    vocabulary: int
    expert_width: int
    experts: int = 6
    active: int | None = None
    text: int = 48  # tokens of a row beside the image's
    labels: int = 16  # of them with a label

    @property
    def image_tokens(self) -> int:
        return self.grid**2 + 1

    @property
    def image_size(self) -> int:
        return self.grid * self.patch


VIT_L: dict[str, Any] = {
    "grid": 24,
    "patch": 14,
    "tower_width": 1024,
    "tower_layers": 24,
    "tower_heads": 16,
    "text": 128,
    "labels": 64,
}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 4, 7, 64, 3, 4, 64, 2, 4, 4, 128, 1000, 64),
        Shape("small", 12, 14, 512, 12, 8, 512, 8, 8, 8, 1376, 32_000, 512),
        # Qwen1.5's three, with CLIP ViT-L/14 at 336 px.
        Shape("0.5b", width=1024, layers=24, heads=16, key_value_heads=16, hidden=2816, vocabulary=151_936,
              expert_width=4096, **VIT_L),
        Shape("1.8b", width=2048, layers=24, heads=16, key_value_heads=16, hidden=5504, vocabulary=151_936,
              expert_width=4096, **VIT_L),
        Shape("7b", width=4096, layers=32, heads=32, key_value_heads=32, hidden=11008, vocabulary=151_936,
              expert_width=4096, **VIT_L),
    )
}  # fmt: skip


class PublishedExperts(ParrotLanguageExperts):
    """
    PARROT's published algorithm with the same parameters: sample by sample, every expert on its own, stacked, summed.

    Only the order of the work differs from `ParrotLanguageExperts`; the result is the same up to rounding.
    """

    def guide(
        self, class_feature: torch.Tensor, text_embeddings: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        rows = []
        for feature, embeddings, mask in zip(class_feature, text_embeddings, text_mask, strict=True):
            text = embeddings[mask.bool()]  # [L, C]
            attention = (feature[None] @ text.T / feature.shape[-1] ** 0.5).float().softmax(-1).to(text.dtype)
            rows.append(attention @ text)
        return torch.cat(rows)

    def forward(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        size = self.up_proj.weight.shape[0] // self.num_experts
        mixed = []
        for image, row in zip(features, weights.to(features.dtype), strict=True):
            outputs = []
            for expert in range(self.num_experts):
                part = slice(expert * size, (expert + 1) * size)
                assert self.gate_proj is not None  # SwiGLU, as in the authors' code
                gate = self.act(nn.functional.linear(image, self.gate_proj.weight[part]))
                up = nn.functional.linear(image, self.up_proj.weight[part])
                outputs.append(nn.functional.linear(gate * up, self.down_proj.weight[:, part]))
            stacked = torch.stack(outputs)  # [E, S, C]
            mixed.append(self.residual_scale * image + self.expert_scale * (row[:, None, None] * stacked).sum(0))
        return torch.stack(mixed)


def tower_config(shape: Shape) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=shape.tower_width, intermediate_size=4 * shape.tower_width, num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_heads, image_size=shape.image_size, patch_size=shape.patch,
    )  # fmt: skip


def text_config(shape: Shape) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip


def build(side: str, shape: Shape, dtype: torch.dtype, device: str, *, experts: bool = True) -> Any:
    """
    A model with random weights, in training mode.

    Args:
        side: "parrot"; "llava", transformers' own; "published", Parrot with PARROT's published algorithm and logits
            at every position.
        experts: without them, Parrot is what its stage 1 trains.
    """
    torch.manual_seed(0)
    common: dict[str, Any] = {"vision_config": tower_config(shape), "text_config": text_config(shape),
              "image_token_id": shape.vocabulary - 1, "vision_feature_layer": -2}  # fmt: skip
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            if side == "llava":
                config = LlavaConfig(
                    **{**common, "image_token_index": common["image_token_id"]},
                    vision_feature_select_strategy="full", image_seq_length=shape.image_tokens,
                )  # fmt: skip
                model: Any = LlavaForConditionalGeneration(config)
            else:
                parrot = ParrotConfig(
                    **common, vision_feature_select_strategy="full", image_seq_length=shape.image_tokens,
                    num_language_experts=shape.experts if experts else 0, num_active_experts=shape.active,
                    expert_intermediate_size=shape.expert_width, logits_for_labels_only=side == "parrot",
                )  # fmt: skip
                model = ParrotForConditionalGeneration(parrot)
                if side == "published" and experts:
                    own = model.model.language_experts
                    model.model.language_experts = PublishedExperts(parrot)
                    model.model.language_experts.load_state_dict(own.state_dict())
        finally:
            torch.set_default_dtype(torch.float32)
    return model.train()


def freeze(model: Any, stage: str) -> None:
    """PARROT's stages on any of the three: alignment trains the projector, instruction all but the tower."""
    if hasattr(model, "set_training_stage"):
        model.set_training_stage(stage)
        return
    for name, parameter in model.named_parameters():
        in_projector = "multi_modal_projector" in name
        parameter.requires_grad_(in_projector or (stage == "instruction" and "vision_tower" not in name))


def batch(shape: Shape, rows: int, dtype: torch.dtype, device: str, side: str, *, images: int = 1) -> dict[str, Any]:
    """Rows of images, a question, and an answer of `shape.labels` tokens at the end."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, shape.vocabulary - 1, (rows, shape.text), generator=generator)
    visual = torch.full((rows, images * shape.image_tokens), shape.vocabulary - 1)
    input_ids = torch.cat([text[:, :4], visual, text[:, 4:]], dim=1)
    labels = input_ids.clone()
    labels[:, : -shape.labels] = -100
    side_length = shape.image_size
    pixels = torch.randn(rows * images, 3, side_length, side_length, generator=generator).to(dtype)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels}
    if side != "llava":
        question = text[:, 4 : -shape.labels].repeat_interleave(images, 0)
        inputs |= {"routing_input_ids": question, "routing_attention_mask": torch.ones_like(question)}
    return {name: value.to(device) for name, value in (inputs | {"labels": labels}).items()}
