"""Looking into a model, in numbers: what drives its router, and how far its visual features are from its textual ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass
class Routing:
    """
    How one image was routed.

    Args:
        experts: [E], the router's probabilities (PARROT, equation 3).
        words: the tokens of the routing text, readable; tokens that are parts of one character stand together.
        attention: [number of words], what each gives to the guidance (equation 2); sum 1.
        regions: [rows, columns], the share of each patch in what moves the likeliest expert's log-probability
            (|gradient x pixel|, summed over the patch); sum 1.
    """

    experts: np.ndarray
    words: list[str]
    attention: np.ndarray
    regions: np.ndarray


def encode(model: Any, processor: Any, image: Image.Image, question: str) -> Any:
    """Inputs of one question on one image."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)


def routing(model: Any, processor: Any, image: Image.Image, question: str) -> Routing:
    """
    Raises:
        ValueError: the model has no language experts.
    """
    base = model.model
    if getattr(base, "language_experts", None) is None:
        raise ValueError("This model has no language experts (num_language_experts is 0): there is no router.")
    inputs = encode(model, processor, image, question)
    pixels = inputs["pixel_values"].detach().requires_grad_()
    ids, mask = inputs["routing_input_ids"], inputs["routing_attention_mask"]
    with torch.enable_grad():
        features = base.get_image_features(pixels, ids, mask, return_dict=True)
        probabilities = features.router_probs[0]  # [E]
        gradient = torch.autograd.grad(probabilities.max().log(), pixels)[0]
    with torch.no_grad():
        projected = base.multi_modal_projector(features.last_hidden_state)  # [1, prefix + patches, C]
        size = model.config.vision_config.patch_size
        influence = (gradient * pixels).abs().sum(1)[0].float()  # [H, W]
        regions = torch.nn.functional.avg_pool2d(influence[None], size)[0]  # [rows, columns]
        has_class_token = projected.shape[1] > regions.numel()
        class_feature = projected[:, 0] if has_class_token else projected.mean(1)
        kept = mask[0].bool()
        embeddings = base.get_input_embeddings()(ids[0, kept]).to(projected.dtype)  # [L, C]
        # Equation 2, here because a checkpoint brings its own code, which gives only the sum.
        attention = (embeddings @ class_feature[0] * embeddings.shape[-1] ** -0.5).float().softmax(-1)  # [L]
    words, weights = whole_characters(processor.tokenizer, ids[0][kept].tolist(), attention.tolist())
    return Routing(
        probabilities.detach().float().cpu().numpy(),
        words,
        np.array(weights, dtype=np.float32),
        (regions / regions.sum().clamp(min=1e-12)).cpu().numpy(),
    )


def whole_characters(tokenizer: Any, tokens: Sequence[int], weights: Sequence[float]) -> tuple[list[str], list[float]]:
    """Readable pieces and the sums of their weights: byte-level tokens may each hold only a part of a character."""
    pieces, sums, start = [], [], 0
    for end in range(1, len(tokens) + 1):
        piece = tokenizer.decode(tokens[start:end])
        if "\N{REPLACEMENT CHARACTER}" not in piece or end == len(tokens):
            pieces.append(piece)
            sums.append(sum(weights[start:end]))
            start = end
    return pieces, sums


@torch.inference_mode()
def expert_weights(
    model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[str], batch_size: int = 32
) -> np.ndarray:
    """The router's probabilities [N, E] for questions on one image each. No text is generated."""
    found = []
    for start in range(0, len(images), batch_size):
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in zip(
                images[start : start + batch_size], questions[start : start + batch_size], strict=True
            )
        ]
        inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device, model.dtype)  # fmt: skip
        features = model.model.get_image_features(
            inputs["pixel_values"], inputs["routing_input_ids"], inputs["routing_attention_mask"], return_dict=True
        )
        found.append(features.router_probs.float().cpu())
    return torch.cat(found).numpy()


@torch.inference_mode()
def modality_features(
    model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[str], texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Mean visual tokens and mean word embeddings, as in LRM-LLaVA's figure 5 ("we average the sequential representations").

    Args:
        questions: guide the experts, if the model has any.
        texts: what people say about the images, in one language.

    Returns:
        Visual and textual features, [N, C] each: both are what the language model reads.
    """
    visual, textual = [], []
    for image, question, text in zip(images, questions, texts, strict=True):
        inputs = encode(model, processor, image, question)
        routed = {key: inputs[key] for key in ("routing_input_ids", "routing_attention_mask") if key in inputs}
        features = model.model.get_image_features(inputs["pixel_values"], **routed, return_dict=True).pooler_output
        visual.append(features[0].float().mean(0))
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
        textual.append(model.get_input_embeddings()(ids)[0].float().mean(0))
    return torch.stack(visual).cpu().numpy(), torch.stack(textual).cpu().numpy()


def gap(visual: np.ndarray, textual: np.ndarray, folds: int = 5, seed: int = 0) -> dict[str, float]:
    """
    How far two sets of features [N, C] of the same things are apart, in numbers that need no projection to a plane.

    Returns:
        centroid_distance: between the means, in units of the mean distance of a feature from its own mean.
        mean_cosine: of a thing's two features; 1 is the same direction.
        separability: accuracy of a linear probe that tells visual from textual features, cross-validated; 0.5 is
            chance, 1 is two separate clouds.
        cka: linear centred kernel alignment (Kornblith et al. 2019): 1 if both arrange the things alike, whatever their
            place and scale.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    both = [visual - visual.mean(0), textual - textual.mean(0)]
    spread = np.mean([np.linalg.norm(centred, axis=1).mean() for centred in both])
    cosine = (visual * textual).sum(1) / (np.linalg.norm(visual, axis=1) * np.linalg.norm(textual, axis=1))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    labels = np.repeat([0, 1], [len(visual), len(textual)])
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    told = cross_val_score(probe, np.concatenate([visual, textual]), labels, cv=splits)
    shared = np.linalg.norm(both[0].T @ both[1]) ** 2
    own = np.linalg.norm(both[0].T @ both[0]) * np.linalg.norm(both[1].T @ both[1])
    return {
        "centroid_distance": float(np.linalg.norm(visual.mean(0) - textual.mean(0)) / spread),
        "mean_cosine": float(cosine.mean()),
        "separability": float(told.mean()),
        "cka": float(shared / own),
    }
