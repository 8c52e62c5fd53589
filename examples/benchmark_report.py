"""What `benchmark.py` wants to see, and the tables of what it saw."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Goal:
    """What a figure should be: `figure` of the result whose name begins with `name`."""

    name: str
    figure: str
    limit: float
    at_most: bool = True


GOALS = (
    Goal("stage1, small, vocabulary 32k", "time", 0.33),
    Goal("stage1, small, vocabulary 152k", "time", 0.23),
    Goal("stage1, 0.5b", "time", 0.65),
    Goal("stage1, 7b", "time", 0.92),
    Goal("stage1, small, vocabulary 32k", "memory", 0.55),
    Goal("stage1, small, vocabulary 152k", "memory", 0.32),
    Goal("stage1, 0.5b", "memory", 0.50),
    Goal("stage1, 7b", "memory", 0.75),
    Goal("stage2, small, vocabulary 32k, experts 512", "time", 0.45),
    Goal("stage2, small, vocabulary 32k, experts 512", "memory", 0.60),
    Goal("stage2, 0.5b", "time", 0.95),
    Goal("stage2, 0.5b", "memory", 0.75),
    Goal("stage2, 7b", "time", 0.95),
    Goal("stage2, 7b", "memory", 0.75),
    Goal("time to first token", "time", 1.05),
    Goal("decoding", "time", 1 / 0.99),
    Goal("adapter", "time", 1 / 1.5 if torch.cuda.is_available() else 1 / 2.5),
    Goal("adapter", "memory", 0.5),
    Goal("top-1 of 48", "time", 0.5),
    Goal("processor call", "time", 1.2),
    Goal("data path", "images per second", 100, at_most=False),
)


def ratio(times: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Median and spread (quartiles) of the ratio within a round."""
    ratios = sorted(a / b for a, b in zip(times[one], times[other], strict=True))
    return {"ratio": median(ratios), "low": ratios[len(ratios) // 4], "high": ratios[-1 - len(ratios) // 4]}


def figures(result: dict[str, Any]) -> dict[str, float]:
    """The first side's time and memory as ratios to the second's; images per second as they are."""
    one, other = result["compared"]
    found = {"time": ratio(result["seconds"], one, other)["ratio"]} if one in result["seconds"] else {}
    if "memory" in result:
        found["memory"] = result["memory"][one] / result["memory"][other]
    if "images_per_second" in result:
        found["images per second"] = result["images_per_second"]
    return found


def draw_growth(results: dict[str, Any], path: Path) -> Path:
    """Time and peak memory of a step against each size, with the straight line through the first and the last point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grown = {name.removeprefix("growth with "): r for name, r in results.items() if name.startswith("growth with ")}
    figure, panels = plt.subplots(2, len(grown), figsize=(2.6 * len(grown), 4.6), squeeze=False, layout="constrained")
    for column, (axis, result) in enumerate(grown.items()):
        sizes = [int(value) for value in result["seconds"]]
        times = [1000 * median(values) for values in result["seconds"].values()]
        memory = [result["memory"][value] / 2**30 for value in result["seconds"]]
        for axes, values, colour in ((panels[0, column], times, "#0072B2"), (panels[1, column], memory, "#D55E00")):
            axes.plot(sizes, values, marker="o", color=colour)
            axes.plot([sizes[0], sizes[-1]], [values[0], values[-1]], color="#888888", linestyle=":")
            axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
            axes.set_ylim(0, 1.1 * max(values))
        panels[1, column].set_xlabel(axis)
    panels[0, 0].set_ylabel("training step, ms")
    panels[1, 0].set_ylabel("peak memory, GiB")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def tables(content: dict[str, Any]) -> str:
    """Markdown: the machine, every measurement, and the goals that apply to what was measured."""
    machine, results = content["machine"], content["results"]
    lines = [
        "# Benchmark",
        "",
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {machine['dtype']}, batch {machine['batch_size']}; a large matrix product reaches "
        f"{machine['peak_flops'] / 1e9:,.0f} GFLOP/s. Ratios are medians over rounds, with quartiles.",
        "",
        "| what | side | time, ms | ratio of times | peak memory, MiB | ratio of memory | TFLOP | of peak, % |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        reference = result["compared"][1]
        for side, values in result["seconds"].items():
            compared = ratio(result["seconds"], side, reference)
            cells = [name, side, f"{1000 * median(values):,.1f}"]
            cells.append(f"{compared['ratio']:.3f} ({compared['low']:.3f} to {compared['high']:.3f})")
            memory = result.get("memory", {})
            cells += (
                [f"{memory[side] / 2**20:,.0f}", f"{memory[side] / memory[reference]:.3f}"] if memory else ["", ""]
            )
            flops = result.get("flops", {}).get(side)
            share = 100 * flops / median(values) / machine["peak_flops"] if flops else 0
            cells += [f"{flops / 1e12:.3f}", f"{share:.0f}"] if flops else ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
    rows = []
    for goal in GOALS:
        for name, result in results.items():
            value = figures(result).get(goal.figure) if name.startswith(goal.name) else None
            if value is not None:
                met = value <= goal.limit if goal.at_most else value >= goal.limit
                sign = "≤" if goal.at_most else "≥"
                rows.append(
                    f"| {name} | {goal.figure} | {sign} {goal.limit:.2f} | {value:.3f} | {'met' if met else '**not met**'} |"
                )
    if rows:
        lines += ["", "| goal | figure | wanted | measured | |", "|---|---|---:|---:|---|", *rows]
    return "\n".join(lines) + "\n"
