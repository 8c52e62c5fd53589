"""What each instruction format, the share of non-English data, and the experts contribute, on the emoji data.

    python examples/ablation.py --output outputs/ablation                      # everything, 3 seeds: hours of two cores
    python examples/ablation.py --output outputs/ablation --studies formats    # one study
    python examples/ablation.py --output outputs/ablation --report-only        # tables and plot of what there is

Six studies, each condition trained in both stages with `examples/train.py` and asked the same questions:

- formats: LRM-LLaVA, table 3: without all instruction formats (English data only), without each one, all.
- formats_long: the same with twice the steps of stage 2.
- experts: PARROT, figure 5a: English data only, multilingual data, multilingual data and experts.
- format_remedies: whether shorter targets or more steps change what `formats` shows.
- expert_remedies: whether a faster router, fewer active experts or more steps change what `experts` shows.
- ratio: LRM-LLaVA, figure 6: 0.4, 0.7, 1 and 1.5 rows in other languages per English row.

The setting is low-resource: in `formats` and `experts` each language but English has 4% of the rows, in both stages as
far as a stage is multilingual at all. Rows are drawn from one pool of pictures and questions, and:

- English data alone is trained on twice: with as many English rows as the other conditions have (the papers add data in
  other languages to their English data), and with as many rows as they have in all (so as many steps).
- A condition that lacks one format has more of the others, not less data.
- In `ratio` the English rows stay and the others are added to them, as in the paper.

A run that is done is not repeated, so an interrupted command goes on where it was. `--output` gets, besides the runs,
`scores/` (every run), `ablation.md` (tables with mean and spread over the seeds) and `ablation.png`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch


ROOT = Path(__file__).resolve().parents[1]
EMOJI = Path(__file__).resolve().parent / "emoji"
sys.path.insert(0, str(EMOJI))

import parallel  # noqa: E402  the folder of the emoji example has to be named first
from score import evaluate_pictures  # noqa: E402

import modeling_parrot  # noqa: E402, F401 registers Parrot with the Auto classes


LRM = ("en", "cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")  # LRM-LLaVA's ten languages
SIX = ("en", "zh", "pt", "ar", "tr", "ru")  # PARROT's six
LOW_RESOURCE = 0.04  # of the rows, for each language but English
FORMATS = {"mvqa": 1.0, "ep_vqa": 1.0, "bvqa": 1.0}  # relative shares
MVQA = {"mvqa": 1.0}


@dataclass(frozen=True)
class Condition:
    """One way to train. Shares are those of the languages other than English, together."""

    label: str
    languages: Sequence[str] = LRM
    aligned: float = LOW_RESOURCE * 9  # in stage 1, always MVQA
    tuned: float = LOW_RESOURCE * 9  # in stage 2
    tasks: Mapping[str, float] = field(default_factory=lambda: FORMATS)
    experts: int = 0
    length: float = 1.0  # steps of stage 2, in those that the command line gives
    settings: Mapping[str, Any] = field(default_factory=dict)  # of stage 2, beyond the recipe


def at_ratio(ratio: float) -> Condition:
    share = ratio / (1 + ratio)
    label = f"{ratio:g} non-English rows per English row"
    return Condition(label, aligned=share, tuned=share, length=(1 + ratio) * (1 - 9 * LOW_RESOURCE))


CONDITIONS = {
    "english_alone": Condition("English data only", aligned=0, tuned=0, length=1 - 9 * LOW_RESOURCE),
    "english": Condition("English data only, as many rows in all", aligned=0, tuned=0),
    "all": Condition("all formats"),
    "no_mvqa_stage1": Condition("without MVQA in stage 1", aligned=0),
    "no_mvqa": Condition("without MVQA in stage 2", tasks={"ep_vqa": 1, "bvqa": 1}),
    "no_ep_vqa": Condition("without EP-VQA", tasks={"mvqa": 1, "bvqa": 1}),
    "no_bvqa": Condition("without BVQA", tasks={"mvqa": 1, "ep_vqa": 1}),
    "english_alone_six": Condition("English data only", SIX, 0, 0, length=1 - 5 * LOW_RESOURCE),
    "multilingual": Condition("multilingual data", SIX, 0, LOW_RESOURCE * 5, MVQA),
    "experts": Condition("multilingual data and experts", SIX, 0, LOW_RESOURCE * 5, MVQA, experts=6),
    "multilingual_long": Condition("multilingual data, twice the steps", SIX, 0, LOW_RESOURCE * 5, MVQA, length=2),
    "experts_long": Condition("experts, twice the steps", SIX, 0, LOW_RESOURCE * 5, MVQA, experts=6, length=2),
    "experts_fast_router": Condition(
        "experts, router ten times as fast", SIX, 0, LOW_RESOURCE * 5, MVQA, 6, settings={"router_learning_rate": 0.1}
    ),
    "experts_top_2": Condition(
        "experts, two of six active", SIX, 0, LOW_RESOURCE * 5, MVQA, 6, settings={"adapter.num_active_experts": 2}
    ),
    "mvqa_only": Condition("MVQA only", tasks=MVQA),
    "mvqa_english_stage1": Condition("MVQA only, English in stage 1", aligned=0, tasks=MVQA),
    "mostly_mvqa": Condition("all formats, 80% of them MVQA", tasks={"mvqa": 8, "ep_vqa": 1, "bvqa": 1}),
    "ratio_0.4": at_ratio(0.4),
    "ratio_0.7": at_ratio(0.7),
    "ratio_1": at_ratio(1.0),
    "ratio_1.5": at_ratio(1.5),
}
LONG = ("english", "no_mvqa_stage1", "no_mvqa", "no_ep_vqa", "no_bvqa", "all")
CONDITIONS |= {
    f"{name}_long": replace(
        CONDITIONS[name],
        label=f"{CONDITIONS[name].label.removesuffix(', as many rows in all')}, twice the steps",
        length=2,
    )
    for name in LONG
}
# Study: what it is, its languages, and its conditions.
STUDIES: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "formats": (
        "Instruction formats (LRM-LLaVA, table 3)",
        LRM,
        ("english_alone", "english", "no_mvqa_stage1", "no_mvqa", "no_ep_vqa", "no_bvqa", "all"),
    ),
    "formats_long": (
        "Instruction formats with twice the steps (LRM-LLaVA, table 3)",
        LRM,
        tuple(f"{name}_long" for name in LONG),
    ),
    "experts": (
        "Data and experts (PARROT, figure 5a)",
        SIX,
        ("english_alone_six", "english", "multilingual", "experts"),
    ),
    "format_remedies": (
        "What could make the formats help: fewer long targets, more steps",
        LRM,
        ("english", "all", "mvqa_only", "mvqa_english_stage1", "mostly_mvqa", "english_long", "all_long"),
    ),
    "expert_remedies": (
        "What could make the experts help: a faster router, fewer active experts, more steps",
        SIX,
        ("multilingual", "experts", "experts_fast_router", "experts_top_2", "multilingual_long", "experts_long"),
    ),
    "ratio": (
        "Share of non-English data (LRM-LLaVA, figure 6)",
        LRM,
        ("ratio_0.4", "ratio_0.7", "ratio_1", "ratio_1.5"),
    ),
}
REFERENCES = {
    "formats": "all",
    "formats_long": "all_long",
    "experts": "experts",
    "format_remedies": "english",
    "expert_remedies": "multilingual",
    "ratio": "ratio_1",
}
MEASURES = {
    "style choice": "4-way, held-out style",
    "style naming": "naming, held-out style",
    "style in_language": "in language",
    "concept choice": "4-way, held-out concepts",
    "concept naming": "naming, held-out concepts",
}


def mixture(
    data: Path, file: str, languages: Sequence[str], share: float, tasks: Mapping[str, float]
) -> dict[str, Any]:
    """`train_data` of a recipe: `share` of the rows in other languages than English, spread evenly."""
    others = [language for language in languages if language != "en"] if share else []
    return {
        "sources": {"emoji": {"path": str(data / file), "image_folder": str(data)}},
        "languages": {"en": 1 - share} | {language: share / len(others) for language in others},
        "tasks": {task: share / sum(tasks.values()) for task, share in tasks.items()},
    }


def train(recipe: str, output: Path, settings: dict[str, Any]) -> None:
    """One stage, with what it printed in `output`.log. What an interrupted run left is removed first."""
    if output.exists():
        shutil.rmtree(output)
    command = [sys.executable, str(ROOT / "examples" / "train.py"), str(EMOJI / "recipes" / recipe)]
    for key, value in (settings | {"output_dir": str(output)}).items():
        command += [f"--{key}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{output}.log", "w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"error: training of {output.name} failed, see {output}.log")


def run(name: str, seed: int, folder: Path, args: argparse.Namespace) -> None:
    """Trains and scores one condition with one seed, unless that has been done."""
    condition, data = CONDITIONS[name], folder / "data"
    scores = folder / "scores" / f"{name}-{seed}.json"
    settings = settings_of(args)
    if scores.exists():
        if json.loads(scores.read_text(encoding="utf-8"))["settings"] != settings:
            raise SystemExit(f"error: {scores} was made with other settings. Choose another --output or remove it.")
        return
    common: dict[str, Any] = {"seed": seed, "per_device_train_batch_size": args.batch_size, "disable_tqdm": True}
    # Stage 1 is shared by the conditions that do it alike.
    first = (
        folder
        / "stage1"
        / f"{'-'.join(condition.languages) if condition.aligned else 'en'}-{condition.aligned:.4f}-{seed}"
    )
    if not (first / "processor_config.json").exists():  # written last
        alignment = mixture(data, "captions.jsonl", condition.languages, condition.aligned, MVQA)
        train("stage1.yaml", first, common | {"max_steps": args.stage1_steps, "train_data": alignment})
    second = folder / "stage2" / f"{name}-{seed}"
    tuning = mixture(data, "questions.jsonl", condition.languages, condition.tuned, condition.tasks)
    train(
        "stage2.yaml",
        second,
        common
        | {"max_steps": round(condition.length * args.stage2_steps), "checkpoint": str(first), "train_data": tuning}
        | {"learning_rate": args.learning_rate, "adapter.num_language_experts": condition.experts}
        | dict(condition.settings),
    )
    asked = [
        language for language in parallel.LANGUAGES if any(language in STUDIES[study][1] for study in in_studies(name))
    ]
    result = evaluate_pictures(second, data, asked, args.per_language)
    scores.parent.mkdir(parents=True, exist_ok=True)
    part = scores.with_suffix(".part")
    part.write_text(json.dumps({"settings": settings, **result}, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(scores)
    shutil.rmtree(second)  # 30 MB for each of dozens of runs


def in_studies(name: str) -> list[str]:
    return [study for study, (_, _, names) in STUDIES.items() if name in names]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What has to be equal for two runs to be comparable."""
    names = ("stage1_steps", "stage2_steps", "batch_size", "learning_rate", "questions", "per_language")
    return {name: getattr(args, name) for name in names}


