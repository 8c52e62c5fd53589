"""
Measures a model on multilingual benchmarks.

    python examples/evaluate.py --model DIR_OR_ID --benchmark mmmb
    python examples/evaluate.py --model DIR_OR_ID --benchmark mmmb --protocol yes_no_pairs --languages en zh
    python examples/evaluate.py --model DIR_OR_ID --benchmark pope_cs.tsv pope_de.tsv --like pope
    accelerate launch examples/evaluate.py --model DIR_OR_ID --benchmark mmbench
    python examples/evaluate.py --list

A benchmark is a name (`--list`), or files: TSV files as VLMEvalKit reads them, or data sets with such columns; in any
language, one per file or told by a column. Answers are kept as they come, so an interrupted command goes on where it was,
and `--score-only` scores them again without the model. Written into OUTPUT/MODEL/BENCHMARK: `report.md`, `scores.csv`,
`scores.json`, `predictions.jsonl`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate.state import PartialState
from transformers.utils import logging

import modeling_parrot  # noqa: F401 (registers Parrot's classes)
from parrot_data.images import BadImageError
from parrot_eval.asking import RANKED, ask, settings_of
from parrot_eval.benchmarks import JUDGED, KINDS, Benchmark, known_benchmarks, load_benchmark
from parrot_eval.generation import Asker
from parrot_eval.judge import Judge, JudgeError
from parrot_eval.predictions import Key, Predictions, model_fingerprint
from parrot_eval.prompts import STYLES
from parrot_eval.report import write_report
from parrot_eval.results import Results, results


def benchmark_list() -> str:
    lines = []
    for name, entry in known_benchmarks().items():
        lines.append(f"{name:12} {entry['title']:26} {entry['protocol']:9} {' '.join(entry['files'])}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the known benchmarks and end")
    parser.add_argument("--model", help="folder of a checkpoint, or id on the Hub")
    parser.add_argument("--benchmark", nargs="+", metavar="NAME|FILE", help="a known benchmark, or its files")
    parser.add_argument("--like", metavar="NAME", help="the known benchmark that the files are a version of")
    parser.add_argument("--protocol", choices=KINDS, help="score otherwise than the benchmark says")
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="by default all that there are")
    parser.add_argument("--columns", type=yaml.safe_load, help="YAML, {name here: name in the files}")
    parser.add_argument("--limit", type=int, help="only the first so many questions of each language")
    parser.add_argument("--output", type=Path, default=Path("outputs/evaluation"))
    parser.add_argument("--prompts", choices=STYLES, default="parrot", help="in the question's language, or the kit's")
    parser.add_argument("--rank", nargs="+", choices=RANKED, default=[], help="also score by likelihood of options")
    parser.add_argument("--control", action="store_true", help="ask again with other questions' pictures")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="auto", help="of the weights: auto, bfloat16, float16, float32")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="count questions with unreadable images as wrong"
    )
    parser.add_argument("--judge-url", help="OpenAI-compatible endpoint that rates free answers (LLaVA-Bench)")
    parser.add_argument("--judge-model", help="as that endpoint calls it")
    parser.add_argument(
        "--score-only", action="store_true", help="score the answers that are there, without the model"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files inside the checkpoint, not the package's",
    )
    args = parser.parse_args()
    if not args.list and not (args.model and args.benchmark):
        parser.error("give --model and --benchmark, or --list")
    if bool(args.judge_url) != bool(args.judge_model):
        parser.error("give --judge-url and --judge-model together, or neither")
    return args


def evaluate(args: argparse.Namespace, benchmark: Benchmark) -> tuple[Results, Path] | None:
    """Asks and scores; the results in the first process, None in the others."""
    state = PartialState(cpu=not torch.accelerator.is_available())  # so that several processes work on CPUs too
    folder = args.output / Path(args.model).name / f"{benchmark.name}-{benchmark.protocol}"
    settings: dict[str, Any] = {
        "model": args.model,
        "model_fingerprint": model_fingerprint(args.model),
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
        "ranked": args.rank,
        **settings_of(benchmark, args.prompts),
    }
    runs = {"": False} | ({"control": True} if args.control else {})
    with state.main_process_first():
        kept = {name: Predictions(folder / name, settings | {"control": control}) for name, control in runs.items()}
    if not args.score_only:
        asker = Asker.from_pretrained(
            args.model,
            state.device,
            dtype=args.dtype,
            max_new_tokens=args.max_new_tokens,
            trust_remote_code=args.trust_remote_code,
        )
        for name, control in runs.items():
            bad = ask(
                benchmark,
                asker,
                kept[name],
                style=args.prompts,
                batch_size=args.batch_size,
                ranked=() if control else args.rank,
                control=control,
                process=state.process_index,
                processes=state.num_processes,
                workers=args.workers,
                skip_bad_images=args.skip_bad_images,
                barrier=state.wait_for_everyone,
            )
            if bad:
                print(
                    f"{bad} question(s) of process {state.process_index} have unreadable images: they count as wrong."
                )
    if not state.is_main_process:
        return None
    keys = [(language, q.index) for language, questions in benchmark.sets.items() for q in questions]
    for predictions in kept.values():
        predictions.finish(keys)
    answers = kept[""].read()
    ratings, absent = rated(args, benchmark, answers, folder) if benchmark.protocol == JUDGED else (None, "")
    settings["judge"] = args.judge_model
    found = results(benchmark, settings, answers, kept["control"].read() if args.control else None, ratings, absent)
    write_report(found, folder)
    return found, folder


def rated(
    args: argparse.Namespace, benchmark: Benchmark, answers: dict[Key, dict[str, Any]], folder: Path
) -> tuple[dict[Key, tuple[float, float]] | None, str]:
    """The judge's ratings, or None and why there are none. Answers are kept in either case."""
    if args.judge_url is None:
        return None, "free answers are rated by a judge. Give --judge-url and --judge-model; the answers are kept."
    asked = {(language, q.index): q for language, questions in benchmark.sets.items() for q in questions}
    texts = {key: answers[key]["answer"] for key in asked}
    try:
        return Judge(args.judge_url, args.judge_model).rate(asked, texts, folder / "ratings.jsonl"), ""
    except JudgeError as error:
        return None, str(error)


def main() -> None:
    args = arguments()
    if args.list:
        print(benchmark_list())
        return
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        benchmark = load_benchmark(
            args.benchmark,
            args.languages,
            protocol=args.protocol,
            like=args.like,
            columns=args.columns,
            limit=args.limit,
        )
        evaluated = evaluate(args, benchmark)
    except (ValueError, FileNotFoundError, BadImageError) as error:
        sys.exit(f"error: {error}")
    if evaluated is not None:
        print((evaluated[1] / "report.md").read_text(encoding="utf-8"))
        if evaluated[0].absent:
            sys.exit(f"error: no scores, {evaluated[0].absent}")
        print(f"Made: report.md, scores.csv, scores.json and predictions.jsonl in {evaluated[1]}")


if __name__ == "__main__":
    main()
