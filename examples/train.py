"""Trains a Parrot in one of its stages, with the stock `transformers.Trainer`.

    python examples/train.py RECIPE.yaml [--any_training_argument VALUE ...]
    torchrun --nproc-per-node 8 examples/train.py RECIPE.yaml
    accelerate launch --config_file configuration/accelerate/zero3.yaml examples/train.py RECIPE.yaml

A recipe holds three kinds of keys, explained in `examples/train_recipe.py`: the model (`checkpoint`, or `preset`, or
`vision_tower` and `language_model`; `stage`; `lora`), the data (`train_data`, `eval_data`, `max_length`), and any
argument of `transformers.TrainingArguments`. `configuration/recipes/` has the papers' stages.

    python examples/train.py RECIPE.yaml --resume_from_checkpoint true    # go on after an interruption

The output folder is a whole checkpoint: it loads with `from_pretrained` and can be pushed to the Hub as it is.
"""

import json
import os
import re
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from train_recipe import LORA_TARGETS, DataArguments, ModelArguments, read_recipe, sources
from train_report import data_summary, memory_estimate, parameter_table, proportions, sample_report
from transformers import AutoConfig, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import apply_liger_kernel, is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import get_parameter_names
from transformers.utils import is_liger_kernel_available

from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor
from parrot_data import ConversationDataset, ImageReader, ParrotDataCollator, open_sources, rows_that_do_not_fit


ROUTER = r"language_experts\.(.*\.)?router\b"
ADAPTER = r"(multi_modal_projector|language_experts)\."


def main(arguments: list[str]) -> None:
    try:
        trainer, model_args, resume_from = prepare(arguments)
    except (ValueError, OSError, ImportError) as error:
        # Bad input: what is wrong matters, not where in the code it was noticed.
        raise SystemExit(f"error: {error}") from error
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if trainer.eval_dataset:
        last = [entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step]
        metrics = {key: value for entry in last for key, value in entry.items() if key.startswith("eval_")}
        metrics = metrics or trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    save(trainer, model_args)


def prepare(arguments: list[str]) -> tuple[Trainer, ModelArguments, str | None]:
    """Everything up to the first step: recipe, data, model, a look at one batch, and the Trainer.

    Returns:
        the Trainer, the recipe's model arguments, and the checkpoint to resume from.

    Raises:
        ValueError, OSError, ImportError: bad input, in this order: recipe, environment and output folder, data, model,
            first batch.
    """
    model_args, data_args, args = read_recipe(arguments)
    check_environment(args, model_args)
    resume_from = checkpoint_to_resume(args)
    train_data, eval_data, reader = load_data(data_args, args)

    set_seed(args.seed)  # a new projector and new experts are the same in every process and every run
    model, processor = load_model(model_args)
    model = set_trainable(model, model_args, args)
    collator = ParrotDataCollator(processor, data_args.max_length)
    train_data = without_long_rows(train_data, "train_data", collator, data_args)
    eval_data = {name: without_long_rows(data, name, collator, data_args) for name, data in eval_data.items()}
    rows = first_rows(train_data, args.per_device_train_batch_size)
    batch = collator(rows)
    if args.process_index == 0:
        print(parameter_table(model))
        print(memory_estimate(model, args, tuple(batch["input_ids"].shape)))
        print(data_summary(args, train_data, eval_data))
        print(sample_report(collator, rows, batch), flush=True)
    optimizer: Any = lambda: build_optimizer  # noqa: E731 the Trainer calls it to get what builds the optimizer
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=train_data,
        eval_dataset=eval_data or None,
        processing_class=processor,
        callbacks=[ReadRows(reader)],
        optimizer_cls_and_kwargs=(optimizer, {"args": args, "rates": learning_rates(model_args)}),
    )
    return trainer, model_args, resume_from


# ---------------------------------------------------------------------------------------------- before anything loads


