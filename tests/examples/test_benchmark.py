"""What `benchmark.py` compares is comparable: equal sizes, equal results where it says so, and figures that say what they do."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import benchmark  # noqa: E402
from benchmark_models import SHAPES, SIDES, batch, build, freeze  # noqa: E402
from benchmark_report import draw_growth, figures, tables  # noqa: E402


TINY = replace(SHAPES["tiny"], layers=1)


def built(side, stage="instruction"):
    model = build(side, TINY, torch.float32, "cpu", experts=side != "llava")
    freeze(model, stage)
    return model


def test_sides_have_the_same_parameters_but_for_the_experts():
    def sizes(side):
        parameters = built(side).named_parameters()
        return sorted(tuple(value.shape) for name, value in parameters if "language_experts" not in name)

    assert sizes("parrot") == sizes("llava") == sizes("published")


@pytest.mark.parametrize("stage", benchmark.STAGES.values())
def test_sides_train_the_same_parts(stage):
    def trained(side):
        parameters = built(side, stage).named_parameters()
        return sum(v.numel() for name, v in parameters if v.requires_grad and "language_experts" not in name)

    assert trained("parrot") == trained("llava") == trained("published")


def test_the_published_algorithm_gives_the_same_loss_and_gradients():
    ours, theirs = built("parrot"), built("published")
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "language_experts" in name:
                parameter.normal_(std=0.1)
    theirs.load_state_dict(ours.state_dict())
    inputs = batch(TINY, 2, torch.float32, "cpu", "parrot")
    losses = [model(**inputs).loss for model in (ours, theirs)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("side", SIDES)
def test_labels_are_at_the_end_and_images_have_their_placeholders(side):
    inputs = batch(TINY, 3, torch.float32, "cpu", side, images=2)
    assert (inputs["labels"] != -100).sum(1).tolist() == [TINY.labels] * 3
    assert (inputs["input_ids"] == TINY.vocabulary - 1).sum().item() == 3 * 2 * TINY.image_tokens
    assert len(inputs["pixel_values"]) == 6 and torch.isfinite(built(side)(**inputs).loss)


def test_by_turns_runs_every_side_equally_often():
    runs = []
    works = {name: lambda name=name: runs.append(name) for name in "ab"}
    times = benchmark.by_turns(works, "cpu", repeats=3, warm_up=1)
    assert runs == [*"ab", *"ab", *"ba", *"ab"] and {name: len(values) for name, values in times.items()} == {
        "a": 3,
        "b": 3,
    }


def test_tables_mark_goals_by_what_was_measured():
    def result(time, memory):
        return {"compared": ("parrot", "llava"), "seconds": {"parrot": [time] * 3, "llava": [1.0] * 3},
                "memory": {"parrot": memory, "llava": 100}, "flops": {"parrot": 10**9, "llava": 2 * 10**9}}  # fmt: skip

    results = {"stage1, small, vocabulary 32k": result(0.3, 60)}
    assert figures(results["stage1, small, vocabulary 32k"]) == {"time": 0.3, "memory": 0.6}
    machine = {
        "device": "cpu",
        "threads": 1,
        "torch": "2",
        "transformers": "5",
        "dtype": "float32",
        "batch_size": 16,
        "peak_flops": 1e10,
    }
    text = tables({"machine": machine, "results": results})
    assert "| stage1, small, vocabulary 32k | time | ≤ 0.33 | 0.300 | met |" in text
    assert "| stage1, small, vocabulary 32k | memory | ≤ 0.55 | 0.600 | **not met** |" in text
    assert "| 0.001 | 33 |" in text  # TFLOP, share of the peak


def test_peak_memory_is_the_other_process_own(monkeypatch):
    """A large process that asks does not count."""
    ballast = torch.ones(2**30 // 4)  # 1 GiB
    args = benchmark.argparse.Namespace(batch_size=1, dtype=torch.float32, device="cpu")
    measured = benchmark.peak_memory({"part": "stage1", "side": "parrot"}, TINY, args)
    assert 0 < measured < ballast.numel() * 4


@pytest.mark.parametrize("axis", benchmark.GROWTH)
def test_growth_measures_more_work_for_larger_sizes(axis, monkeypatch):
    asked = []
    monkeypatch.setattr(
        benchmark, "by_turns", lambda works, *_: {n: [benchmark.flops_of(w)] for n, w in works.items()}
    )
    monkeypatch.setattr(benchmark, "peak_memory", lambda job, shape, args: asked.append((job, shape, args)) or 1)
    monkeypatch.setitem(benchmark.GROWTH, axis, (1, 4) if axis != "text tokens per row" else (64, 128))
    args = benchmark.argparse.Namespace(batch_size=16, dtype=torch.float32, device="cpu", repeats=1)
    result = benchmark.measure_growth(axis, TINY, args)
    (less,), (more,) = result["seconds"].values()
    assert more > less and len({str(call) for call in asked}) == 2


def test_growth_is_drawn(tmp_path):
    result = {"compared": ("2", "1"), "seconds": {"1": [0.1], "2": [0.2]}, "memory": {"1": 2**30, "2": 2**31}}
    path = draw_growth({"growth with rows": result, "adapter": {}}, tmp_path / "growth.png")
    assert path.stat().st_size > 5000


def test_parts_measured_one_by_one_stay_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        benchmark, "measure_top_k", lambda *_: {"compared": ("a", "b"), "seconds": {"a": [1], "b": [2]}}
    )
    monkeypatch.setattr(
        benchmark, "measure_adapter", lambda *_: {"compared": ("a", "b"), "seconds": {"a": [1], "b": [4]}}
    )
    monkeypatch.setattr(benchmark, "peak_flops", lambda *_: 1e9)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "--output", str(tmp_path), "--only", *arguments])
        benchmark.main()

    run("top_k")
    run("adapter")
    text = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    assert "top-1 of 48" in text and "adapter" in text
    with pytest.raises(SystemExit, match="another machine or setting"):
        run("adapter", "--batch-size", "3")
    assert (tmp_path / "benchmark.md").read_text(encoding="utf-8") == text


def test_saved_bytes_are_what_the_backward_pass_needs():
    x, y = torch.randn(1000, requires_grad=True), torch.randn(1000, requires_grad=True)
    assert (
        benchmark.saved_bytes(lambda: (x * y).exp().sin(), [x, y]) == 4000
    )  # exp's result, which is the sine's input too
