"""Runs code as a stranger would: in a process where none of this project's modules can be imported."""

import os
import subprocess
import sys
from pathlib import Path


PROJECT = Path(__file__).resolve().parents[1]

PRELUDE = f"""
import sys
# An environment inside the project's folder holds the packages that a stranger has too.
sys.path[:] = [p for p in sys.path if p.startswith(sys.prefix) or not p.startswith({str(PROJECT)!r})]
for name in ("configuration_parrot", "instructions_parrot", "modeling_parrot", "processing_parrot", "parrot_data"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(name + " can be imported, so this process proves nothing")
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging
logging.disable_progress_bar()
"""


def run_as_stranger(code: str, *arguments, cache: Path) -> str:
    """Standard output of `code` (which finds `arguments` in sys.argv); fails with the process's errors."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        env=environment, cwd=cache, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
