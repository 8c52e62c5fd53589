"""Training runs on tiny models: recipes for `examples/train.py`, starting it in several processes, what a run leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parents[1]
EXPERTS = {"expert_intermediate_size": 16}


def settings(folder: Path, data: Path, output: Path, **changes) -> dict:
    """A recipe of the instruction stage on the tower and the language model in `folder`."""
    return {
        "vision_tower": str(folder / "tower"),
        "language_model": str(folder / "lm"),
        "stage": "instruction",
        "train_data": [{"path": str(data), "image_folder": str(data.parent / "images")}],
        "max_length": 256,
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    } | changes


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def torchrun(*arguments, processes: int = 2) -> subprocess.CompletedProcess:
    """A program in several processes."""
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return finished([*command, *arguments])


def accelerate(config: str, *arguments, processes: int = 2, **env) -> subprocess.CompletedProcess:
    """A program in several processes, by a file of configuration/accelerate as it ships, in float32."""
    file = ROOT / "configuration" / "accelerate" / f"{config}.yaml"
    command = ["accelerate.commands.launch", "--config_file", file, "--num_processes", processes]
    return finished([*command, "--mixed_precision", "no", "--main_process_port", 0, *arguments], **env)


def finished(module_and_arguments: list, **env) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, module_and_arguments)],
        cwd=ROOT, env=environment() | env, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-5000:]
    return done


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def log(folder) -> list[dict]:
    return json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]


def losses(folder) -> list[float]:
    return [entry["loss"] for entry in log(folder) if "loss" in entry]


def assert_equal_weights(first, second, **tolerance):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name in first:
        if tolerance:
            torch.testing.assert_close(first[name], second[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)
        else:
            assert torch.equal(first[name], second[name]), name


def part_of(name: str) -> str:
    names = ("vision_tower", "multi_modal_projector", "language_experts", "language_model", "lm_head")
    return next(part for part in names if part in name)


def moved_parts(before, after) -> tuple[set[str], set[str]]:
    """Parts with a tensor that changed, and parts with one that did not."""
    changed = {name: not torch.equal(before[name], after[name]) for name in before}
    return {part_of(n) for n, c in changed.items() if c}, {part_of(n) for n, c in changed.items() if not c}


def write_recipe(path: Path, content: dict) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)
