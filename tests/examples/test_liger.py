"""Training with Liger's kernels equals training without. Triton interprets them here, so that no GPU is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import assert_equal_weights, environment, losses


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import train  # noqa: E402


pytestmark = pytest.mark.usefixtures("one_thread")

WITH_LIGER = """
import sys
import train
from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction, LigerRopeFunction
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
from modeling_parrot import label_loss_parrot

used = set()
for function in (LigerFusedLinearCrossEntropyFunction, LigerRopeFunction):
    def counted(ctx, *args, plain=function.forward, name=function.__name__, **kwargs):
        used.add(name)
        return plain(ctx, *args, **kwargs)
    function.forward = staticmethod(counted)
label_loss_parrot._liger = lambda device: liger_fused_linear_cross_entropy  # by itself it is chosen on GPUs only
train.main([sys.argv[1]])
print("used:", *sorted(used))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["alignment", "instruction"])
def test_training_with_liger_equals_training_without(recipe, tmp_path, stage):
    pytest.importorskip("liger_kernel")
    train.main([recipe("plain", stage=stage, max_steps=3)])
    kernels = {"rms_norm": False, "swiglu": False}  # those that Triton cannot interpret
    with_liger = recipe("liger", stage=stage, max_steps=3, use_liger_kernel=True, liger_kernel_config=kernels)
    done = subprocess.run(
        [sys.executable, "-c", WITH_LIGER, with_liger],
        cwd=ROOT / "examples", env=environment() | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "used: LigerFusedLinearCrossEntropyFunction LigerRopeFunction" in done.stdout
    assert losses(tmp_path / "liger") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert_equal_weights(tmp_path / "liger", tmp_path / "plain", rtol=1e-4, atol=1e-5)


def test_liger_that_is_not_there_is_asked_for(recipe, monkeypatch):
    monkeypatch.setattr(train, "is_liger_kernel_available", lambda: False)
    with pytest.raises(SystemExit, match="pip install liger-kernel"):
        train.main([recipe(use_liger_kernel=True)])
