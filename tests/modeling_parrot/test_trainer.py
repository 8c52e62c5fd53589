"""What the stock Trainer expects of a model: evaluation with metrics, label smoothing, weights that move."""

import numpy as np
import pytest
import torch
from tiny_models import assistant, encode, picture, user
from transformers import Trainer, TrainingArguments


@pytest.fixture
def batches(tiny):
    """A model and one-row batches: with an image, without, with two images."""
    model, processor = tiny()
    chats = [
        [user("What?", picture(0)), assistant("a cat")],
        [user("Resimde ne var?"), assistant("kedi")],
        [user("What?", picture(1), picture(2)), assistant("a dog")],
    ]
    rows = []
    for chat in chats:
        row = dict(encode(processor, chat, generate=False, padding="max_length", max_length=80, padding_side="right"))
        row["labels"] = row["input_ids"].masked_fill(row["input_ids"] == model.config.image_token_id, -100)
        rows.append(row)
    return model, rows


def trainer(model, rows, folder, **options) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, per_device_eval_batch_size=1, use_cpu=True,
        report_to="none", remove_unused_columns=False, save_strategy="no", disable_tqdm=True, max_steps=3, **options,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=lambda batch: dict(batch[0]))


def test_evaluation_with_metrics_sees_logits_only(batches, tmp_path):
    """Batches with and without images have different outputs; router probabilities are no predictions."""
    model, rows = batches
    seen = {}
    runner = trainer(model, rows, tmp_path)
    runner.compute_metrics = lambda result: seen.update(shape=np.shape(result.predictions)) or {"rows": len(rows)}
    metrics = runner.evaluate()
    assert seen["shape"] == (3, 80, model.config.text_config.vocab_size)
    assert metrics["eval_rows"] == 3 and np.isfinite(metrics["eval_loss"])


def test_logits_are_there_in_evaluation_although_training_leaves_them_out(batches, tmp_path):
    model, rows = batches
    model.config.logits_for_labels_only = True
    runner = trainer(model, rows, tmp_path)
    runner.compute_metrics = lambda result: {"width": np.shape(result.predictions)[-1]}
    runner.train()
    assert runner.evaluate()["eval_width"] == model.config.text_config.vocab_size


def test_label_smoothing_trains(batches, tmp_path):
    model, rows = batches
    assert np.isfinite(trainer(model, rows, tmp_path, label_smoothing_factor=0.1).train().training_loss)


def test_autocast_moves_float32_weights_by_small_steps(batches, tmp_path):
    """Weights in bfloat16 hardly move at a learning rate of 2e-5; weights in float32 under autocast do."""
    model, rows = batches
    model.set_training_stage("instruction")
    # Embeddings of tokens that do not occur get no gradient.
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "embed_tokens" not in name}
    before = {name: value.clone() for name, value in trained.items()}
    trainer(model, rows, tmp_path, learning_rate=2e-5, bf16=True, lr_scheduler_type="constant").train()
    changed = sum((value != before[name]).sum().item() for name, value in trained.items())
    assert changed / sum(value.numel() for value in before.values()) > 0.9
    assert all(value.dtype == torch.float32 for value in model.parameters())
