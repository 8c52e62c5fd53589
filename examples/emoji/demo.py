"""The whole way on small real data: two training stages, evaluation, a Hub-ready checkpoint, and its answers.

    make demo            about 9 minutes on two CPU cores
    make demo QUICK=1    under 2 minutes: the same steps on less data; its scores say nothing

The same as, by hand, from the project's root:

    python examples/emoji/conversations.py --output outputs/emoji/data
    python examples/emoji/benchmarks.py --output outputs/emoji/benchmarks --pictures outputs/emoji/data
    python examples/train.py examples/emoji/recipes/stage1.yaml
    python examples/train.py examples/emoji/recipes/stage2.yaml
    python examples/emoji/score.py --model outputs/emoji/parrot --data outputs/emoji/data --output scores.json
    python examples/evaluate.py --model outputs/emoji/parrot --benchmark outputs/emoji/benchmarks/mmmb_*.tsv --like mmmb ...
    python examples/analyze.py gap --model outputs/emoji/stage1 outputs/emoji/parrot --benchmark ...
    python examples/chat.py --model outputs/emoji/parrot --image FILE
"""

import argparse
import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import benchmarks
import yaml
from conversations import PARROT_LANGUAGES, load_questions, write
from emoji_data import load_data
from score import columns, evaluate, table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

import modeling_parrot  # noqa: F401 registers Parrot with the Auto classes
from modeling_parrot.model_card import Score, TrainingStage, write_model_card


ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).parent / "recipes"
OUTPUT = Path("outputs/emoji")
DATA, STAGE1, PARROT = OUTPUT / "data", OUTPUT / "stage1", OUTPUT / "parrot"
BENCHMARKS, EVALUATION, PLOTS = OUTPUT / "benchmarks", OUTPUT / "evaluation", OUTPUT / "plots"

TRAINED = {"stage1": "projector", "stage2": "projector, language experts, language model"}

# In the quick form everything runs, on less.
QUICK_DATA: dict[str, Any] = {"views": 1, "stage1_per_image": 2, "stage2_count": 1500, "text_per_language": 10}
QUICK_FORMATS = {"count": 500}
QUICK_SETTINGS = {"max_steps": 12, "per_device_train_batch_size": 32}
QUICK_QUESTIONS = 12
BENCHMARK_QUESTIONS, QUICK_BENCHMARK_QUESTIONS = 60, 4  # per language; 60 give intervals of +-12

PICTURES = {
    "experts.png": "Mean weight of each language expert, per language of the question",
    "gap.png": "Mean visual (squares) and textual (circles) features after alignment and after instruction tuning",
    "regions.png": "Regions of a picture that the choice of the likeliest expert depends on, asked “{question}”; of its words "
    "the router heeds most: {words}",
    "radar.png": "4-way accuracy per language after each stage, MMMB's form, by answers and by likelihood",
}

