"""Train the example's vision tower: a tiny CLIP that reads English, from scratch, on the training drawings.

    python examples/emoji/train_tower.py --output examples/emoji/base/clip

No image of the held-out style and none of a held-out concept is seen. Writes an HF `CLIPModel` (bf16), its English
tokenizer, the image processor's configuration and `metrics.json`.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from emoji_data import Concept, EmojiData, load_data, load_images
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)


# The mean and standard deviation of openai/clip-vit-*; the drawings' own differ little in effect.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_TEXT = 20


def make_tokenizer(data: EmojiData) -> PreTrainedTokenizerFast:
    """Lower-casing byte-level BPE trained on the English names and keywords."""
    texts = [text for c in data.split("train") for text in [c.names["en"], *c.keywords["en"]]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos, eos = (tokenizer.token_to_id(token) for token in special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}", special_tokens=[(special[0], bos), (special[1], eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        model_max_length=MAX_TEXT,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, image_size: int) -> CLIPModel:
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3,
        image_size=image_size, patch_size=16, hidden_act="gelu", projection_dim=128,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=MAX_TEXT, projection_dim=128, hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    # Eager attention: the backward of SDPA in bf16 is slow on CPUs.
    config._attn_implementation = "eager"
    return CLIPModel(config)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, scale, rotate, mirror, recolour and cover parts of `images` [B, 3, H, W] in 0..1, white outside."""
    batch, _, height, width = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.3, 0.3, batch), uniform(0.85, 1.3, batch)
    stretch = uniform(0.88, 1.14, batch)
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = uniform(-0.18, 0.18, 2, batch)
    matrix = torch.stack(
        [
            torch.stack([cos * mirror * stretch, -sin, shift[0]], 1),
            torch.stack([sin * mirror, cos / stretch, shift[1]], 1),
        ],
        1,
    )  # [B, 2, 3]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    ink = F.grid_sample(1 - images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # A random mixture of the channels changes hue and saturation; grey remains grey.
    mix = torch.eye(3) + uniform(0.0, 1.0, batch, 1, 1) * torch.randn(batch, 3, 3, generator=generator) * 0.18
    mix = mix / mix.sum(2, keepdim=True).clamp(min=0.3)
    grey = (torch.rand(batch, generator=generator) < 0.08)[:, None, None]
    mix = torch.where(grey, torch.full((3, 3), 1 / 3), mix)
    ink = torch.einsum("bij,bjhw->bihw", mix, ink)
    result = (1 - ink * uniform(0.7, 1.2, batch, 1, 1, 1)).clamp(0, 1)
    # Half of the pictures get a pale coloured background: a gain per channel.
    tint = uniform(0.75, 1.0, batch, 3, 1, 1)
    result = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.4, result * tint, result)
    # Cover one rectangle in a third of the pictures.
    side, top, left = uniform(8, 24, batch), uniform(0, height - 8, batch), uniform(0, width - 8, batch)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = (rows >= top[:, None, None]) & (rows < (top + side)[:, None, None])
    inside = inside & (columns >= left[:, None, None]) & (columns < (left + side)[:, None, None])
    inside = inside & (torch.rand(batch, 1, 1, generator=generator) < 0.33)
    return torch.where(inside[:, None], uniform(0, 1, batch, 3, 1, 1), result)


def normalize(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def caption(concept: Concept, rng: random.Random) -> str:
    """English text as found beside a picture: the name, with or without some keywords."""
    name, keywords = concept.names["en"], concept.keywords["en"]
    some = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
    return rng.choices([name, f"a picture of {name}", ", ".join([name, *some])], [0.5, 0.2, 0.3])[0]


class Drawings:
    """The images as one tensor, and a random choice of drawings per concept."""

    def __init__(self, data: EmojiData):
        images = load_images()
        self.keys = list(images)
        self.position = {key: i for i, key in enumerate(self.keys)}
        self.pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images.values()])).permute(0, 3, 1, 2)
        self.styles = {
            c.id: [style for style in data.train_styles if (style, c.id) in self.position] for c in data.concepts
        }

    def get(self, keys: list[tuple[str, str]]) -> Tensor:
        """[B, 3, H, W] in 0..1."""
        return self.pixels[[self.position[key] for key in keys]].float() / 255


