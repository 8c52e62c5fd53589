"""
Looks into a model and its scores. Every plot comes with its numbers as CSV.

    python examples/analyze.py experts --model DIR --benchmark mmmb_en.tsv mmmb_zh.tsv --output FOLDER
    python examples/analyze.py words --model DIR --image cat.png --question "Что на картинке?" --output FOLDER
    python examples/analyze.py gap --model DIR [DIR2] --benchmark mmmb_en.tsv mmmb_zh.tsv --output FOLDER
    python examples/analyze.py radar --scores A/scores.json B/scores.json --output FOLDER

- experts: the router's mean weights for questions in each language (PARROT, figure 5c).
- words: what drove the router for one question: the words that the image attends to (equation 2), and the regions of the
  image that the choice of the likeliest expert depends on.
- gap: visual and textual features in one plane (t-SNE) with their densities, as in LRM-LLaVA's figure 5, and numbers
  that do not depend on that projection.
- radar: scores per language of several models (PARROT, figure 9).

Needs `pip install "modeling-parrot[analyze]"`.
"""

import argparse
import csv
import html
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers.utils import logging

import modeling_parrot  # noqa: F401 (registers Parrot's classes)
from parrot_data.images import BadImageError, load_image
from parrot_eval.analysis import Routing, expert_weights, gap, modality_features, routing
from parrot_eval.benchmarks import Benchmark, load_benchmark
from parrot_eval.generation import Asker
from parrot_eval.prompts import prompt


# Told apart in print and by colour-blind readers (Okabe and Ito), with a mark of its own each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def figures() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def write_csv(path: Path, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(rows)
    return path


def load(folder: str, trust_remote_code: bool) -> tuple[Any, Any]:
    asker = Asker.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return asker.model, asker.processor


# --------------------------------------------------------------------------------------------------------- experts


