"""From rows with images to one batch for the Trainer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from processing_parrot import ParrotProcessor


@dataclass
class ParrotDataCollator:
    """Turns rows in the common format (see `parrot_data.conversations`) into a right-padded batch.

    The batch holds, for B rows of at most T tokens and N images in all:

    - `input_ids`: [B, T] int64, image placeholders already expanded.
    - `attention_mask`: [B, T] int64, 1 on tokens and 0 on padding.
    - `labels`: [B, T] int64, the token on assistant text and its end marker, -100 everywhere else.
    - `mm_token_type_ids`: [B, T] int64, 1 on image placeholders and 0 on text.
    - `pixel_values`: [N, 3, H, W] float32. Absent when no row has an image, as are the next two.
    - `routing_input_ids`: [N, L] int64, the text that routes each image, in the order of the images. Answers are never
      part of it, and cutting a row to `max_length` does not change it.
    - `routing_attention_mask`: [N, L] int64.

    Args:
        processor: a `ParrotProcessor` whose chat template marks answers with `{% generation %}`.
        max_length: longer rows are cut at this length, in text after their last image, never in an image.
        pad_to_multiple_of: pads T to a multiple of this number.

    Raises:
        ValueError: a row's images do not fit into `max_length`, or no label of a row is left. The row is named.
    """

    processor: ParrotProcessor
    max_length: int | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # Lists, not tensors: finding the answers' tokens in tensors of offsets took most of a small model's time.
        encoded: Any = self.processor.apply_chat_template(
            [with_images(row) for row in rows],
            tokenize=True,
            return_dict=True,
            return_tensors=None,
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right"},
        )
        batch = {name: torch.from_numpy(np.asarray(value)) for name, value in encoded.items()}
        answers = batch.pop("assistant_masks").bool() & batch["attention_mask"].bool()
        batch["labels"] = batch["input_ids"].masked_fill(~answers, -100)
        lengths = batch["attention_mask"].sum(dim=1)  # [B]
        if self.max_length is not None:
            self._check_images_fit(rows, batch["input_ids"], lengths)
            lengths = lengths.clamp(max=self.max_length)
        for row, length, labels in zip(rows, lengths.tolist(), batch["labels"], strict=True):
            if not (labels[:length] != -100).any():
                raise ValueError(
                    f"row {row['id']!r}: nothing to train on, every label of its {length} tokens is masked. Its first "
                    f"answer begins after max_length={self.max_length}, or the chat template marks no answer."
                )
        width = int(lengths.max())
        for name in ("input_ids", "attention_mask", "labels", "mm_token_type_ids"):
            if name in batch:
                batch[name] = self._to_width(batch[name][:, :width], name)
        return batch

    def _check_images_fit(self, rows: list[dict], input_ids: torch.Tensor, lengths: torch.Tensor) -> None:
        too_late = input_ids[:, self.max_length :] == self.processor.image_token_id
        for row, cut_images, length in zip(rows, too_late.any(dim=1).tolist(), lengths.tolist(), strict=True):
            if cut_images:
                raise ValueError(
                    f"row {row['id']!r}: its {len(row['images'])} image(s) of {self.processor.num_image_tokens} "
                    f"tokens each do not fit into max_length={self.max_length} (the row has {length} tokens, and "
                    "images are never cut). Raise max_length, shorten the text before the last image, or remove the "
                    "row."
                )

    def _to_width(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        padding = -tensor.shape[1] % (self.pad_to_multiple_of or 1)
        value = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": -100}.get(name, 0)
        return torch.nn.functional.pad(tensor, (0, padding), value=value)


def with_images(row: dict[str, Any]) -> list[dict]:
    """The row's messages with each `{"type": "image"}` part holding its image, as chat templates expect them."""
    images = iter(row["images"])
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(images)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in row["messages"]
    ]