def contrastive(images: Tensor, texts: Tensor, owner: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss for several images per text: `images` [B, D], `texts` [N, D], `owner` [B] in 0..N-1."""
    logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T  # [B, N]
    per_text = torch.zeros_like(logits).scatter_(1, owner[:, None], 1)
    per_text = per_text / per_text.sum(0, keepdim=True)
    return F.cross_entropy(logits, owner, label_smoothing=0.05) - (per_text * logits.log_softmax(0)).sum(0).mean()


@torch.no_grad()
def vision_features(model: CLIPModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(image embeddings [B, D], hidden_states[-2] of CLS and patches [B, S, C]) of `pixels` in 0..1."""
    parts = []
    for part in pixels.split(256):
        output = model.vision_model(pixel_values=normalize(part).to(model.device), output_hidden_states=True)
        embeddings, features = model.visual_projection(output.pooler_output), output.hidden_states[-2]
        parts.append((embeddings.float().cpu(), features.float().cpu()))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def choice_accuracy(scores: Tensor, concepts: list[Concept], answers: list[int], pool: list[int], seed: int) -> float:
    """4-way choice: the answer against three random concepts of its group out of `pool`, 20 draws per image.

    Args:
        scores: [images, concepts].
        answers: index of the right concept of each image.
        pool: indices of the concepts that may be distractors.
    """
    rng = random.Random(seed)
    right = total = 0
    for row, answer in zip(scores.tolist(), answers, strict=True):
        others = [i for i in pool if concepts[i].group == concepts[answer].group and i != answer]
        for _ in range(20):
            right += all(row[answer] > row[other] for other in rng.sample(others, 3))
            total += 1
    return right / total


@torch.no_grad()
def evaluate(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, data: EmojiData, drawings: Drawings
) -> dict[str, float]:
    """4-way accuracies by image-text similarity on what no training saw, and the shuffled-image control."""
    model.eval()
    tokens = tokenizer([c.names["en"] for c in data.concepts], padding=True, return_tensors="pt")
    texts = F.normalize(model.get_text_features(**tokens.to(model.device)).pooler_output.float().cpu(), dim=-1)
    index = {c.id: i for i, c in enumerate(data.concepts)}
    metrics = {}
    for name, split, styles in (
        ("held_out_style", "train", [data.held_out_style]),
        ("held_out_concepts", "held_out", [*data.train_styles, data.held_out_style]),
    ):
        pool = [index[c.id] for c in data.split(split)]
        keys = [(s, c.id) for c in data.split(split) for s in styles if (s, c.id) in drawings.position]
        answers = [index[id_] for _, id_ in keys]
        embeddings, _ = vision_features(model, drawings.get(keys))
        scores = F.normalize(embeddings, dim=-1) @ texts.T
        metrics[f"{name}/choice"] = choice_accuracy(scores, data.concepts, answers, pool, 0)
        shuffled = scores[torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))]
        metrics[f"{name}/choice_shuffled_images"] = choice_accuracy(shuffled, data.concepts, answers, pool, 0)
        best = scores[:, pool].argmax(1).tolist()
        metrics[f"{name}/top1_of_{len(pool)}"] = sum(pool[b] == a for b, a in zip(best, answers, strict=True)) / len(
            keys
        )
    model.train()
    return metrics


