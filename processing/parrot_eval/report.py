"""Results as files: Markdown to read, CSV to compute with, JSON with everything, in the papers' form where they have one."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from parrot_eval.predictions import write_atomically
from parrot_eval.results import Results, Table
from parrot_eval.scores import NON_ENGLISH, Score


SHOWN = {  # measures that the first table of a report shows; the others are in the CSV
    "mme": ("perception", "cognition"),
    "pope": ("mean F1", "accuracy", "precision", "recall", "yes ratio"),
    "judged": ("relative score", "conv", "detail", "complex"),
}
PROTOCOLS = {
    "choice": "accuracy",
    "yes_no": "accuracy of Yes/No questions",
    "circular": "circular: a question counts if it is answered rightly with the options in every order",
    "yes_no_pairs": "Yes/No pairs (PARROT, section 3.3): a question counts if both of its Yes/No questions are answered rightly",
    "mme": "MME: accuracy + accuracy+ of each subtask, added up",
    "pope": "POPE: F1 and its parts; mean F1 is that of the settings",
    "judged": "a judge's ratings of the answers, in per cent of its ratings of the reference answers",
}


@cache
def published() -> list[dict[str, Any]]:
    """Scores that the papers print: [{"source", "protocol", "languages", "scores": {benchmark: {model: [...]}}}]"""
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


def write_report(results: Results, folder: Path) -> list[Path]:
    """Writes `report.md`, `scores.csv` and `scores.json` into the folder."""
    files = {
        "report.md": markdown(results),
        "scores.json": json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        write_atomically(folder / name, text)
    part = folder / "scores.csv.part"
    with open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["benchmark", "model", "method", "part", "language", "measure", "value", "low", "high"])
        writer.writerows(rows(results))
    part.replace(folder / "scores.csv")
    return [folder / "report.md", folder / "scores.csv", folder / "scores.json"]


def rows(results: Results) -> Iterator[list[Any]]:
    """Every score, one per row."""
    head = [results.title, results.settings["model"]]
    tables = {("answers", ""): results.scores, ("VLMEvalKit's reading", ""): results.kit}
    if results.control:
        tables["other pictures", ""] = results.control
    for kind, table in results.likelihood.items():
        tables[f"likelihood of {kind}", ""] = table
    for part, by_name in results.parts.items():
        for name, table in by_name.items():
            tables["answers", f"{part}: {name}"] = table
    for (method, part), table in tables.items():
        for language, measures in table.items():
            for measure, score in measures.items():
                yield [*head, method, part, language, measure, *(f"{number:.4f}" for number in score)]
    for language, rates in results.rates.items():
        for rate, value in rates.items():
            yield [*head, "answers", "", language, rate, f"{value:.4f}", "", ""]


def markdown(results: Results) -> str:
    settings = results.settings
    protocol = settings["protocol"]
    first = next(iter(next(iter(results.scores.values()), SHOWN.get(protocol, ("accuracy",)))))
    counts = " ".join(f"{language} {rates['answers']:.0f}" for language, rates in results.rates.items())
    lines = [
        f"# {results.title}: {settings['model']}",
        "",
        f"- Score: {PROTOCOLS[protocol]}. In brackets: 95% bootstrap interval over questions.",
        f"- Prompts: {settings['prompts']}, fingerprint {settings['prompt_fingerprint']}; greedy answers of at most "
        f"{settings['max_new_tokens']} tokens.",
        f"- Questions: {counts}. Model: {settings['model_fingerprint']}.",
        "",
        f"**No scores: {results.absent}**" if results.absent else main_table(results, SHOWN.get(protocol, (first,))),
        "",
        "Unread: answers without a rating. Other language: of the answers whose language can be told (in brackets how "
        f"many), those not in the question's. Judge: {settings.get('judge', 'none')}."
        if protocol == "judged"
        else "Unread: answers in which no option, yes or no was found; they count as wrong. Other language: of the answers "
        "whose language can be told (in brackets how many), those not in the question's. VLMEvalKit: the same answers as "
        "its exact matching reads them.",
    ]
    if results.control:
        lines.append("Other pictures: the same questions put to pictures that belong to other questions.")
    if results.likelihood:
        lines += ["", "## Without reading answers: the likeliest option", "", likelihood_table(results, first)]
    for part, by_name in results.parts.items():
        lines += ["", f"## By {part.replace('_', ' ')}", "", part_table(by_name, list(results.scores), first)]
    if table := comparison([results]):
        note = "They compare on the same questions only: files given with `--like` may hold others, `--limit` takes fewer."
        lines += ["", "## Beside published scores", "", note, "", table]
    return "\n".join(lines) + "\n"


def main_table(results: Results, measures: Sequence[str]) -> str:
    primary = measures[0]
    measures = [name for name in measures if all(name in found for found in results.scores.values())]
    heads = ["language", *measures, *([f"{primary}, VLMEvalKit"] if results.kit else [])]
    heads += [f"{primary}, other pictures"] * bool(results.control) + ["unread, %", "other language, %"]
    body = []
    for language, found in results.scores.items():
        cells = [language, *(with_interval(found[measure]) for measure in measures)]
        cells += [f"{results.kit[language][primary].value:.1f}"] if results.kit else []
        cells += [f"{results.control[language][primary].value:.1f}"] if results.control else []
        if rates := results.rates.get(language):
            told = (
                f"{rates['other_language']:.1f} ({rates['language_told']:.0f}% told)" if rates["language_told"] else ""
            )
            cells += [f"{rates['unread']:.1f}", told]
        else:
            cells += [f"{mean_rate(results, language, 'unread'):.1f}", ""]
        body.append(cells)
    return table(heads, body)


def mean_rate(results: Results, row: str, rate: str) -> float:
    values = [rates[rate] for language, rates in results.rates.items() if row != NON_ENGLISH or language != "en"]
    return sum(values) / len(values)


def likelihood_table(results: Results, measure: str) -> str:
    heads = ["language", f"{measure} of answers", *(f"by {kind}" for kind in results.likelihood)]
    body = [
        [language, f"{found[measure].value:.1f}"]
        + [f"{scores[language][measure].value:.1f}" for scores in results.likelihood.values()]
        for language, found in results.scores.items()
    ]
    return table(heads, body)


def part_table(by_name: Mapping[str, Table], languages: Sequence[str], measure: str) -> str:
    body = [
        [name, *(f"{scores[language][measure].value:.1f}" if language in scores else "" for language in languages)]
        for name, scores in by_name.items()
    ]
    return table(["", *languages], body)


def comparison(measured: Sequence[Results]) -> str:
    """
    A row per model and a column per language, as in PARROT's table 2 and LRM-LLaVA's table 1: what was measured, then
    what those papers print of the same benchmark. Empty if they do not have it.
    """
    title = measured[0].title
    parts = []
    for entry in published():
        languages = entry["languages"]
        printed = entry["scores"].get(title.removesuffix(" image"))
        if not printed or not set(languages) & set(measured[0].scores):
            continue
        body = []
        for results in measured:
            found = {language: next(iter(values.values())) for language, values in results.scores.items()}
            cells = [f"{found[language].value:.2f}" if language in found else "" for language in languages]
            body.append([f"**{Path(results.settings['model']).name}** (measured)", *cells])
        body += [[f"{model} (published)", *(f"{value:.2f}" for value in values)] for model, values in printed.items()]
        parts.append(f"Published: {entry['source']}; {entry['protocol']}.\n\n" + table(["model", *languages], body))
    return "\n\n".join(parts)


def with_interval(score: Score) -> str:
    return f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column left, the others right."""
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])
