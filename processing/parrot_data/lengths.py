"""Finding rows that cannot be used at a `max_length` before training starts, without tokenizing everything.

A row is cut after `max_length` tokens. That is fine as long as all its images and the beginning of an answer lie before
the cut. A token covers at least one byte, so counting bytes clears nearly all rows of a usual data set; only the others
are tokenized.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from parrot_data.collator import ParrotDataCollator
    from parrot_data.mixtures import ConversationDataset


def needed_part(messages: list[dict]) -> list[dict]:
    """The messages up to the last image, and at least up to the question of the first answer."""
    last_image = max((i for i, m in enumerate(messages) if any(p["type"] == "image" for p in m["content"])), default=0)
    first_answer = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[: max(last_image + 1, first_answer)]


def needed_size(messages: list[dict]) -> tuple[int, int, int]:
    """Bytes of text, images, and turns of the needed part."""
    part = needed_part(messages)
    texts = [piece["text"] for message in part for piece in message["content"] if piece["type"] == "text"]
    images = sum(piece["type"] == "image" for message in part for piece in message["content"])
    return sum(len(text.encode()) for text in texts), images, len(part)


def rows_that_do_not_fit(dataset: "ConversationDataset", collator: "ParrotDataCollator") -> dict[int, str]:
    """Positions of the rows the collator would refuse at its `max_length`, each with its complaint."""
    if collator.max_length is None:
        return {}
    processor, blank = collator.processor, Image.new("RGB", (1, 1))

    def markup(turns: int) -> int:
        talk = [{"role": r, "content": [{"type": "text", "text": "x"}]} for r in ("user", "assistant") * turns]
        return len(processor.tokenizer(processor.apply_chat_template(talk))["input_ids"])

    per_turn = markup(2) - markup(1)
    # [rows], tokens beside the text: markup (a little more than it can be), and the images' placeholders
    fixed = markup(1) + per_turn * dataset.needed[:, 2] + processor.num_image_tokens * dataset.needed[:, 1]
    suspects = np.flatnonzero(dataset.needed[:, 0] + fixed > collator.max_length)
    complaints = {}
    for start in range(0, len(suspects), 1000):
        positions = suspects[start : start + 1000].tolist()
        rows = [dataset.stored_row(position) for position in positions]
        parts = [[piece for message in needed_part(row["messages"]) for piece in message["content"]] for row in rows]
        texts = [" ".join(piece["text"] for piece in part if piece["type"] == "text") for part in parts]
        for position, row, ids in zip(positions, rows, processor.tokenizer(texts)["input_ids"], strict=True):
            if len(ids) + fixed[position] > collator.max_length:
                try:
                    collator([{**row, "images": [blank] * len(row["images"])}])
                except ValueError as error:
                    complaints[position] = str(error)
    return complaints