def probe(model: CLIPModel, data: EmojiData, drawings: Drawings, layer_steps: int = 400) -> dict[str, float]:
    """What Parrot will read: a two-layer probe on hidden_states[-2] (CLS beside the mean patch), held-out style."""
    model.eval()
    train = data.split("train")
    index = {c.id: i for i, c in enumerate(train)}
    keys = [(s, c.id) for c in train for s in drawings.styles[c.id]]
    generator = torch.Generator().manual_seed(0)
    features, labels = [], []
    for _ in range(6):
        _, tokens = vision_features(model, augment(drawings.get(keys), generator))
        features.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
        labels += [index[id_] for _, id_ in keys]
    x, y = torch.cat(features), torch.tensor(labels)
    mean, std = x.mean(0), x.std(0) + 1e-5
    test_keys = [(data.held_out_style, c.id) for c in train]
    _, tokens = vision_features(model, drawings.get(test_keys))
    test = (torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1) - mean) / std
    metrics = {}
    for name, net in (
        ("linear", nn.Linear(x.shape[1], len(train))),
        ("mlp", nn.Sequential(nn.Linear(x.shape[1], 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, len(train)))),
    ):
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
        for _ in range(layer_steps):
            rows = torch.randint(len(x), (512,), generator=generator)
            loss = F.cross_entropy(net((x[rows] - mean) / std), y[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            scores = net(test)
        pool = list(range(len(train)))
        metrics[f"probe_{name}/choice"] = choice_accuracy(scores, train, pool, pool, 0)
        metrics[f"probe_{name}/top1"] = (scores.argmax(1) == torch.arange(len(train))).float().mean().item()
    model.train()
    return metrics


def train(output: Path, steps: int, seed: int, peak_lr: float, bf16: bool) -> None:
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    data = load_data(trained_per_group=None)
    drawings, tokenizer = Drawings(data), make_tokenizer(data)
    model = make_model(tokenizer, data.image_size)
    nn.Module.to(model, device)
    # Parrot reads hidden_states[-2], so a second loss keeps that layer as rich as the last; its head is not saved.
    side_head = nn.Linear(192, 128).to(device)
    concepts = data.split("train")
    parameters = [*model.parameters(), *side_head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
         {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}],
        peak_lr, betas=(0.9, 0.98),
    )  # fmt: skip
    owner = torch.arange(len(concepts), device=device).repeat(2)
    start = time.time()
    for step in range(1, steps + 1):
        learning_rate = peak_lr * min(1, step / 100) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        keys = [(rng.choice(drawings.styles[c.id]), c.id) for _ in range(2) for c in concepts]
        tokens = tokenizer([caption(c, rng) for c in concepts], padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(device)
        pixels = normalize(augment(drawings.get(keys), generator)).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            vision = model.vision_model(pixel_values=pixels, output_hidden_states=True)
            images = model.visual_projection(vision.pooler_output)
            side = side_head(model.vision_model.post_layernorm(vision.hidden_states[-2].mean(1)))
            texts = model.get_text_features(**tokens).pooler_output
        scale = model.logit_scale.exp().clamp(max=50)
        loss = contrastive(images, texts, owner, scale) + 0.5 * contrastive(side, texts, owner, scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 20 == 0:
            scores = evaluate(model, tokenizer, data, drawings) if step % 200 == 0 else {}
            text = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
            print(f"step {step}/{steps} {time.time() - start:.0f} s loss {loss.item():.3f} {text}", flush=True)
    seconds = time.time() - start
    model.cpu().bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)
    size = {"height": data.image_size, "width": data.image_size}
    CLIPImageProcessorPil(
        size={"shortest_edge": data.image_size}, crop_size=size, image_mean=MEAN, image_std=STD
    ).save_pretrained(output)
    # The saved weights are what is measured.
    saved = CLIPModel.from_pretrained(output, dtype=torch.float32)
    metrics = {**evaluate(saved, tokenizer, data, drawings), **probe(saved, data, drawings)}
    metrics = {name: round(value, 4) for name, value in metrics.items()}
    vision_parameters = sum(p.numel() for p in saved.vision_model.parameters())
    metrics |= {"steps": step, "seconds": round(seconds), "seed": seed, "vision_parameters": vision_parameters}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=850, help="of two drawings of every training concept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-lr", type=float, default=1e-3)
    parser.add_argument("--bf16", action="store_true", help="autocast: faster on a GPU or a CPU with AMX, else slower")
    args = parser.parse_args()
    train(args.output, args.steps, args.seed, args.peak_lr, args.bf16)
