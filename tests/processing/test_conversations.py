"""Rows of any format become one checked conversation."""

import pytest
from tiny_data import llava_row

from parrot_data import to_row


IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


def contents(row):
    return [message["content"] for message in row["messages"]]


def test_llava_row():
    raw = llava_row("7", "<image>\nWhat is it?", "A cat.", "Sure?", "Yes.", image="a.png", language="en", task="MVQA")
    assert to_row(raw, "data.json, row 0") == {
        "id": "7",
        "messages": [
            {"role": "user", "content": [IMAGE, text("What is it?")]},
            {"role": "assistant", "content": [text("A cat.")]},
            {"role": "user", "content": [text("Sure?")]},
            {"role": "assistant", "content": [text("Yes.")]},
        ],
        "images": ["a.png"],
        "language": "en",
        "task": "MVQA",
    }


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("What is it?\n<image>", [IMAGE, text("What is it?")]),  # one image: to the front of its turn
        ("<image>\n<image>\nWhich?", [IMAGE, IMAGE, text("Which?")]),
        ("Compare <image> with <image>.", [text("Compare "), IMAGE, text("with "), IMAGE, text(".")]),
    ],
)
def test_places_of_images(written, parts):
    images = [f"{i}.png" for i in range(written.count("<image>"))]
    assert contents(to_row(llava_row("0", written, "a", image=images), "row"))[0] == parts


def test_chat_formats_agree():
    """String contents, structured contents, and structured contents as Arrow stores them are the same conversation."""
    images = ["a.png"]
    as_text = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    without_marker = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    as_parts = [
        {"role": "user", "content": [IMAGE, text("What?")]},
        {"role": "assistant", "content": [text("A cat.")]},
    ]
    from_arrow = [
        {"role": "user", "content": [{"type": "image", "text": None}, text("What?")]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat.", "image": None}]},
    ]
    inline = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, text("What?")]},
        {"role": "assistant", "content": [text("A cat.")]},
    ]
    rows = [to_row({"id": 1, "messages": m, "images": images}, "r") for m in (as_text, without_marker, as_parts)]
    rows += [
        to_row({"id": 1, "messages": from_arrow, "image": "a.png"}, "r"),
        to_row({"id": 1, "messages": inline}, "r"),
    ]
    assert all(row == rows[0] for row in rows)
    assert to_row(rows[0], "r") == rows[0]


def test_defaults_for_language_and_task():
    raw = llava_row("0", "q", "a")
    assert to_row(raw, "r", language="tr", task="caption")["language"] == "tr"
    assert to_row({**raw, "language": "ar"}, "r", language="tr")["language"] == "ar"
    assert to_row({**raw, "id": None}, "data.json, row 3")["id"] == "data.json, row 3"


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({"id": 5, "conversations": []}, "empty"),
        ({"id": 5, "messages": []}, "empty"),
        ({"id": 5, "text": "hello"}, "no conversation"),
        ("hello", "must be an object"),
        (llava_row("5", "q"), "does not end with an answer"),
        (llava_row("5", "q", "a", "q"), "does not end with an answer"),
        (llava_row("5", "q", " "), "no text"),
        (llava_row("5", "q", "see <image>", image="a.png"), "Images belong into user turns"),
        (llava_row("5", "<image> q", "a"), r"1 <image> in the text but 0 image\(s\)"),
        (llava_row("5", "q", "a", image="a.png"), r"0 <image> in the text but 1 image\(s\)"),
        (llava_row("5", "<image><image> q", "a", image=["a.png"]), r"2 <image> in the text but 1 image\(s\)"),
        ({"id": 5, "conversations": [{"from": "bot", "value": "q"}]}, "unknown role 'bot'"),
        ({"id": 5, "conversations": [{"from": "human", "value": 3}]}, "must be an object with the texts"),
        ({"id": 5, "conversations": [{"from": "human", "value": "q"}] * 2}, "expected the assistant"),
        ({"id": 5, "conversations": [{"from": "gpt", "value": "a"}]}, "expected the user"),
        ({"id": 5, "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "neither text nor image"),
    ],
)
def test_bad_rows_are_named(raw, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        to_row(raw, "data.json, row 12")
    assert "data.json, row 12" in str(caught.value)
    if isinstance(raw, dict):
        assert "'5'" in str(caught.value)


def test_system_message_comes_first():
    system = {"from": "system", "value": "Be brief."}
    turns = llava_row("0", "q", "a")["conversations"]
    assert to_row({"conversations": [system, *turns]}, "r")["messages"][0]["role"] == "system"
    with pytest.raises(ValueError, match="turn 2 is by the system"):
        to_row({"conversations": [*turns, system]}, "r")
