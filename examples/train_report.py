"""What `examples/train.py` prints before the first step: parameters, memory, data, and one batch as the model sees it."""

import math
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from parrot_data import ParrotDataCollator


PARTS = {
    "vision tower": "vision_tower",
    "projector": "multi_modal_projector",
    "language experts": "language_experts",
    "language model": "language_model",
    "head": "lm_head",
}
# Bytes of state that an optimizer keeps for a trained parameter.
OPTIMIZER_BYTES = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "sgd": 0, "adafactor": 0, "adamw": 8}


def parameter_table(model: nn.Module) -> str:
    """Trainable, frozen and total parameters of each part, with the types their weights have."""
    rows = []
    for title, name in PARTS.items():
        parameters = [p for key, p in model.named_parameters() if re.search(rf"(^|\.){name}\.", key)]
        if parameters:
            types = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
            rows.append((title, count(parameters, True), count(parameters, False), ", ".join(types)))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
    lines = [f"{'':18}{'trainable':>16}{'frozen':>16}{'total':>16}"]
    lines += [
        f"{title:18}{train:>16,}{frozen:>16,}{train + frozen:>16,}  {kind}" for title, train, frozen, kind in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def count(parameters: list[nn.Parameter], trainable: bool) -> int:
    return sum(size(p) for p in parameters if p.requires_grad == trainable)


def size(parameter: Any) -> int:
    """Values in a parameter: one that DeepSpeed has partitioned is empty here, one of 4 bits holds two in a byte."""
    if getattr(parameter, "quant_state", None) is not None:
        return parameter.quant_state.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())


def memory_estimate(model: Any, args: TrainingArguments, batch_shape: tuple[int, int]) -> str:
    """Rough memory of one process before sharding, for a batch [rows, tokens].

    Activations: about 17 values per token and hidden unit of a layer (34 bytes in 16 bit, Korthikanti et al. 2022,
    without the attention matrix), one value and one whole layer with checkpointing, and the logits with their gradient
    in float32.
    """
    config = model.config.get_text_config()
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameters)
    gradients = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in trained)
    per_parameter = next((size for name, size in OPTIMIZER_BYTES.items() if args.optim.startswith(name)), 8)
    optimizer = per_parameter * count(trained, True)
    tokens = batch_shape[0] * batch_shape[1]
    value = 2 if args.bf16 or args.fp16 else 4
    layers, width = config.num_hidden_layers, config.hidden_size
    per_layer = 17 * tokens * width * value
    activations = (layers * tokens * width * value + per_layer) if args.gradient_checkpointing else layers * per_layer
    activations += tokens * config.vocab_size * (8 + value)
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer, "activations": activations}
    text = ", ".join(f"{name} {readable(size)}" for name, size in parts.items())
    return (
        f"Memory per process before sharding, roughly: {readable(sum(parts.values()))} ({text}; "
        f"{batch_shape[0]} x {batch_shape[1]} tokens)"
    )


def readable(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def data_summary(args: TrainingArguments, train_data: Any, eval_data: dict[str, Any]) -> str:
    """Rows and steps."""
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    if hasattr(train_data, "__len__"):
        per_pass = args.per_device_train_batch_size * args.world_size
        per_epoch = max(1, math.ceil(math.ceil(len(train_data) / per_pass) / args.gradient_accumulation_steps))
        steps = args.max_steps if args.max_steps > 0 else math.ceil(per_epoch * args.num_train_epochs)
        rows = f"{len(train_data):,} rows, {per_epoch:,} steps per epoch"
    else:
        steps, rows = args.max_steps, "a stream of rows"
    lines = [
        f"Training data: {rows}; {steps:,} steps of {batch} rows ({args.per_device_train_batch_size} per device x "
        f"{args.world_size} process(es) x {args.gradient_accumulation_steps} accumulated)"
    ]
    if hasattr(train_data, "counts"):
        lines.append(proportions(train_data.counts()))
    if eval_data:
        lines.append("Evaluation data: " + ", ".join(f"{name} {len(data):,}" for name, data in eval_data.items()))
    return "\n".join(lines)


def proportions(counts: Mapping[tuple[str, str | None], int]) -> str:
    """Rows and their share by language and task, for example `cs: 400 (4.0%): mvqa 134, ep_vqa 133, bvqa 133`."""
    total = max(1, sum(counts.values()))
    lines = []
    for language in sorted({language for language, _ in counts}, key=lambda name: (name != "en", name)):
        tasks = {task: count for (name, task), count in counts.items() if name == language}
        line = f"{language}: {sum(tasks.values()):,} ({100 * sum(tasks.values()) / total:.1f}%)"
        if set(tasks) - {"none", None}:
            line += ": " + ", ".join(f"{task} {count:,}" for task, count in tasks.items())
        lines.append(f"  {line}")
    return "\n".join(["Rows by language and task:", *lines])


def sample_report(collator: ParrotDataCollator, rows: list[dict], batch: dict[str, torch.Tensor]) -> str:
    """One row of a collated batch as the model sees it; a row with an image, if there is one."""
    number = next((i for i, row in enumerate(rows) if row["images"]), 0)
    tokenizer, image_token_id = collator.processor.tokenizer, collator.processor.image_token_id
    length = int(batch["attention_mask"][number].sum())
    ids = batch["input_ids"][number, :length].tolist()
    labels = batch["labels"][number, :length].tolist()
    kinds = [
        "image" if token == image_token_id else "trained" if label != -100 else "given"
        for token, label in zip(ids, labels, strict=True)
    ]
    text, position = "", 0
    for kind, group in groupby(kinds):
        size = len(list(group))
        piece = tokenizer.decode(ids[position : position + size])
        text += {"image": f"[{size} image tokens]", "trained": f">>>{piece}<<<", "given": piece}[kind]
        position += size
    lines = [
        f"One row of the first batch ({len(rows)} rows of up to {batch['input_ids'].shape[1]} tokens), "
        f"id {rows[number]['id']!r}, language {rows[number]['language']}:",
        *("    " + line for line in text.splitlines()),
        f"    {length} tokens, {kinds.count('image')} of {len(rows[number]['images'])} image(s), "
        f"{kinds.count('trained')} trained on (between >>> and <<<)",
    ]
    if rows[number]["images"] and "routing_input_ids" in batch:
        first = sum(len(row["images"]) for row in rows[:number])
        for image in range(first, first + len(rows[number]["images"])):
            kept = batch["routing_input_ids"][image][batch["routing_attention_mask"][image].bool()]
            lines.append(f"    routing text: {tokenizer.decode(kept)!r}")
    return "\n".join(lines)