# Loads the checkpoint as a stranger would: by its own code, with this project's modules out of reach.
ASK = """
import sys
sys.path[:] = [path for path in sys.path if path.startswith(sys.prefix) or not path.startswith(sys.argv[1])]
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging
logging.disable_progress_bar()
folder, image, *questions = sys.argv[2:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
for question in questions:
    chat = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1]:]
    print(f"  {question}  ->  {processor.decode(tokens, skip_special_tokens=True)}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same steps on less data, in under 2 minutes")
    quick = parser.parse_args().quick
    os.chdir(ROOT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.disable_progress_bar()
    began = time.monotonic()
    if OUTPUT.exists():
        shutil.rmtree(OUTPUT)

    step("1/7", "Writing images, captions, questions and benchmarks")
    written = write(DATA, **(QUICK_DATA if quick else {}))
    written |= benchmarks.write(BENCHMARKS, PARROT_LANGUAGES, DATA, **(QUICK_FORMATS if quick else {}))
    for name, count in written.items():
        print(f"  {count:7,d} {name}")

    step("2/7", "Stage 1, alignment: the projector learns from English captions")
    train("stage1.yaml", quick)
    step("3/7", "Stage 2, instruction tuning: projector, language experts and language model, English-rich")
    train("stage2.yaml", quick)

    step("4/7", "Evaluation on pictures no training saw, in six languages, before and after stage 2")
    result = measure(QUICK_QUESTIONS if quick else None)
    (PARROT / "scores.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")

    step("5/7", "The same as a benchmark in MMMB's form: by answers, by likelihood, with other questions' pictures")
    choice = benchmark(QUICK_BENCHMARK_QUESTIONS if quick else BENCHMARK_QUESTIONS)

    step("6/7", "Plots and model card")
    pictures = plot(quick)
    write_card(result, choice, pictures, quick)

    step("7/7", "Loading the checkpoint by its own code and asking it")
    ask()

    print(f"\n{result['table']}\n")
    print("4-way: distractors of the same group, chance is 25. control: another question's picture. text: no picture.")
    print(f"\nThe questions in MMMB's form:\n\n{table(choice, PARROT_LANGUAGES)}\n")
    if quick:
        print("This was the quick form: everything ran, but on too little data for the scores to mean anything.")
    print(f"\nMade in {(time.monotonic() - began) / 60:.1f} minutes:")
    print(f"  {PARROT}/            a Hub-ready checkpoint: weights, processor, code, model card")
    print(
        f"  {PARROT}/scores.json all scores;  {EVALUATION}/ the benchmark's reports;  {PLOTS}/ plots and their numbers"
    )
    print(f"Talk to it:  .venv/bin/python examples/chat.py --model {PARROT} --image {example()[0]}")


def step(number: str, title: str) -> None:
    print(f"\n[{number}] {title}", flush=True)


def train(recipe: str, quick: bool) -> None:
    command = [sys.executable, "examples/train.py", f"examples/emoji/recipes/{recipe}"]
    overrides = [text for key, value in QUICK_SETTINGS.items() for text in (f"--{key}", str(value))]
    subprocess.run(command + (overrides if quick else []), check=True)


def run(program: str, *arguments: Any) -> None:
    """One of the examples as from the command line, in this process: each new one would spend seconds on importing torch."""
    with patch.object(sys, "argv", [program, *map(str, arguments)]):
        runpy.run_path(f"examples/{program}", run_name="__main__")


def measure(per_language: int | None) -> dict[str, Any]:
    """Scores after each stage. Stage 1 leaves the language model as it was, so its text scores are the base's."""
    result: dict[str, Any] = {}
    for name, folder in (("stage1", STAGE1), ("stage2", PARROT)):
        print(f"  {folder} ...", flush=True)
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        processor = AutoProcessor.from_pretrained(folder)
        if name == "stage1":
            # The projector alone: its experts are not there yet. A third of the questions is enough to compare.
            result[name] = evaluate(model, processor, DATA, per_language=per_language or 70)
        else:
            result[name] = evaluate(model, processor, DATA, per_language=per_language)
    after = columns(result["stage2"])
    text = {name: mean_of_kinds(result[name]["text"]) for name in ("stage1", "stage2")}
    shown = {
        **after,
        "4-way after stage 1": result["stage1"]["style"]["choice"],
        "text before": text["stage1"],
        "text after": text["stage2"],
    }
    result["table"] = table(shown, PARROT_LANGUAGES)
    result["columns"] = shown
    return result


