"""The training program, run as a user runs it, on tiny models."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_data
import tiny_models
import torch
from safetensors.torch import load_file
from tiny_runs import EXPERTS, assert_equal_weights, environment, log, losses, moved_parts, part_of, weights


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import train  # noqa: E402

from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor  # noqa: E402


pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------------ the stages


def test_alignment_moves_the_projector_only(parts):
    torch.manual_seed(0)
    start = ParrotForConditionalGeneration.from_vision_text_pretrained(
        parts.folder / "tower", parts.folder / "lm", num_language_experts=0
    ).state_dict()
    moved, stayed = moved_parts({k: v for k, v in start.items() if "projector" not in k}, weights(parts.stage1))
    assert moved == set() and stayed == {"vision_tower", "language_model", "lm_head"}
    history = losses(parts.stage1)
    assert len(history) == 6 and history[-1] < history[0]


def test_evaluation_is_logged_per_language(parts):
    evaluations = [entry for entry in log(parts.stage1) if any(key.startswith("eval_") for key in entry)]
    assert {key for entry in evaluations for key in entry if key.endswith("_loss")} == {"eval_en_loss", "eval_zh_loss"}
    results = json.loads((parts.stage1 / "eval_results.json").read_text())
    assert {"eval_en_loss", "eval_zh_loss"} <= results.keys()


def test_instruction_moves_all_but_the_tower(parts, recipe, tmp_path, capsys):
    train.main([recipe(num_train_epochs=2, router_learning_rate=0.1)])
    before, after = weights(parts.stage1), weights(tmp_path / "run")
    moved, stayed = moved_parts(before, after)
    assert moved == {"multi_modal_projector", "language_model", "lm_head"} and stayed == {"vision_tower"}
    experts = {name: tensor for name, tensor in after.items() if "language_experts" in name}
    assert any("router" in name for name in experts)
    for name, tensor in experts.items():
        if "router" in name or "down_proj" in name:  # they start at zero
            assert tensor.abs().max() > 0, name

    printed = capsys.readouterr().out
    assert "language experts" in printed and "Memory per process" in printed
    assert "12 steps of 4 rows" in printed
    assert ">>>a cat and 0 dogs<|im_end|><<<" in printed and "[17 image tokens]" in printed
    assert "routing text: 'What is in the picture?'" in printed
    assert f"{tmp_path / 'run'}: the whole model and its processor" in printed


def test_the_output_folder_is_a_whole_checkpoint(parts, recipe, tmp_path):
    train.main([recipe(max_steps=1, save_strategy="steps", save_steps=1)])
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        model = ParrotForConditionalGeneration.from_pretrained(folder)
        processor = ParrotProcessor.from_pretrained(folder)
        inputs = tiny_models.encode(processor, [tiny_models.user("What?", tiny_models.picture())])
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    model = ParrotForConditionalGeneration.from_pretrained(tmp_path / "run")
    assert model.config.encode_dummy_image is False and model.config.text_config.use_cache is True
    assert model.config.num_language_experts == 4 and processor.routing_scope == "turn"


def test_stage_2_alone_turns_a_llava_into_a_parrot(parts, recipe, tmp_path):
    llava = tmp_path / "llava"
    ParrotForConditionalGeneration.from_pretrained(parts.stage1).to_llava().save_pretrained(llava)
    processor = ParrotProcessor.from_pretrained(parts.stage1)
    processor.image_processor.save_pretrained(llava)
    processor.tokenizer.save_pretrained(llava)
    train.main([recipe("from_llava", checkpoint=str(llava), chat_template="chatml", max_steps=2)])
    train.main([recipe("from_stage1", max_steps=2)])
    assert losses(tmp_path / "from_llava") == pytest.approx(losses(tmp_path / "from_stage1"), abs=2e-3)
    assert losses(tmp_path / "from_llava")[0] == pytest.approx(losses(tmp_path / "from_stage1")[0], abs=1e-5)


# ------------------------------------------------------------------------------------------------ invariances


def test_a_batch_of_8_equals_8_accumulated(recipe, tmp_path):
    common = {"optim": "sgd", "learning_rate": 0.05, "max_steps": 3, "lr_scheduler_type": "constant"}
    train.main([recipe("batch", per_device_train_batch_size=8, **common)])
    train.main([recipe("single", per_device_train_batch_size=1, global_batch_size=8, **common)])
    assert losses(tmp_path / "single") == pytest.approx(losses(tmp_path / "batch"), abs=1e-5)
    assert_equal_weights(tmp_path / "single", tmp_path / "batch", atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stage", ["alignment", "instruction"])
def test_checkpointing_changes_no_gradient(recipe, tmp_path, stage):
    common = {"stage": stage, "optim": "sgd", "learning_rate": 0.05, "max_steps": 2, "max_grad_norm": 0.0}
    train.main([recipe("plain", **common)])
    train.main([recipe("checkpointed", gradient_checkpointing=True, **common)])
    assert_equal_weights(tmp_path / "checkpointed", tmp_path / "plain", atol=1e-6, rtol=1e-5)


def test_text_only_batches_train_in_both_stages(parts, recipe, tmp_path):
    """Every batch of one row, half of them without an image: none fails, none moves what is frozen."""
    rows = [row for row in tiny_data.rows(24) if "image" not in row] + tiny_data.rows(3)
    data = tiny_data.write(tmp_path / "mixed", rows)
    source = [{"path": str(data), "image_folder": str(data.parent / "images")}]
    for stage in ("alignment", "instruction"):
        train.main([recipe(stage, stage=stage, train_data=source, per_device_train_batch_size=1)])
        assert len(losses(tmp_path / stage)) == len(rows)
        assert "vision_tower" not in moved_parts(weights(parts.stage1), weights(tmp_path / stage))[0]


def test_frozen_weights_in_bfloat16(recipe, tmp_path):
    """Under autocast the frozen tower may be bfloat16; what trains stays float32 in the checkpoint."""
    train.main([recipe("float", max_steps=2, bf16=True)])
    train.main([recipe("half", max_steps=2, bf16=True, frozen_dtype="bfloat16")])
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "float"), rel=0.02)
    types = {part_of(name): tensor.dtype for name, tensor in weights(tmp_path / "half").items()}
    assert types.pop("vision_tower") == torch.bfloat16
    assert set(types.values()) == {torch.float32}


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_report_counts_every_parameter_once(recipe, lora):
    if lora is not None:
        pytest.importorskip("peft")
    trainer, _, _ = train.prepare([recipe(lora=lora)])
    parameters = list(trainer.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    lines = train.parameter_table(trainer.model).splitlines()
    assert lines[-1].split() == ["all", f"{trained:,}", f"{total - trained:,}", f"{total:,}"]
    assert lines[1].split()[:4] == ["vision", "tower", "0", lines[1].split()[-2]]
    estimate = train.memory_estimate(trainer.model, trainer.args, (4, 80))
    mebibytes = {name: size * trained / 2**20 for name, size in (("gradients", 4), ("optimizer", 8))}
    mebibytes["weights"] = 4 * total / 2**20
    for name, size in mebibytes.items():
        assert f"{name} {size:.1f} MiB" in estimate


def test_router_and_projector_have_their_own_learning_rates(recipe):
    trainer, _, _ = train.prepare([recipe(router_learning_rate=0.5, projector_learning_rate=0.25, weight_decay=0.1)])
    optimizer = trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            adapter = "language_experts" in name or "projector" in name
            assert group["lr"] == (0.5 if "router" in name else 0.25 if adapter else 1e-3), name
            assert group["weight_decay"] == (0.0 if "bias" in name or "norm" in name else 0.1), name
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert sorted(seen) == sorted(trained) and any("router" in name for name in trained)


# ------------------------------------------------------------------------------------------------ interruption


@pytest.mark.parametrize("stage", ["alignment", "instruction"])
def test_killed_and_resumed_equals_uninterrupted(recipe, tmp_path, stage):
    """kill -9 after a checkpoint, resume: every tensor is bit for bit that of a run that was left alone."""
    common = {"stage": stage, "max_steps": 60, "save_strategy": "steps", "save_steps": 4, "num_train_epochs": None}
    common |= {"learning_rate": 1e-2, "warmup_steps": 5, "lr_scheduler_type": "cosine"}
    train.main([recipe("whole", **common)])

    command = [sys.executable, str(ROOT / "examples" / "train.py"), recipe("killed", **common)]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        state = tmp_path / "killed" / "checkpoint-8" / "trainer_state.json"
        deadline = time.time() + 120
        while not state.exists() and process.poll() is None and time.time() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    (tmp_path / "killed" / "checkpoint-59").mkdir()  # as if killed while writing it
    written = state.stat().st_mtime_ns
    train.main([str(tmp_path / "killed.yaml"), "--resume_from_checkpoint", "true"])
    assert state.stat().st_mtime_ns == written  # it went on, and did not start again
    assert_equal_weights(tmp_path / "killed", tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_stream_resumes_where_it_was(parts, recipe, tmp_path):
    source = [{"path": str(parts.data), "image_folder": str(parts.data.parent / "images"), "streaming": True}]
    common = {
        "train_data": source,
        "max_steps": 8,
        "num_train_epochs": None,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    train.main([recipe("whole", **common)])
    state = tmp_path / "part" / "checkpoint-5" / "trainer_state.json"
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", state.parent)
    written = state.stat().st_mtime_ns
    train.main([recipe("part", **common, resume_from_checkpoint="auto")])
    assert state.stat().st_mtime_ns == written
    assert_equal_weights(tmp_path / "part", tmp_path / "whole")


# ------------------------------------------------------------------------------------------------ LoRA


def test_lora_saves_loads_and_merges(parts, recipe, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    train.main([recipe(lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}, merge_lora=True, learning_rate=1e-2)])
    folder = tmp_path / "run"
    assert f"{folder / 'merged'}: the whole model with the adapter merged" in capsys.readouterr().out

    saved = load_file(folder / "adapter_model.safetensors")
    assert {part_of(name) for name in saved} == {"multi_modal_projector", "language_experts", "language_model"}
    assert all("lora" in name for name in saved if part_of(name) == "language_model")

    base = ParrotForConditionalGeneration.from_pretrained(parts.stage1, num_language_experts=4, **EXPERTS)
    adapted = peft.PeftModel.from_pretrained(base, folder).eval()
    merged = ParrotForConditionalGeneration.from_pretrained(folder / "merged").eval()
    processor = ParrotProcessor.from_pretrained(folder / "merged")
    inputs = tiny_models.encode(processor, [tiny_models.user("What is it?", tiny_models.picture())])
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, merged(**inputs).logits, atol=1e-4, rtol=1e-4)
    moved, stayed = moved_parts(weights(parts.stage1), weights(folder / "merged"))
    assert {"multi_modal_projector", "language_model"} <= moved
    assert "vision_tower" in stayed and "vision_tower" not in moved and "lm_head" not in moved


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"learning_rat": 1}, "unknown key `learning_rat`"),
        ({"train_data": [{"path": "none.json"}]}, "none.json does not exist"),
        ({"train_data": [{"path": "DATA", "streaming": True}]}, "set `max_steps`"),
        ({"resume_from_checkpoint": "true"}, "no complete checkpoint in"),
        ({"max_length": 20}, "24 of 24 rows cannot be used, the first: row 'image-0': its 1 image.* do not fit into"),
        ({"max_length": 46}, "row 'image-0': nothing to train on.*on_long_row: skip"),
        ({"checkpoint": "LM"}, "is a qwen2, neither a Parrot nor a LLaVA"),
        ({"checkpoint": "TRAINED"}, "was saved with 4 language experts, but 2 were asked for"),
    ],
)
def test_bad_input_stops_before_training(parts, recipe, tmp_path, changes, complaint):
    changes = json.loads(json.dumps(changes).replace("DATA", str(parts.data)).replace("LM", str(parts.folder / "lm")))
    if changes.get("checkpoint") == "TRAINED":
        train.main([recipe("trained", max_steps=1)])
        changes |= {"checkpoint": str(tmp_path / "trained"), "adapter": {"num_language_experts": 2}}
    with pytest.raises(SystemExit, match=complaint):
        train.main([recipe(**changes)])
    assert not (tmp_path / "run").exists()


def test_bad_rows_stop_before_the_model_is_loaded(parts, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_model", lambda arguments: pytest.fail("the model was loaded"))
    data = tiny_data.write(tmp_path / "bad", [*tiny_data.rows(4), tiny_data.llava_row("odd", "q", "a", "q")])
    with pytest.raises(SystemExit, match="row 4 .id 'odd'.*does not end with an answer"):
        train.main([recipe(train_data=[{"path": str(data), "image_folder": str(data.parent / "images")}])])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SystemExit, match="cannot be written"):
        train.main([recipe(output_dir=str(blocked / "run"))])


def test_several_gpus_in_one_process_are_refused(recipe, monkeypatch):
    monkeypatch.setattr(train.TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(SystemExit, match="torchrun --nproc-per-node 2"):
        train.main([recipe()])


def test_auto_resume_starts_a_first_run(recipe, tmp_path):
    train.main([recipe(max_steps=1, resume_from_checkpoint="auto")])
    assert len(losses(tmp_path / "run")) == 1


def test_an_earlier_run_is_not_overwritten(recipe, tmp_path):
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(SystemExit, match="holds checkpoints of an earlier run"):
        train.main([recipe()])


def test_long_rows_are_left_out_if_the_recipe_says_so(parts, recipe, tmp_path, capsys):
    rows = [*tiny_data.rows(4), tiny_data.llava_row("novel", "why? " * 100, "so")]
    data = tiny_data.write(tmp_path / "data", rows)
    source = [{"path": str(data), "image_folder": str(data.parent / "images")}]
    with pytest.raises(SystemExit, match="1 of 5 rows cannot be used, the first: row 'novel'"):
        train.main([recipe(train_data=source, max_length=100)])
    train.main([recipe(train_data=source, max_length=100, on_long_row="skip", per_device_train_batch_size=1)])
    printed = capsys.readouterr().out
    assert "left out 1 of 5 rows" in printed and "4 steps of 1 rows" in printed


def test_bad_images_stop_or_are_skipped_and_counted(parts, recipe, tmp_path, capsys):
    data = tiny_data.write(tmp_path / "data", tiny_data.rows(24))
    (data.parent / "images" / "5.png").write_bytes(b"")
    source = [{"path": str(data), "image_folder": str(data.parent / "images")}]
    trainer, _, _ = train.prepare([recipe("strict", train_data=source)])
    with pytest.raises(ValueError, match="row 'image-5'.*5.png is empty"):
        trainer.train()
    train.main([recipe("lenient", train_data=source, on_bad_image="skip", dataloader_num_workers=1)])
    assert "Rows skipped for unreadable images, process 0: 1" in capsys.readouterr().out
    assert len(losses(tmp_path / "lenient")) == 6


@pytest.fixture
def parallel(tmp_path):
    """A mixture of 12 rows in two parallel languages and three formats, as a recipe's `train_data`."""
    rows = [
        {
            "id": str(k),
            "image": f"{k}.png",
            "texts": {
                "en": [{"question": "<image>\nWhat is in the picture?", "answer": f"a cat and {k} dogs"}],
                "zh": [{"question": "<image>\n图中是什么？", "answer": f"一只猫 {k}"}],
            },
        }
        for k in range(12)
    ]
    path = tiny_data.write(tmp_path / "parallel", rows)
    source = {"path": str(path), "image_folder": str(path.parent / "images")}
    shares = {"languages": {"en": 0.5, "zh": 0.5}, "tasks": {"mvqa": 0.5, "ep_vqa": 0.25, "bvqa": 0.25}}
    return {"sources": {"all": source}, **shares}


