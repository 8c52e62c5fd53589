"""Chat templates, and where the turns of a conversation lie in the prompt they render."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple


# Contents of a message: text as it is, an image as its placeholder and a line break, in the given order.
_CONTENT_MACRO = (
    "{%- macro write(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- else -%}{{ raise_exception('Unknown content type ' ~ part['type'] ~ '; use \"text\" or \"image\".') }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)

# The order of roles is part of the format the models were trained on: an optional system message, then user and
# assistant in turn.
_ROLE_CHECK = (
    # Two plain assignments: engines read a template's source to see that contents are lists of parts.
    "{%- set turns = messages -%}"
    "{%- if messages and messages[0]['role'] == 'system' -%}{%- set turns = messages[1:] -%}{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- if message['role'] not in ['user', 'assistant'] -%}"
    "{{ raise_exception('Unknown role ' ~ message['role'] ~ ' in message ' ~ loop.index ~ '; use user and assistant, "
    "and system for the first message only.') }}"
    "{%- elif (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Message ' ~ loop.index ~ ' is from the ' ~ message['role'] ~ ', but user and assistant must "
    "alternate, starting with the user.') }}"
    "{%- endif -%}{%- endfor -%}"
)

CHAT_TEMPLATES = {
    # Qwen's markup, with the system prompt PARROT was trained with.
    "chatml": _CONTENT_MACRO + _ROLE_CHECK + "{{- '<|im_start|>system\n' }}"
    "{%- if messages and messages[0]['role'] == 'system' -%}{{ write(messages[0]['content']) }}"
    "{%- else -%}{{ 'You are a helpful assistant.' }}{%- endif -%}"
    "{{- '<|im_end|>\n' }}"
    "{%- for message in turns -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{ '<|im_start|>user\n' ~ write(message['content']) ~ '<|im_end|>\n' }}"
    "{%- else -%}"
    "{{ '<|im_start|>assistant\n' }}"
    "{%- generation -%}{{ write(message['content']) ~ '<|im_end|>' }}{%- endgeneration -%}"
    "{{- '\n' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
    # Vicuna v1.1's, as LLaVA-1.5 and LRM-LLaVA use it.
    "vicuna": _CONTENT_MACRO + _ROLE_CHECK + "{{- bos_token }}"
    "{%- if messages and messages[0]['role'] == 'system' -%}{{ write(messages[0]['content']) }}"
    "{%- else -%}{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' }}{%- endif -%}"
    "{{- ' ' }}"
    "{%- for message in turns -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{ 'USER: ' ~ write(message['content']) ~ ' ASSISTANT:' }}"
    "{%- else -%}"
    "{%- generation -%}{{ ' ' ~ write(message['content']) ~ eos_token }}{%- endgeneration -%}"
    "{%- endif -%}{%- endfor -%}",
}

# Unicode noncharacters: never part of interchanged text. They mark where contents begin and end while a
# conversation is rendered a second time to find its turns.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


class Turn(NamedTuple):
    """Character spans of one turn in a rendered prompt; `answer` is None while the turn has none."""

    user: tuple[int, int]
    answer: tuple[int, int] | None


class Markers(NamedTuple):
    """What a chat template writes around contents, found by rendering a sentinel conversation."""

    user_open: str  # before a user's text
    answer_open: str  # between a user's text and where the model begins to write
    answer_close: str  # end of the answer that is trained on (e.g. `<|im_end|>`)
    next_user: str  # between an answer and the next user's text


class RenderedPrompt(str):
    """
    A prompt rendered by `apply_chat_template`. It is a string, and remembers where its turns are: a string alone
    could not tell the template's markup from the same characters typed by a user.
    """

    turns: "list[Turn] | None" = None


def find_markers(render: Callable[..., str]) -> Markers | None:
    """
    A template's markers, by a sentinel conversation; None where it does not show them.

    Args:
        render: `render(messages, add_generation_prompt=...)` gives the prompt.
    """
    texts = ["sentinel-question-1", "sentinel-answer-1", "sentinel-question-2", "sentinel-answer-2"]
    chat = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(texts)
    ]
    pieces = re.split("|".join(texts), render(chat, add_generation_prompt=False))
    question = re.split(texts[0], render(chat[:1], add_generation_prompt=True))
    if len(pieces) != 5 or len(question) != 2:
        return None
    before, between_1, next_user, between_2, after = pieces
    answer_open = question[1]  # where the model begins to write; a space may follow in a whole conversation
    close = os.path.commonprefix([next_user, after]).rstrip()
    user_open = os.path.commonprefix([before[::-1], next_user[::-1]])[::-1]
    unclear = between_1 != between_2 or between_1.rstrip() != answer_open.rstrip()
    if unclear or not (answer_open.strip() and close and user_open.strip()):
        return None
    return Markers(user_open, answer_open, close, next_user)


def turns_of_text(prompt: str, markers: Markers | None) -> list[Turn]:
    """
    Turns of a rendered prompt, by its markers. A text without markers is one question.

    Where a marker is doubtful (a user may type it), the earliest counts: nothing of an answer is taken for a question.
    """
    start = prompt.find(markers.user_open) if markers else -1
    if markers is None or start < 0:
        return [Turn((0, len(prompt)), None)]
    turns: list[Turn] = []
    position = start + len(markers.user_open)
    while True:
        end = prompt.find(markers.answer_open, position)
        if end < 0:
            return [*turns, Turn((position, len(prompt)), None)]
        answer_start = end + len(markers.answer_open)
        next_user = prompt.find(markers.next_user, answer_start)
        if next_user < 0:
            close = prompt.rfind(markers.answer_close, answer_start)
            answer_end = len(prompt) if close < 0 else close + len(markers.answer_close)
            return [*turns, Turn((position, end), (answer_start, answer_end))]
        turns.append(Turn((position, end), (answer_start, next_user + len(markers.answer_close))))
        position = next_user + len(markers.next_user)


def turns_of_messages(chat: list[dict], markers: Markers, render: Callable[[Any], str]) -> list[Turn] | None:
    """
    Turns from the messages themselves: each content is rendered between two noncharacters, whose places show where
    it lies in the prompt. None where the template changes contents (trims them, say).

    Args:
        render: `render(messages)` gives the prompt.
    """
    marked = [{**message, "content": _wrapped(message.get("content") or "")} for message in chat]
    with_marks, plain = render(marked), render([dict(message) for message in chat])
    if with_marks.replace(_OPEN, "").replace(_CLOSE, "") != plain:
        return None
    spans, position = [], 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", with_marks):
        if piece == _OPEN:
            spans.append([position, position])
        elif piece == _CLOSE:
            spans[-1][1] = position
        else:
            position += len(piece)
    turns: list[Turn] = []
    for message, (start, end) in zip(chat, spans, strict=True):
        if message["role"] == "user":
            turns.append(Turn((start, end), None))
        elif message["role"] == "assistant" and turns:
            start = max(plain.rfind(markers.answer_open, 0, start), 0) + len(markers.answer_open)
            end += len(markers.answer_close) if plain.startswith(markers.answer_close, end) else 0
            turns[-1] = turns[-1]._replace(answer=(start, end))
    return turns


def has_generation_block(template: str) -> bool:
    """Whether a template marks the assistant's text for training."""
    return re.search(r"\{%-?\s*generation", template) is not None


def _wrapped(content) -> str | list[dict]:
    """A message's content between the two marks; marks inside it are dropped."""

    def clean(text: str) -> str:
        return text.replace(_OPEN, "").replace(_CLOSE, "")

    if isinstance(content, str):
        return _OPEN + clean(content) + _CLOSE
    parts = [{**part, "text": clean(part["text"])} if isinstance(part.get("text"), str) else part for part in content]
    return [{"type": "text", "text": _OPEN}, *parts, {"type": "text", "text": _CLOSE}]
