"""TRL's SFTTrainer trains the model as it is, and computes the Trainer's loss."""

import datasets
import pytest
import tiny_data
import torch
from transformers import Trainer, TrainingArguments

from parrot_data import ConversationDataset, DataSource, ImageReader, ParrotDataCollator


trl = pytest.importorskip("trl")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tiny_data.write(tmp_path_factory.mktemp("trl"), tiny_data.rows(8))
    return list(ConversationDataset([DataSource(str(path), str(path.parent / "images"))], 0, ImageReader()))


def trainer_settings(folder):
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "remove_unused_columns": False, "bf16": False, "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
    }  # fmt: skip


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def as_strings(messages):
    """The messages with text contents, as most of TRL's data sets have them; TRL puts the images in front."""
    return [
        {"role": message["role"], "content": "".join(part.get("text", "") for part in message["content"])}
        for message in messages
    ]


def sft_trainer(model, processor, rows, folder, contents="parts"):
    columns = {name: [row[name] for row in rows] for name in ("messages", "images")}
    if contents == "strings":
        columns["messages"] = [as_strings(messages) for messages in columns["messages"]]
    data = datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
    arguments = trl.SFTConfig(**trainer_settings(folder), assistant_only_loss=True, max_length=None)
    return trl.SFTTrainer(model, args=arguments, train_dataset=data, processing_class=processor)


@pytest.mark.parametrize("contents", ["strings", "parts"])
def test_sft_trainer_has_the_same_losses(tiny, rows, tmp_path, contents):
    model, processor = tiny()
    model.set_training_stage("instruction")
    arguments = TrainingArguments(**trainer_settings(tmp_path))
    ours = Trainer(model, arguments, data_collator=ParrotDataCollator(processor), train_dataset=rows)
    ours.train()

    model, processor = tiny()
    model.set_training_stage("instruction")
    theirs = sft_trainer(model, processor, rows, tmp_path, contents)
    theirs.train()
    assert len(losses(ours)) == 2
    assert losses(theirs) == pytest.approx(losses(ours), abs=1e-5)


@pytest.mark.parametrize("contents", ["strings", "parts"])
def test_sft_collator_makes_the_same_batch(tiny, rows, tmp_path, contents):
    model, processor = tiny()

    def their_batch(rows):
        trainer = sft_trainer(model, processor, rows, tmp_path, contents)
        return trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])

    batch, ours = their_batch(rows), ParrotDataCollator(processor)(rows)
    assert set(batch) == set(ours)
    for name in ours:
        assert torch.equal(batch[name], ours[name]), name
    assert not ((batch["labels"] != -100) & (batch["input_ids"] == processor.image_token_id)).any()

    answer = {"role": "assistant", "content": [{"type": "text", "text": "something else entirely"}]}
    other_answers = [
        {**row, "messages": [answer if message["role"] == "assistant" else message for message in row["messages"]]}
        for row in rows
    ]
    other = their_batch(other_answers)
    assert torch.equal(other["routing_input_ids"], batch["routing_input_ids"])
    assert not torch.equal(other["input_ids"], batch["input_ids"])