def test_a_mixture_trains_with_its_losses_per_language_and_task(recipe, parallel, tmp_path, capsys):
    evaluation = {"held_out": {**parallel["sources"]["all"], "max_rows": 3}}
    options = {"eval_data": evaluation, "eval_by": ["language", "task"], "eval_strategy": "epoch"}
    train.main([recipe(train_data=parallel, save_strategy="steps", save_steps=2, **options)])
    printed = capsys.readouterr().out
    assert "24 rows" in printed and "en: 12 (50.0%): mvqa 12" in printed
    assert "zh: 12 (50.0%): bvqa 3, ep_vqa 3, mvqa 6" in printed
    last = {key for entry in log(tmp_path / "run") for key in entry}
    assert {f"eval_{name}_loss" for name in ("en", "zh", "mvqa", "ep_vqa", "bvqa")} <= last
    # In the middle of an epoch the mixture goes on where it was.
    first = losses(tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    train.main([recipe(train_data=parallel, **options), "--resume_from_checkpoint", "true"])
    assert losses(tmp_path / "run") == first


def test_a_streamed_mixture_says_what_it_read(recipe, parallel, capsys):
    parallel["sources"]["all"]["streaming"] = True
    train.main([recipe(train_data=parallel, max_steps=3)])
    printed = capsys.readouterr().out
    assert "a stream of rows" in printed and "Step 3, read ahead of it by process 0:" in printed
    assert re.search(r"en: \d+ \(\d+\.\d%\)", printed.rpartition("read ahead")[2])
