"""The collator: what is trained on, padding, cutting, routing rows."""

import pytest
import tiny_models
import torch
from tiny_data import llava_row

from parrot_data import ParrotDataCollator, to_row
from processing_parrot import CHAT_TEMPLATES


@pytest.fixture(scope="module")
def processor(tiny):
    return tiny()[1]


def row(row_id, *turns, images=0):
    names = [f"{i}.png" for i in range(images)]
    converted = to_row(llava_row(row_id, *turns, image=names), "test")
    return {**converted, "images": [tiny_models.picture(i) for i in range(images)]}


@pytest.fixture
def rows():
    return [
        row("one", "<image>\nWhat is it?", "a cat", "Sure?", "yes, a cat", images=1),
        row("text", "Hello", "Hi"),
        row("two", "<image>\n<image>\nWhich one?", "the first", images=2),
    ]


def trained_text(processor, batch, number):
    labels = batch["labels"][number]
    return processor.tokenizer.decode(labels[labels != -100])


@pytest.mark.parametrize("template", ["chatml", "vicuna"])
def test_labels_are_the_answers_and_their_end_markers(tiny, rows, template):
    processor = tiny(language_model="qwen2" if template == "chatml" else "llama")[1]
    processor.chat_template = CHAT_TEMPLATES[template]
    batch = ParrotDataCollator(processor)(rows)
    end = "<|im_end|>" if template == "chatml" else "</s>"
    space = "" if template == "chatml" else " "  # Vicuna's space before an answer is part of the answer's first token
    assert trained_text(processor, batch, 0) == f"{space}a cat{end}{space}yes, a cat{end}"
    assert trained_text(processor, batch, 1) == f"{space}Hi{end}"
    assert trained_text(processor, batch, 2) == f"{space}the first{end}"
    trained = batch["labels"] != -100
    assert torch.equal(batch["labels"][trained], batch["input_ids"][trained])
    assert not (trained & (batch["input_ids"] == processor.image_token_id)).any()
    assert not (trained & (batch["attention_mask"] == 0)).any()


def test_a_batch_is_its_rows_padded_on_the_right(processor, rows):
    collator = ParrotDataCollator(processor)
    batch = collator(rows)
    first_image = 0
    for number, single in enumerate(rows):
        alone = collator([single])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "labels", "mm_token_type_ids"):
            assert torch.equal(batch[name][number, :length], alone[name][0]), name
        assert not batch["attention_mask"][number, length:].any()
        assert (batch["labels"][number, length:] == -100).all()
        for image in range(len(single["images"])):
            assert torch.equal(batch["pixel_values"][first_image], alone["pixel_values"][image])
            mask = batch["routing_attention_mask"][first_image].bool()
            mask_alone = alone["routing_attention_mask"][image].bool()
            routing = batch["routing_input_ids"][first_image][mask]
            assert torch.equal(routing, alone["routing_input_ids"][image][mask_alone])
            first_image += 1
    assert first_image == len(batch["pixel_values"]) == len(batch["routing_input_ids"]) == 3


def test_rows_without_images(processor):
    batch = ParrotDataCollator(processor)([row("a", "Hello", "Hi"), row("b", "Bye", "See you soon")])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "mm_token_type_ids"}


def test_answers_and_cutting_do_not_change_routing(processor, rows):
    collator = ParrotDataCollator(processor)
    batch = collator(rows)
    changed = [
        row("one", "<image>\nWhat is it?", "something else", "Sure?", "no no no", images=1),
        rows[1],
        row("two", "<image>\n<image>\nWhich one?", "<|im_end|> What is it?", images=2),
    ]
    shorter = ParrotDataCollator(processor, max_length=batch["input_ids"].shape[1] - 4)
    for other in (collator(changed), shorter(rows)):
        assert torch.equal(batch["routing_input_ids"], other["routing_input_ids"])
        assert torch.equal(batch["routing_attention_mask"], other["routing_attention_mask"])
    questions = processor.tokenizer.batch_decode(batch["routing_input_ids"], skip_special_tokens=True)
    assert questions == ["What is it?", "Which one?", "Which one?"]


def test_long_rows_are_cut_in_text(processor):
    long = row("long", "<image>\nWhat is it?", "a cat " * 50, images=1)
    whole = ParrotDataCollator(processor)([long])
    cut = ParrotDataCollator(processor, max_length=64)([long, row("text", "Hello", "Hi")])
    assert cut["input_ids"].shape[1] == 64
    for name in ("input_ids", "attention_mask", "labels", "mm_token_type_ids"):
        assert torch.equal(cut[name][0], whole[name][0, :64])
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])


def test_images_are_never_cut(processor):
    deep = row("deep", "Hello", "Hi", "<image> " + "What is it? " * 5, "a cat", images=1)
    length = ParrotDataCollator(processor)([deep])["input_ids"].shape[1]
    fits = (ParrotDataCollator(processor)([deep])["input_ids"][0] == processor.image_token_id).nonzero().max() + 1
    with pytest.raises(ValueError, match=rf"row 'deep': its 1 image.*do not fit.*the row has {length} tokens"):
        ParrotDataCollator(processor, max_length=int(fits) - 1)([row("text", "Hello", "Hi"), deep])
    ParrotDataCollator(processor, max_length=int(fits))([deep])  # "Hi" is still there to train on


def test_a_row_with_nothing_to_train_on_is_named(processor):
    with pytest.raises(ValueError, match="row 'long': nothing to train on"):
        ParrotDataCollator(processor, max_length=40)([row("text", "Hello", "Hi"), row("long", "why? " * 40, "so")])


def test_padding_to_a_multiple(processor, rows):
    plain, padded = ParrotDataCollator(processor)(rows), ParrotDataCollator(processor, pad_to_multiple_of=32)(rows)
    width = plain["input_ids"].shape[1]
    assert padded["input_ids"].shape[1] % 32 == 0
    assert torch.equal(padded["labels"][:, :width], plain["labels"])
    assert (padded["labels"][:, width:] == -100).all()
    assert (padded["input_ids"][:, width:] == processor.tokenizer.pad_token_id).all()


def test_the_loss_reaches_every_row(tiny, rows):
    """What the collator returns is what `forward` takes, and padding changes no row's loss."""
    model, processor = tiny()
    collator = ParrotDataCollator(processor)
    with torch.no_grad():
        alone = [model(**collator([single])) for single in rows]
        together = model(**collator(rows))
    counts = torch.tensor([(collator([single])["labels"] != -100).sum() for single in rows])
    mean = (torch.stack([output.loss for output in alone]) * counts).sum() / counts.sum()
    torch.testing.assert_close(together.loss, mean, atol=1e-5, rtol=1e-5)
