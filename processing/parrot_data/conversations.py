"""From a row of any supported data set to one checked conversation. Pure functions, no files, no tensors.

The one format that everything after this module sees is

    {"id": str, "messages": [{"role", "content": [{"type": "text", "text"} | {"type": "image"}]}],
     "images": [...], "language": str | None, "task": str | None}

with as many `{"type": "image"}` parts, in order, as there are images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from instructions_parrot import IMAGE_MARKER


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def to_row(raw: Mapping[str, Any], where: str, *, language: str | None = None, task: str | None = None) -> dict:
    """Turn one raw row into the common format and check it.

    Args:
        raw: either LLaVA columns (`conversations` with `from`/`value`, optional `image`: one image or a list) or chat
            columns (`messages` with `role`/`content`, optional `images` or `image`). `id`, `language` and `task` are
            optional. An image is whatever `parrot_data.images.load_image` reads: a path, a dictionary with bytes, or
            a PIL image. A row that is already in the common format stays as it is.
        where: names the row in errors, for example "data.json, row 12".
        language, task: what a row without such a column gets.

    Raises:
        ValueError: no or empty conversation, unknown role, turns that do not alternate, a turn without content, an
            image outside a user turn, or another number of image markers than of images.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: a row must be an object with columns, not {type(raw).__name__}.")
    row_id = raw.get("id")
    if row_id is not None and str(row_id) != where:
        where = f"{where} (id {str(row_id)!r})"
    images = _as_list(raw.get("images") if raw.get("images") is not None else raw.get("image"))
    if raw.get("conversations") is not None:
        messages = _llava_messages(raw["conversations"], where)
    elif raw.get("messages") is not None:
        messages, inline_images = _chat_messages(raw["messages"], len(images), where)
        images = images or inline_images
    else:
        raise ValueError(
            f"{where}: no conversation. Expected a column `conversations` (LLaVA) or `messages` (chat), "
            f"found {sorted(raw)}."
        )
    _check_turns(messages, where)
    markers = sum(part["type"] == "image" for message in messages for part in message["content"])
    if markers != len(images):
        raise ValueError(
            f"{where}: {markers} {IMAGE_MARKER} in the text but {len(images)} image(s). "
            "Write one marker into the user's text for each image, in the order of the images."
        )
    return {
        "id": where if row_id is None else str(row_id),
        "messages": messages,
        "images": images,
        "language": raw.get("language") or language,
        "task": raw.get("task") or task,
    }


def _as_list(images: Any) -> list:
    if images is None or isinstance(images, str) and not images:
        return []
    return list(images) if isinstance(images, Sequence) and not isinstance(images, (str, bytes)) else [images]


def _split_at_markers(text: str) -> list[dict]:
    """Text with `<image>` markers to parts.

    A single marker goes to the front of its turn, as in LLaVA's and PARROT's training code. Several markers stay where
    they are written, because there their places carry meaning ("compare <image> with <image>"). Space after a marker
    is dropped: the chat template writes the line break that follows an image.
    """
    pieces = text.strip().split(IMAGE_MARKER)
    if len(pieces) == 2:
        pieces = ["", "\n".join(piece.strip() for piece in pieces if piece.strip())]
    parts: list[dict] = []
    for number, piece in enumerate(pieces):
        if number > 0:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.lstrip()})
    return parts


def _llava_messages(conversations: Any, where: str) -> list[dict]:
    if not isinstance(conversations, Sequence) or isinstance(conversations, str) or len(conversations) == 0:
        raise ValueError(f"{where}: `conversations` is empty or not a list. Remove the row or give it its turns.")
    messages = []
    for number, turn in enumerate(conversations):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise ValueError(
                f"{where}: turn {number} must be an object with the texts `from` and `value`, is {turn!r}."
            )
        messages.append({"role": _role(turn["from"], number, where), "content": _split_at_markers(turn["value"])})
    return messages


def _chat_messages(raw_messages: Any, num_images: int, where: str) -> tuple[list[dict], list]:
    """Chat messages with string or structured content. Returns them and the images written inside the parts.

    When every content is a string without a marker and the row has images, the text says nothing about their places:
    they are put in front of the first user turn, which is what TRL does with the same rows.
    """
    if not isinstance(raw_messages, Sequence) or isinstance(raw_messages, str) or len(raw_messages) == 0:
        raise ValueError(f"{where}: `messages` is empty or not a list. Remove the row or give it its turns.")
    messages: list[dict] = []
    inline_images: list = []
    only_strings = True
    for number, message in enumerate(raw_messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"{where}: message {number} must be an object with `role` and `content`, is {message!r}.")
        role, content = _role(message["role"], number, where), message.get("content")
        if isinstance(content, str):
            parts = _split_at_markers(content)
        elif isinstance(content, Sequence):
            only_strings = False
            parts = []
            for part in content:
                kind = part.get("type") if isinstance(part, Mapping) else None
                if kind == "text" and isinstance(part.get("text"), str):
                    parts.append({"type": "text", "text": part["text"]})
                elif kind == "image":
                    parts.append({"type": "image"})
                    inline_images += [part["image"]] if part.get("image") is not None else []
                else:
                    raise ValueError(f"{where}: message {number} has a part that is neither text nor image: {part!r}.")
        else:
            raise ValueError(f"{where}: message {number} has no content (text or a list of parts).")
        messages.append({"role": role, "content": parts})
    has_markers = any(part["type"] == "image" for message in messages for part in message["content"])
    if only_strings and num_images and not has_markers:
        first_user = next((message for message in messages if message["role"] == "user"), None)
        if first_user is not None:
            first_user["content"] = [{"type": "image"} for _ in range(num_images)] + first_user["content"]
    return messages, inline_images


def _role(name: Any, number: int, where: str) -> str:
    if name not in ROLES:
        raise ValueError(f"{where}: turn {number} has the unknown role {name!r}. Known roles: {', '.join(ROLES)}.")
    return ROLES[name]


def _check_turns(messages: list[dict], where: str) -> None:
    """An optional system message, then user and assistant in turn, the last word being the assistant's."""
    for number, message in enumerate(messages):
        has_image = any(part["type"] == "image" for part in message["content"])
        has_text = any(part["type"] == "text" and part["text"].strip() for part in message["content"])
        if not has_text and not (has_image and message["role"] == "user"):
            raise ValueError(f"{where}: turn {number} ({message['role']}) has no text.")
        if has_image and message["role"] != "user":
            raise ValueError(
                f"{where}: turn {number} ({message['role']}) contains an image or the text {IMAGE_MARKER}. "
                "Images belong into user turns."
            )
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    for number, (role, expected) in enumerate(zip(turns, ("user", "assistant") * len(turns), strict=False)):
        if role != expected:
            raise ValueError(
                f"{where}: turn {number + len(roles) - len(turns)} is by the {role}, expected the {expected}. "
                "User and assistant must alternate, starting with the user."
            )
    if not turns or turns[-1] != "assistant":
        raise ValueError(f"{where}: the conversation does not end with an answer, so there is nothing to learn from.")