def draw_experts(weights: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """
    Args:
        weights: {language: [N, E]}
    """
    plt = figures()
    means = 100 * np.stack([values.mean(0) for values in weights.values()])  # [languages, E]
    rows, columns = means.shape
    figure, axes = plt.subplots(figsize=(1.4 + 0.7 * columns, 0.9 + 0.45 * rows), layout="constrained")
    shown = axes.imshow(means, cmap="cividis", vmin=0, aspect="auto")
    axes.set_xticks(range(columns), [str(expert + 1) for expert in range(columns)])
    axes.set_yticks(range(rows), list(weights))
    axes.set_xlabel("language expert")
    axes.set_ylabel("language of the question")
    for row in range(rows):
        for column in range(columns):
            colour = "white" if means[row, column] < means.max() / 2 else "black"
            axes.text(column, row, f"{means[row, column]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(shown, label="mean weight, %")
    figure.savefig(folder / "experts.png", dpi=150)
    plt.close(figure)
    table = [
        [language, expert + 1, f"{values[:, expert].mean():.5f}", f"{values[:, expert].std():.5f}", len(values)]
        for language, values in weights.items()
        for expert in range(columns)
    ]
    heads = ["language", "expert", "mean weight", "standard deviation", "questions"]
    return [folder / "experts.png", write_csv(folder / "experts.csv", heads, table)]


def experts(model: Any, processor: Any, benchmark: Benchmark, folder: Path) -> list[Path]:
    weights = {}
    for language, questions in benchmark.sets.items():
        images = [questions.images(question)[0] for question in questions]
        weights[language] = expert_weights(model, processor, images, [prompt(question) for question in questions])
    return draw_experts(weights, folder)


# ----------------------------------------------------------------------------------------------------------- words


def draw_words(found: Routing, image: Image.Image, question: str, folder: Path) -> list[Path]:
    """The words with their weights as a web page, which every script and direction is shown right in; regions as a plot."""
    plt = figures()
    strongest = max(found.attention.max(), 1e-12)
    marked = "".join(
        f'<span title="{100 * weight:.1f}%" style="background: rgba(213, 94, 0, {0.85 * weight / strongest:.3f})">'
        f"{html.escape(word)}</span>"
        for word, weight in zip(found.words, found.attention, strict=True)
    )
    best = int(found.experts.argmax())
    bars = "".join(f"<tr><td>{k + 1}</td><td>{100 * weight:.1f}%</td></tr>" for k, weight in enumerate(found.experts))
    page = (
        "<!doctype html>\n<meta charset='utf-8'>\n<title>What drove the router</title>\n"
        "<style>body { font: 1.2rem sans-serif; margin: 2rem } td { padding: 0 1rem; text-align: right }</style>\n"
        f"<p dir='auto' style='line-height: 2'>{marked}</p>\n"
        "<p>The darker a word, the more of the guidance it gives (equation 2).</p>\n"
        f"<table><tr><th>expert</th><th>weight</th></tr>{bars}</table>\n"
    )
    (folder / "words.html").write_text(page, encoding="utf-8")
    figure, panels = plt.subplots(1, 2, figsize=(7.5, 3.8), layout="constrained")
    panels[0].imshow(image)
    panels[0].set_title("image", fontsize=10)
    panels[1].imshow(image.convert("L"), cmap="gray", alpha=0.5, extent=(0, 1, 1, 0))
    heat = panels[1].imshow(100 * found.regions, cmap="cividis", alpha=0.75, extent=(0, 1, 1, 0))
    panels[1].set_title(f"regions that expert {best + 1} ({100 * found.experts[best]:.0f}%) depends on", fontsize=10)
    figure.colorbar(heat, ax=panels[1], label="share of the influence, %")
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(folder / "regions.png", dpi=150)
    plt.close(figure)
    table = [[word, f"{weight:.6f}"] for word, weight in zip(found.words, found.attention, strict=True)]
    regions = [
        [row, column, f"{value:.6f}"]
        for row, values in enumerate(found.regions)
        for column, value in enumerate(values)
    ]
    return [
        folder / "words.html", folder / "regions.png", write_csv(folder / "words.csv", ["token", "weight"], table),
        write_csv(folder / "regions.csv", ["row", "column", "share"], regions),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- gap


def text_about(question: Any) -> str:
    """What the right answer says about the image."""
    return question.options[question.answer] if question.options else question.question


def features_of(model: Any, processor: Any, benchmark: Benchmark) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{language: visual and textual features [N, C]}"""
    found = {}
    for language, questions in benchmark.sets.items():
        images = [questions.images(question)[0] for question in questions]
        asked = [prompt(question) for question in questions]
        texts = [text_about(question) for question in questions]
        found[language] = modality_features(model, processor, images, asked, texts)
    return found


def draw_gap(
    features: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], folder: Path, seed: int
) -> list[Path]:
    """A panel per model: t-SNE of all features, contours of the density of each modality.

    Args:
        features: {model: {language: (visual, textual)}}
    """
    from scipy.stats import gaussian_kde
    from sklearn.manifold import TSNE

    plt = figures()
    figure, panels = plt.subplots(
        1, len(features), figsize=(4.6 * len(features), 4.4), squeeze=False, layout="constrained"
    )
    points, measures = [], []
    for axes, (name, by_language) in zip(panels[0], features.items(), strict=True):
        parts = [(language, kind, values) for language, pair in by_language.items()
                 for kind, values in zip(("visual", "textual"), pair, strict=True)]  # fmt: skip
        together = np.concatenate([values for _, _, values in parts])
        perplexity = min(30, max(2, len(together) // 4))
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(together)
        kinds = np.concatenate([[kind] * len(values) for _, kind, values in parts])
        languages = np.concatenate([[language] * len(values) for language, _, values in parts])
        low, high = plane.min(0), plane.max(0)
        margin = 0.1 * (high - low)
        across, up = np.mgrid[
            low[0] - margin[0] : high[0] + margin[0] : 120j, low[1] - margin[1] : high[1] + margin[1] : 120j
        ]
        for kind, colour, mark in (("visual", COLOURS[1], "s"), ("textual", COLOURS[0], "o")):
            own = plane[kinds == kind]
            density = gaussian_kde(own.T)(np.stack([across.ravel(), up.ravel()])).reshape(across.shape)
            axes.contour(across, up, density, levels=5, colors=colour, linewidths=1)
            axes.scatter(*own.T, s=6, color=colour, marker=mark, alpha=0.35, label=kind)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("t-SNE, first dimension (no unit)")
        axes.set_ylabel("t-SNE, second dimension (no unit)")
        axes.legend(fontsize=8)
        points += [[name, *row] for row in zip(languages, kinds, plane[:, 0], plane[:, 1], strict=True)]
        for language, (visual, textual) in by_language.items():
            measures.append(
                [name, language, len(visual), *(f"{value:.4f}" for value in gap(visual, textual).values())]
            )
    figure.savefig(folder / "gap.png", dpi=150)
    plt.close(figure)
    heads = ["model", "language", "things", "centroid distance", "mean cosine", "separability", "CKA"]
    return [
        folder / "gap.png", write_csv(folder / "gap.csv", heads, measures),
        write_csv(folder / "gap_points.csv", ["model", "language", "modality", "x", "y"], points),
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- radar


def draw_radar(files: Sequence[Path], folder: Path) -> list[Path]:
    """Scores of one benchmark, a corner per language and a line per file; a dashed one of the likeliest options if known.

    Raises:
        ValueError: the files are of different benchmarks, or share fewer than three languages.
    """
    plt = figures()
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    titles = {content["title"] for content in found}
    languages = [language for language in found[0]["rates"] if all(language in content["scores"] for content in found)]
    if len(titles) > 1 or len(languages) < 3:
        raise ValueError(
            f"A radar needs scores of one benchmark in at least three languages; these are of {', '.join(sorted(titles))} "
            f"and share {', '.join(languages) or 'no language'}."
        )
    measure = next(iter(found[0]["scores"][languages[0]]))
    angles = np.linspace(0, 2 * np.pi, len(languages), endpoint=False)
    figure, axes = plt.subplots(figsize=(5.4, 5.2), subplot_kw={"projection": "polar"}, layout="constrained")
    rows = []
    for number, content in enumerate(found):
        name = Path(content["settings"]["model"]).name
        ways = {"answers": content["scores"], "likelihood": content.get("likelihood", {}).get("texts")}
        for (way, scores), line, face in zip(ways.items(), ("-", "--"), (COLOURS[number % 8], "none"), strict=True):
            if scores:
                values = [scores[language][measure][0] for language in languages]
                axes.plot(
                    [*angles, angles[0]], [*values, values[0]], label=f"{name}, {way}", linestyle=line, linewidth=1.5,
                    color=COLOURS[number % 8], marker=MARKS[number % 8], markersize=5, markerfacecolor=face,
                )  # fmt: skip
                rows += [
                    [name, way, language, f"{value:.4f}"] for language, value in zip(languages, values, strict=True)
                ]
    axes.set_xticks(angles, languages)
    axes.set_rlabel_position(180 / len(languages))  # between two corners
    axes.set_ylim(0, max(10, 1.05 * max(float(row[-1]) for row in rows)))
    axes.set_title(f"{titles.pop()}, {measure}, %", fontsize=11)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.15, -0.12), fontsize=8)
    figure.savefig(folder / "radar.png", dpi=150)
    plt.close(figure)
    return [folder / "radar.png", write_csv(folder / "radar.csv", ["model", "way", "language", measure], rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["experts", "words", "gap", "radar"])
    parser.add_argument("--model", nargs="+", help="folder or id; `gap` compares several")
    parser.add_argument("--benchmark", nargs="+", help="questions with images: a name or files, as for evaluate.py")
    parser.add_argument("--limit", type=int, default=200, help="questions of each language")
    parser.add_argument("--image", help="for `words`")
    parser.add_argument("--question", help="for `words`")
    parser.add_argument("--scores", nargs="+", type=Path, help="for `radar`: scores.json of evaluate.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files inside the checkpoint, not the package's",
    )
    args = parser.parse_args()
    needed = {"experts": ("model", "benchmark"), "gap": ("model", "benchmark"), "words": ("model", "image", "question"),
              "radar": ("scores",)}[args.what]  # fmt: skip
    if missing := [name for name in needed if not getattr(args, name)]:
        parser.error(f"{args.what} needs --{' and --'.join(missing)}")
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        if args.what == "radar":
            made = draw_radar(args.scores, args.output)
        elif args.what == "words":
            image = load_image(args.image, "--image").convert("RGB")
            made = draw_words(
                routing(*load(args.model[0], args.trust_remote_code), image, args.question),
                image,
                args.question,
                args.output,
            )
        elif args.what == "experts":
            made = experts(
                *load(args.model[0], args.trust_remote_code),
                load_benchmark(args.benchmark, limit=args.limit),
                args.output,
            )
        else:
            benchmark = load_benchmark(args.benchmark, limit=args.limit)
            features = {
                Path(folder).name: features_of(*load(folder, args.trust_remote_code), benchmark)
                for folder in args.model
            }
            made = draw_gap(features, args.output, args.seed)
    except (ValueError, FileNotFoundError, BadImageError) as error:
        sys.exit(f"error: {error}")
    print("Made:", *made, sep="\n  ")


if __name__ == "__main__":
    main()