# ---------------------------------------------------------------------------------------------- tables and plot


def collect(folder: Path, languages: Sequence[str], name: str) -> dict[int, dict[str, tuple[float, float]]]:
    """{seed: {measure: (English, mean of the other languages)}}"""
    result: dict[int, dict[str, tuple[float, float]]] = {}
    for path in sorted((folder / "scores").glob(f"{name}-*.json")):
        scores = json.loads(path.read_text(encoding="utf-8"))
        values = {}
        for measure in MEASURES:
            split, kind = measure.split()
            by_language = scores[split][kind]
            others = [by_language[language] for language in languages if language != "en" and language in by_language]
            values[measure] = (by_language["en"], mean(others))
        result[int(path.stem.rpartition("-")[2])] = values
    return result


def routing(folder: Path, languages: Sequence[str], name: str) -> list[tuple[float, float]]:
    """
    How the router tells languages apart, a pair per seed; empty for conditions without experts.

    Returns:
        [(the part of a language's mean weights that would have to move to give the mean of all languages, in per cent;
        how many equally used experts have the entropy of a language's mean weights), ...], both means over languages.
    """
    result = []
    for path in sorted((folder / "scores").glob(f"{name}-*.json")):
        by_language = json.loads(path.read_text(encoding="utf-8")).get("router")
        if by_language:
            weights = torch.tensor([by_language[language] for language in languages])  # [languages, experts]
            moved = (weights - weights.mean(0)).abs().sum(1) / 2
            used = torch.special.entr(weights).sum(1).exp()
            result.append((100 * moved.mean().item(), used.mean().item()))
    return result


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"


