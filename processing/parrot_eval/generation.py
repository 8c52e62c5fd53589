"""Asking a model: greedy answers in batches, and log-likelihoods of given answers. Any image-text model of transformers."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


class Request(NamedTuple):
    """One prompt: its text, and the images before it."""

    text: str
    images: Sequence[Image.Image]


class Likelihood(NamedTuple):
    """Of one candidate answer."""

    log_probability: float  # of all its tokens, natural logarithm
    tokens: int
    greedy: bool  # whether each token is the likeliest, so that greedy decoding begins with this answer


class Asker:
    """
    A model with its processor.

    Args:
        model, processor: of any checkpoint for images and text whose processor has a chat template.
        max_new_tokens: of an answer.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 128):
        self.model, self.processor, self.max_new_tokens = model.eval(), processor, max_new_tokens
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"The processor {type(processor).__name__} has no chat template, so there is no way to know how the "
                "model wants to be asked. Save it with one."
            )

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: Any = "cpu",
        *,
        dtype: str = "auto",
        max_new_tokens: int = 128,
        trust_remote_code: bool = False,
    ) -> "Asker":
        """
        Args:
            name: folder of a checkpoint, or id on the Hub. Without `trust_remote_code` its classes have to be known,
                as Parrot's are after `import modeling_parrot`.
            dtype: of the weights: auto, bfloat16, float16, float32.
        """
        weights = dtype if dtype == "auto" else getattr(torch, dtype)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name, dtype=weights, trust_remote_code=trust_remote_code
        )
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
        return cls(model.to(device), processor, max_new_tokens)

    def encode(self, requests: Sequence[Request]) -> Any:
        """Inputs of a batch, padded on the left, on the model's device."""
        chats = []
        for text, images in requests:
            content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
            chats.append([{"role": "user", "content": content}])
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return inputs.to(self.model.device, self.model.dtype)

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request], **generation: Any) -> list[str]:
        """Answers to a batch, without special tokens; greedy unless `generation` (of `generate`) says otherwise."""
        inputs = self.encode(requests)
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": False, **generation}
        tokens = self.model.generate(**inputs, **settings)
        written = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(written, skip_special_tokens=True)]

    @torch.inference_mode()
    def likelihoods(self, requests: Sequence[Request], candidates: Sequence[Sequence[str]]) -> list[list[Likelihood]]:
        """
        How likely the model is to answer with each candidate.

        The prompts, with their images, run once; every candidate goes on from a copy of their cache.

        Args:
            candidates: of each request, at least one.

        Returns:
            Of each request, in the order of its candidates.
        """
        inputs = self.encode(requests)
        mask = inputs["attention_mask"]  # [B, L]
        positions = mask.cumsum(-1).clamp(min=1) - 1
        start = self.model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
        first = start.logits[:, -1].float().log_softmax(-1)  # [B, V]
        result: list[list[Likelihood]] = [[] for _ in requests]
        tokenizer = self.processor.tokenizer
        for number in range(max(map(len, candidates))):
            # A row with fewer candidates repeats its first one, which is thrown away.
            texts = [own[number] if number < len(own) else own[0] for own in candidates]
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            longest = max(map(len, ids))
            tokens = torch.tensor(
                [row + [row[-1]] * (longest - len(row)) for row in ids], device=mask.device
            )  # [B, T]
            found = first.gather(1, tokens[:, :1])  # [B, 1]
            greedy = tokens[:, :1] == first.argmax(-1, keepdim=True)
            if longest > 1:
                known = positions[:, -1:] + 1 + torch.arange(longest - 1, device=mask.device)
                outputs = self.model(
                    input_ids=tokens[:, :-1],
                    attention_mask=torch.cat([mask, mask.new_ones(len(ids), longest - 1)], 1),
                    position_ids=known,
                    past_key_values=deepcopy(start.past_key_values),
                    use_cache=True,
                )
                later = outputs.logits.float().log_softmax(-1)  # [B, T - 1, V]
                found = torch.cat([found, later.gather(2, tokens[:, 1:, None])[..., 0]], 1)  # [B, T]
                greedy = torch.cat([greedy, tokens[:, 1:] == later.argmax(-1)], 1)
            for row, own in enumerate(candidates):
                if number < len(own):
                    length = len(ids[row])
                    value = Likelihood(found[row, :length].sum().item(), length, bool(greedy[row, :length].all()))
                    result[row].append(value)
        return result
