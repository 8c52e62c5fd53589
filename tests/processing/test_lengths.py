"""Rows that cannot be used at a `max_length` are found before training: exactly those the collator refuses."""

import tiny_data
from tiny_data import llava_row

from parrot_data import ConversationDataset, DataSource, ImageReader, ParrotDataCollator, lengths, rows_that_do_not_fit


ROWS = [
    *tiny_data.rows(8),
    llava_row("late-image", "Hello", "Hi", "why? " * 10, "so", "<image> And this?", "a dog", image="1.png"),
    llava_row("two-images", "<image><image> Which one?", "the first", image=["1.png", "2.png"]),
    llava_row("long-question", "why? " * 60, "so"),
    llava_row("long-answer", "why?", "so " * 200),
    llava_row("many-bytes", "图中是什么？" * 12, "一只猫"),
    llava_row("many-turns", *["q", "a"] * 12),
    llava_row("late-image-many-turns", *["q", "a"] * 8, "<image> What?", "a cat", image="3.png"),
]


def test_exactly_the_refused_rows_are_found(tiny, tmp_path):
    path = tiny_data.write(tmp_path, ROWS)
    dataset = ConversationDataset([DataSource(str(path), str(tmp_path / "images"))], 0, ImageReader())
    processor = tiny()[1]
    found_any = set()
    for max_length in (24, 40, 47, 48, 52, 60, 80, 100, 130, 160, 200, 300, 2000):
        collator = ParrotDataCollator(processor, max_length)
        refused = {}
        for position in range(len(dataset)):
            try:
                collator([dataset[position]])
            except ValueError as error:
                refused[position] = str(error)
        assert rows_that_do_not_fit(dataset, collator) == refused, max_length
        found_any.add(len(refused))
    assert {0, len(dataset)} < found_any
    assert rows_that_do_not_fit(dataset, ParrotDataCollator(processor)) == {}


def test_rows_that_clearly_fit_are_not_tokenized(tiny, tmp_path, monkeypatch):
    path = tiny_data.write(tmp_path, ROWS)
    dataset = ConversationDataset([DataSource(str(path), str(tmp_path / "images"))], 0, ImageReader())
    looked_at = []
    monkeypatch.setattr(lengths, "needed_part", lambda messages: looked_at.append(messages) or messages)
    assert rows_that_do_not_fit(dataset, ParrotDataCollator(tiny()[1], max_length=600)) == {}
    assert looked_at == []