def spreads(pairs: Sequence[tuple[float, float]]) -> str:
    """English / mean of the other languages."""
    english, others = zip(*pairs, strict=True)
    return f"{spread(english)} / {spread(others)}"


def tables(folder: Path, studies: Iterable[str]) -> str:
    """Markdown: a table per study with mean ± standard deviation over seeds, and paired differences."""
    parts = []
    for study in studies:
        title, languages, names = STUDIES[study]
        found = {name: runs for name in names if (runs := collect(folder, languages, name))}
        if not found:
            continue
        seeds = sorted({seed for runs in found.values() for seed in runs})
        lines = [
            f"### {title}",
            "",
            f"Seeds: {', '.join(map(str, seeds))}. Per cent, English / mean of the other languages.",
            "",
        ]
        heads = list(MEASURES.values())
        lines += [f"| condition | seeds | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(heads)]
        for name, runs in found.items():
            cells = [spreads([runs[seed][measure] for seed in runs]) for measure in MEASURES]
            lines.append(f"| {CONDITIONS[name].label} | {len(runs)} | {' | '.join(cells)} |")
        reference = REFERENCES[study]
        if reference in found:
            lines += ["", f"Difference to *{CONDITIONS[reference].label}* with the same seed, in points:", ""]
            lines += [f"| condition | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
            for name, runs in found.items():
                both = sorted(set(runs) & set(found[reference]))
                if name != reference and both:
                    other = found[reference]
                    cells = [
                        spreads(
                            [
                                (
                                    runs[seed][measure][0] - other[seed][measure][0],
                                    runs[seed][measure][1] - other[seed][measure][1],
                                )
                                for seed in both
                            ]
                        )
                        for measure in MEASURES
                    ]
                    lines.append(f"| {CONDITIONS[name].label} | {' | '.join(cells)} |")
        if routers := {name: pairs for name in found if (pairs := routing(folder, languages, name))}:
            lines += [
                "",
                "The router: how far a language's mean weights are from the mean of all languages (0%: the language makes "
                "no difference), and how many experts a language uses (exponential of the entropy of its mean weights):",
                "",
                "| condition | distance of a language, % | experts used |",
                "|---|---:|---:|",
            ]
            for name, pairs in routers.items():
                moved, used = zip(*pairs, strict=True)
                lines.append(f"| {CONDITIONS[name].label} | {spread(moved)} | {spread(used)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def draw(folder: Path, studies: Sequence[str], path: Path) -> None:
    """A panel per study: 4-way accuracy on the held-out style, English beside the others, a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    looks = {"English": ("#0072B2", "o"), "mean of the other languages": ("#D55E00", "D")}
    shown = [study for study in studies if any(collect(folder, STUDIES[study][1], name) for name in STUDIES[study][2])]
    heights = [len(STUDIES[study][2]) for study in shown]
    figure, panels = plt.subplots(
        len(shown),
        1,
        figsize=(7, 1.2 + 0.62 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
        sharex=True,
    )
    for axes, study in zip(panels[:, 0], shown, strict=True):
        title, languages, names = STUDIES[study]
        for place, name in enumerate(reversed(names)):
            runs = collect(folder, languages, name)
            for side, (colour, mark) in enumerate(looks.values()):
                values = [values["style choice"][side] for values in runs.values()]
                height = place + (0.17 if side == 0 else -0.17)
                if values:
                    axes.plot(values, [height] * len(values), mark, color=colour, alpha=0.45, markersize=5)
                    axes.plot([mean(values)] * 2, [height - 0.14, height + 0.14], color=colour, linewidth=2.5)
        axes.set_yticks(range(len(names)), [CONDITIONS[name].label for name in reversed(names)])
        axes.set_title(title, fontsize=10, loc="right")
        axes.grid(axis="x", alpha=0.3)
    keys = [Line2D([], [], color=colour, marker=mark, label=label) for label, (colour, mark) in looks.items()]
    figure.legend(handles=keys, loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    panels[-1, 0].set_xlabel("4-way accuracy on the held-out style, % (chance 25); bar: mean over seeds", loc="right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/ablation"))
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, help="train only these of the studies")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--stage1-steps", type=int, default=200)
    parser.add_argument("--stage2-steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32, help="rows per step")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of stage 2")
    parser.add_argument("--questions", type=int, default=12_000, help="rows in the pool of stage 2")
    parser.add_argument("--per-language", type=int, default=100, help="questions per split, kind and language")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = args.output.resolve()
    names = list(dict.fromkeys(name for study in args.studies for name in STUDIES[study][2]))
    names = [name for name in names if not args.conditions or name in args.conditions]
    if not args.report_only:
        if not (folder / "data" / "eval.jsonl").exists():
            print("Writing pictures and questions ...", flush=True)
            parallel.write(folder / "data", questions=args.questions)
        # Seed by seed, so that after an interruption every condition has been seen as often as any other.
        jobs = [(name, seed) for seed in args.seeds for name in names]
        for number, (name, seed) in enumerate(jobs, start=1):
            print(f"[{number}/{len(jobs)}] {CONDITIONS[name].label}, seed {seed}", flush=True)
            run(name, seed, folder, args)
    text = tables(folder, args.studies)
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    draw(folder, args.studies, folder / "ablation.png")
    print(f"\n{text}\nMade: {folder}/ablation.md, {folder}/ablation.png; scores of every run in {folder}/scores")


if __name__ == "__main__":
    main()