def check_environment(args: TrainingArguments, arguments: ModelArguments) -> None:
    """Refuses what would fail later, or silently compute something else; settles what the Trainer must not guess.

    Raises:
        ValueError: the output folder cannot be written or holds another run, several GPUs without processes, processes
            that do not know of each other, or what these processes cannot do.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > 1 and args.world_size == 1:
        raise ValueError(
            f"{started} processes were started, but there is no accelerator, so each of them would train alone. "
            "To train on CPUs add --use_cpu true."
        )
    engine = engine_of(args)
    if engine != "DDP" and started > 1 and args.use_cpu:
        raise ValueError(
            f"accelerate runs {engine} on accelerators only. On CPUs use DDP (accelerate/ddp.yaml, torchrun)."
        )
    if arguments.merge_lora and (engine == "FSDP" or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "`merge_lora` needs the whole model in one process, and here it is sharded. Train without it, then merge: "
            "peft.PeftModel.from_pretrained(model, output_dir).merge_and_unload().save_pretrained(folder)."
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("`use_liger_kernel` needs liger-kernel: pip install liger-kernel (it needs a GPU, too).")
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would become nn.DataParallel, which splits images from their rows. "
            f"Start one process per GPU (torchrun --nproc-per-node {args.n_gpu} examples/train.py ...) or choose one "
            "(CUDA_VISIBLE_DEVICES=0)."
        )
    folder = Path(str(args.output_dir)).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"Output folder {folder} cannot be written: {existing} is no folder or is read-only.")
    if not args.resume_from_checkpoint and (left := checkpoints(args.output_dir)):
        raise ValueError(
            f"{folder} holds checkpoints of an earlier run ({left[-1].name}). Continue it with "
            "--resume_from_checkpoint true, choose another --output_dir, or remove them."
        )
    args.remove_unused_columns = False  # rows carry images and messages, which the collator needs
    loading: Any = args.accelerator_config
    loading.dispatch_batches = False  # images are not rows: slicing a batch would tear them apart
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # `encode_dummy_image` lets every batch use every part


def engine_of(args: TrainingArguments) -> Literal["DDP", "FSDP", "DeepSpeed"]:
    """What the processes train with, by recipe or launcher; DDP also stands for a single process."""
    if args.deepspeed is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "DeepSpeed"
    return "FSDP" if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true" else "DDP"


def checkpoints(folder: str | None) -> list[Path]:
    """Checkpoints of the Trainer in a folder, oldest first."""
    found = [path for path in Path(folder or ".").glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from. `true` is the newest complete one: a run can be killed while it writes one.

    `auto` is the same and starts a new run where there is none, for jobs that a cluster may start again.

    Raises:
        ValueError: there is none, or another engine wrote it.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() == "false":
        return None
    if wanted.lower() not in ("true", "auto"):
        if not is_complete(Path(wanted)):
            raise ValueError(f"{wanted} is no complete checkpoint of the Trainer (no readable trainer_state.json).")
        check_engine(Path(wanted), args)
        return wanted
    for path in reversed(checkpoints(args.output_dir)):
        if is_complete(path):
            check_engine(path, args)
            return str(path)
        print(f"{path} is incomplete and passed over.")
    if wanted.lower() == "auto":
        return None
    raise ValueError(f"There is no complete checkpoint in {args.output_dir} to resume from.")


def is_complete(checkpoint: Path) -> bool:
    """The Trainer writes its state last."""
    try:
        return bool(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError):
        return False


def check_engine(checkpoint: Path, args: TrainingArguments) -> None:
    """Refuses a checkpoint whose optimizer states only another engine can read: they would be lost, or fail to load.

    Raises:
        ValueError: DDP, FSDP and DeepSpeed differ. The number of processes may differ, with DeepSpeed's exception.
    """
    written = {"optimizer.pt": "DDP", "optimizer.bin": "FSDP", "optimizer_0": "FSDP", "latest": "DeepSpeed"}
    engines = {engine for name, engine in written.items() if (checkpoint / name).exists()}
    if engines and engine_of(args) not in engines:
        raise ValueError(
            f"{checkpoint} was written by {', '.join(engines)}, and {engine_of(args)} cannot read its optimizer states. "
            f"Resume as it was started, or begin a new run with its weights: --checkpoint {checkpoint}."
        )


def load_data(data_args: DataArguments, args: TrainingArguments):
    """Training data, evaluation sets by name, and the reader that counts unreadable images."""
    train_sources, eval_sources = sources(data_args)
    reader = ImageReader(data_args.on_bad_image)
    seed = args.seed if args.data_seed is None else args.data_seed
    readers = args.world_size * max(1, args.dataloader_num_workers)
    train_data = open_sources(train_sources, seed, reader, readers)
    if not isinstance(train_data, ConversationDataset) and args.max_steps <= 0:
        raise ValueError("A streaming source has no known length: set `max_steps`.")
    eval_data = {name: ConversationDataset([source], seed, reader) for name, source in eval_sources.items()}
    if data_args.eval_by:
        eval_data = {
            value if len(eval_sources) == 1 else f"{name}_{value}": part
            for name, data in eval_data.items()
            for column in data_args.eval_by
            for value, part in data.by(column).items()
        }
    return train_data, eval_data, reader


def without_long_rows(data: Any, name: str, collator: ParrotDataCollator, data_args: DataArguments) -> Any:
    """The data set without the rows that cannot be used at this `max_length`. Streams are not looked through.

    Raises:
        ValueError: there are such rows and the recipe does not say `on_long_row: skip`, or no others.
    """
    complaints = rows_that_do_not_fit(data, collator) if isinstance(data, ConversationDataset) else {}
    if not complaints:
        return data
    first = next(iter(complaints.values()))
    if data_args.on_long_row == "error" or len(complaints) == len(data):
        raise ValueError(
            f"{name}: {len(complaints)} of {len(data)} rows cannot be used, the first: {first} Or set "
            "`on_long_row: skip` to leave such rows out."
        )
    print(f"{name}: left out {len(complaints)} of {len(data)} rows that cannot be used, the first: {first}")
    return data.only(~np.isin(np.arange(len(data)), list(complaints)))


def first_rows(train_data, size: int) -> list[dict]:
    """Rows for a look at the data before training, spread over all sources where that is possible."""
    if isinstance(train_data, ConversationDataset):
        return [train_data[int(i)] for i in np.linspace(0, len(train_data) - 1, min(size, len(train_data)))]
    return list(islice(iter(train_data), size))


# ---------------------------------------------------------------------------------------------- model and optimizer


def load_model(arguments: ModelArguments) -> tuple[ParrotForConditionalGeneration, ParrotProcessor]:
    """The model in float32 (bfloat16 weights hardly move at usual learning rates) and its processor.

    Raises:
        ValueError: the checkpoint is neither a Parrot nor a LLaVA, or is to be quantised and no Parrot.
        ImportError: it is to be quantised, and bitsandbytes is not installed.
    """
    options = dict(arguments.adapter)
    if arguments.checkpoint is None:
        parts = (arguments.vision_tower, arguments.language_model)
        model = ParrotForConditionalGeneration.from_vision_text_pretrained(*parts, dtype=torch.float32, **options)
        processor = ParrotProcessor.from_vision_text_pretrained(*parts, chat_template=arguments.chat_template)
    else:
        config = AutoConfig.from_pretrained(arguments.checkpoint)
        if arguments.quantization is not None:
            if config.model_type != "parrot":
                raise ValueError(
                    f"`quantization` needs a Parrot checkpoint; {arguments.checkpoint} is a {config.model_type}."
                )
            options["quantization_config"] = BitsAndBytesConfig(**arguments.quantization)
        if config.model_type == "llava":
            model = ParrotForConditionalGeneration.from_llava_pretrained(
                arguments.checkpoint, dtype=torch.float32, **options
            )
            processor = ParrotProcessor.from_vision_text_pretrained(
                arguments.checkpoint, arguments.checkpoint, chat_template=arguments.chat_template
            )
        elif config.model_type == "parrot":
            model = ParrotForConditionalGeneration.from_pretrained(
                arguments.checkpoint, dtype=torch.float32, **options
            )
            processor = ParrotProcessor.from_pretrained(arguments.checkpoint)
        else:
            raise ValueError(
                f"{arguments.checkpoint} is a {config.model_type}, neither a Parrot nor a LLaVA. To build a Parrot from "
                "it, name it as `language_model` and add a `vision_tower`."
            )
    processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
    # Without experts nobody reads routing rows, and making them is half of the collator's work.
    processor.routing_scope = model.config.routing_scope if model.config.num_language_experts else None
    if arguments.attn_implementation is not None:
        model.set_attn_implementation(arguments.attn_implementation)
    return model, processor


def set_trainable(model: Any, arguments: ModelArguments, args: TrainingArguments) -> Any:
    """Freezes what the stage does not train, adds LoRA if the recipe asks for it, and prepares the model to train."""
    if arguments.quantization is None:  # else LoRA freezes the rest, which cannot be unfrozen
        model.set_training_stage(arguments.stage)
    model.config.encode_dummy_image = True  # a batch without images must not leave parts without gradients
    model.config.logits_for_labels_only = args.label_smoothing_factor == 0  # smoothing reads the logits
    model.config.get_text_config().use_cache = False
    if args.use_liger_kernel:
        # The Trainer's own call looks for the name of the whole model and changes nothing. The loss is fused already.
        losses = {"cross_entropy": False, "fused_linear_cross_entropy": False}
        apply_liger_kernel(model.model.language_model, {**(args.liger_kernel_config or {}), **losses})
    if arguments.lora is not None:
        from peft import LoraConfig, get_peft_model

        whole = ["multi_modal_projector", *(["language_experts"] if model.config.num_language_experts else [])]
        options = {
            "target_modules": LORA_TARGETS,
            "modules_to_save": whole,
            "task_type": "CAUSAL_LM",
            **arguments.lora,
        }
        model = get_peft_model(model, LoraConfig(**options))
    is_sharded = engine_of(args) != "DDP"
    halve = arguments.frozen_dtype == "auto" and args.bf16 and args.device.type == "cuda" and not is_sharded
    if halve or arguments.frozen_dtype == "bfloat16":
        for parameter in model.parameters():
            # Quantised weights are parameters of a class of their own.
            if not parameter.requires_grad and type(parameter) is nn.Parameter:
                parameter.data = parameter.data.to(torch.bfloat16)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # with a frozen language model nothing else gives the graph a beginning
    return model


def learning_rates(arguments: ModelArguments) -> dict[str, float]:
    """Peak learning rates of the parts that have their own, by a pattern of parameter names; the first match counts."""
    rates = {ROUTER: arguments.router_learning_rate, ADAPTER: arguments.projector_learning_rate}
    return {pattern: rate for pattern, rate in rates.items() if rate is not None}


def build_optimizer(model: Any, args: TrainingArguments, rates: dict[str, float]) -> torch.optim.Optimizer:
    """The optimizer that `args` name, with groups for the parts that have a learning rate of their own.

    The Trainer calls this with the model as it trains it, which matters where the model has been wrapped or sharded.
    """
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    decayed = set(get_parameter_names(model, [nn.LayerNorm], [r"bias", r"norm"]))
    groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for pattern, rate in rates.items() if re.search(pattern, name)), None)
            groups.setdefault((rate, name in decayed), []).append(parameter)
    return optimizer_class(
        [
            {
                "params": parameters,
                "weight_decay": args.weight_decay if is_decayed else 0.0,
                **({"lr": rate} if rate is not None else {}),
            }
            for (rate, is_decayed), parameters in groups.items()
        ],
        **options,
    )


# ---------------------------------------------------------------------------------------------- while and after


class ReadRows(TrainerCallback):
    """Says what was read: rows left out because of their images, and of a streamed mixture the realised proportions.

    Skipped rows are reported whenever their number has grown, proportions with every checkpoint and at the end. Both
    are of this process; the rows of a mixture of known length are all counted before the first step.
    """

    def __init__(self, reader: ImageReader):
        self.reader, self.reported = reader, 0

    def on_log(self, args, state, control, **kwargs):
        if self.reader.skipped > self.reported:
            self.reported = self.reader.skipped
            print(f"Rows skipped for unreadable images so far, process {args.process_index}: {self.reported}")

    def on_save(self, args, state, control, **kwargs):
        if self.reader.rows_read:
            print(f"Step {state.global_step}, read ahead of it by process {args.process_index}:")
            print(proportions(self.reader.rows_read), flush=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.on_save(args, state, control)
        if self.reader.on_bad_image == "skip":
            print(f"Rows skipped for unreadable images, process {args.process_index}: {self.reader.skipped}")


def save(trainer: Trainer, arguments: ModelArguments) -> None:
    """Writes the whole checkpoint (or adapter) and says what was made."""
    model, folder = trainer.accelerator.unwrap_model(trainer.model), Path(str(trainer.args.output_dir))
    processor: Any = trainer.processing_class
    model.config.encode_dummy_image = model.config.logits_for_labels_only = False
    processor.routing_scope = model.config.routing_scope  # stage 2 will want routing rows
    model.config.use_cache = model.config.get_text_config().use_cache = True
    trainer.save_model(str(folder))
    made = [f"{folder}: {'the adapter' if arguments.lora is not None else 'the whole model'} and its processor"]
    if trainer.is_world_process_zero():
        if arguments.merge_lora:
            if arguments.quantization is not None:
                from peft import PeftModel

                # In quantised weights the adapter would be rounded away: it goes into those they were made from.
                base, _ = load_model(replace(arguments, quantization=None))
                model = PeftModel.from_pretrained(base, folder)
            model.merge_and_unload().save_pretrained(folder / "merged")
            processor.save_pretrained(folder / "merged")
            made.append(f"{folder / 'merged'}: the whole model with the adapter merged")
        print("Wrote", *made, f"after step {trainer.state.global_step}.", sep="\n  ")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes already
    main(sys.argv[1:])