def mean_of_kinds(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean of the text-only measures, per language."""
    kinds = [values for kind, values in scores.items() if kind != "in_language"]
    return {lang: round(sum(values[lang] for values in kinds) / len(kinds), 1) for lang in kinds[0]}


def benchmark(per_language: int) -> dict[str, dict[str, float]]:
    """{way of scoring: {language: per cent}} of the final model on the choice questions, in MMMB's form."""
    files = sorted(BENCHMARKS.glob("mmmb_*.tsv"))
    for model, more in ((STAGE1, []), (PARROT, ["--control"])):
        print(f"  {model} ...", flush=True)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # its report is long, and kept
            run(
                "evaluate.py", "--model", model, "--benchmark", *files, "--like", "mmmb", "--limit", per_language,
                "--max-new-tokens", 24, "--rank", "texts", "--output", EVALUATION, *more,
            )  # fmt: skip
    found = json.loads((report_of(PARROT) / "scores.json").read_text(encoding="utf-8"))
    ways = {"answers": found["scores"], "likelihood": found["likelihood"]["texts"], "other pictures": found["control"]}
    return {
        way: {lang: round(values["accuracy"][0], 1) for lang, values in scores.items()} for way, scores in ways.items()
    }


def report_of(model: Path) -> Path:
    return EVALUATION / model.name / "mmmb-choice"


def plot(quick: bool) -> dict[str, str]:
    """Draws what examples/analyze.py draws, and puts the pictures beside the model; {caption: file}."""
    files, limit = sorted(BENCHMARKS.glob("mmmb_*.tsv")), 10 if quick else 60
    image, _ = example()
    question = load_questions()["en"]["naming"][0]
    run("analyze.py", "experts", "--model", PARROT, "--benchmark", *files, "--limit", limit, "--output", PLOTS)
    run("analyze.py", "gap", "--model", STAGE1, PARROT, "--benchmark", *files, "--limit", limit, "--output", PLOTS)
    run("analyze.py", "words", "--model", PARROT, "--image", image, "--question", question, "--output", PLOTS)
    scores = [report_of(model) / "scores.json" for model in (STAGE1, PARROT)]
    run("analyze.py", "radar", "--scores", *scores, "--output", PLOTS)
    for name in PICTURES:
        shutil.copy(PLOTS / name, PARROT / name)
    with open(PLOTS / "words.csv", encoding="utf-8", newline="") as file:
        weights = sorted(csv.DictReader(file), key=lambda row: -float(row["weight"]))[:3]
    words = ", ".join(f"{row['token'].strip()} ({100 * float(row['weight']):.0f}%)" for row in weights)
    return {caption.format(question=question, words=words): name for name, caption in PICTURES.items()}


def example() -> tuple[Path, str]:
    """An evaluation picture (held-out style) and what it shows."""
    data = load_data()
    concept = next(concept for concept in data.split("train") if concept.names["en"] == "dog")
    return DATA / "images" / data.held_out_style / f"{concept.id}.png", concept.names["en"]


def ask() -> None:
    image, name = example()
    print(f"  Picture: {image} ({name})", flush=True)
    wording = load_questions()
    questions = [wording[lang]["naming"][0] for lang in PARROT_LANGUAGES]
    command = [sys.executable, "-c", ASK, str(ROOT), str(ROOT / PARROT), str(ROOT / image), *questions]
    subprocess.run(command, check=True, cwd=OUTPUT)


def write_card(
    result: dict[str, Any], choice: dict[str, dict[str, float]], pictures: dict[str, str], quick: bool
) -> None:
    measures = {
        "4-way, new style": ("4-way accuracy", "held-out drawing style"),
        "naming, new style": ("exact match", "held-out drawing style"),
        "in language": ("in-language rate", "held-out drawing style"),
        "4-way, new concept": ("4-way accuracy", "held-out concepts"),
        "naming, new concept": ("exact match", "held-out concepts"),
        "control": ("4-way accuracy", "shuffled images"),
        "4-way after stage 1": ("4-way accuracy", "held-out drawing style, before stage 2"),
        "text before": ("text-only accuracy", "language model before stage 2"),
        "text after": ("text-only accuracy", "language model after stage 2"),
    }
    scores = [
        Score(benchmark="Emoji", metric=metric, split=split, values=result["columns"][name])
        for name, (metric, split) in measures.items()
    ]
    scores += [
        Score(
            benchmark="Emoji in MMMB's form",
            metric=f"4-way accuracy, {way}",
            split="held-out drawing style",
            values=values,
        )
        for way, values in choice.items()
    ]
    recipes = {name: yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")) for name in TRAINED}
    shown = ("max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type")
    write_model_card(
        PARROT,
        languages=PARROT_LANGUAGES,
        base_models=["examples/emoji/base/clip", "examples/emoji/base/llm"],
        datasets=["examples/emoji/data"],
        license="other",
        license_name="see-examples-emoji-data-licenses",
        license_link="examples/emoji/data/LICENSES.md",
        scores=scores,
        training=[
            TrainingStage(
                name=recipe["stage"],
                trains=TRAINED[name],
                data=[f"{path.name} ({count_lines(path):,} rows)" for path in data_of(recipe)],
                hyperparameters={key: recipe[key] for key in shown} | (QUICK_SETTINGS if quick else {}),
            )
            for name, recipe in recipes.items()
        ],
        description=(
            "A toy that shows the whole way on real drawings and human translations. It was taught 165 emoji. 4-way "
            "questions have distractors of the same group (chance 25); held-out styles and concepts were seen by no "
            "training, the tower's included."
        ),
        limits=["It names emoji of 64 x 64 pixels and nothing else.", *(["Made by the demo's quick form."] * quick)],
        pictures=pictures,
    )


def data_of(recipe: dict[str, Any]) -> list[Path]:
    return [Path(source["path"]) for source in recipe["train_data"]]


def count_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


if __name__ == "__main__":
    main()
