"""Statistics of translations' quality per language: mergeable, and written as numbers, as a table and as a picture."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parrot_data.multilingual.quality import Check


CHRF_BINS = 50  # of 0 to 100
RATIO_BINS, RATIO_OCTAVES = 160, 4  # of 1/16 to 16, equally wide on a logarithmic scale


@dataclass
class LanguageStatistics:
    """Statistics of the rows of one language. They have a fixed size, and parts from many machines can be merged.

    Attributes:
        rows, flagged: rows, and those of which some text has a problem.
        problems: {problem: rows that have it}.
        pairs, round_trips: texts that have a second translation, a round trip.
        bleu_counts: [10] sums of `Check.bleu_counts`.
        chrf_sum, round_trip_sum: of sentence scores.
        chrf, round_trip: [50] texts by sentence chrF, in bins of 2 points.
        length_ratio: [160] texts by length ratio, in bins of 1/20 octave from 1/16 to 16.
    """

    rows: int = 0
    flagged: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    round_trips: int = 0
    bleu_counts: list[int] = field(default_factory=lambda: [0] * 10)
    chrf_sum: float = 0.0
    round_trip_sum: float = 0.0
    chrf: list[int] = field(default_factory=lambda: [0] * CHRF_BINS)
    round_trip: list[int] = field(default_factory=lambda: [0] * CHRF_BINS)
    length_ratio: list[int] = field(default_factory=lambda: [0] * RATIO_BINS)

    def add(self, checks: Iterable[Check]) -> None:
        """Adds one row: the checks of all its texts."""
        found: set[str] = set()
        for result in checks:
            found.update(result.problems)
            if result.chrf is not None and result.bleu_counts is not None:
                self.pairs += 1
                self.bleu_counts = [a + b for a, b in zip(self.bleu_counts, result.bleu_counts, strict=True)]
                self.chrf_sum += result.chrf
                self.chrf[_bin(result.chrf / 100, CHRF_BINS)] += 1
            if result.round_trip_chrf is not None:
                self.round_trips += 1
                self.round_trip_sum += result.round_trip_chrf
                self.round_trip[_bin(result.round_trip_chrf / 100, CHRF_BINS)] += 1
            if result.length_ratio is not None:
                position = (math.log2(result.length_ratio) / RATIO_OCTAVES + 1) / 2
                self.length_ratio[_bin(position, RATIO_BINS)] += 1
        self.rows += 1
        self.flagged += bool(found)
        for problem in found:
            self.problems[problem] = self.problems.get(problem, 0) + 1

    def merge(self, other: "LanguageStatistics") -> "LanguageStatistics":
        """The statistics of both parts together."""
        merged: dict[str, Any] = {}
        for name, value in asdict(self).items():
            more = getattr(other, name)
            if isinstance(value, dict):
                merged[name] = {key: value.get(key, 0) + more.get(key, 0) for key in sorted({*value, *more})}
            elif isinstance(value, list):
                merged[name] = [a + b for a, b in zip(value, more, strict=True)]
            else:
                merged[name] = value + more
        return LanguageStatistics(**merged)

    def to_json(self) -> dict[str, Any]:
        """Numbers, and lists and dictionaries of numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "LanguageStatistics":
        """The inverse of `to_json`."""
        return cls(**content)

    def summary(self) -> dict[str, Any]:
        """
        What a reader wants to know; None where nothing was measured.

        Returns:
            rows; flagged and problems (per cent of rows); pairs, bleu, chrf, chrf_quantiles (the 5th, 25th, 50th, 75th
            and 95th percentile of texts); the same of round trips; length_ratio (median).

        BLEU is corpus BLEU. chrF is the mean of the sentences' chrF, because sacrebleu gives no access to what corpus
        chrF could be summed from.
        """
        ratio = _quantile(self.length_ratio, 0.5)
        return {
            "rows": self.rows,
            "flagged": _percent(self.flagged, self.rows),
            "problems": {name: _percent(self.problems[name], self.rows) for name in sorted(self.problems)},
            "pairs": self.pairs,
            "bleu": round(self._corpus_bleu(), 1) if self.pairs else None,
            "chrf": round(self.chrf_sum / self.pairs, 1) if self.pairs else None,
            "chrf_quantiles": _chrf_quantiles(self.chrf),
            "round_trips": self.round_trips,
            "round_trip_chrf": round(self.round_trip_sum / self.round_trips, 1) if self.round_trips else None,
            "round_trip_quantiles": _chrf_quantiles(self.round_trip),
            "length_ratio": None if ratio is None else round(2 ** (RATIO_OCTAVES * (2 * ratio - 1)), 2),
        }

    def _corpus_bleu(self) -> float:
        from sacrebleu.metrics import BLEU

        length, reference_length = self.bleu_counts[:2]
        return BLEU.compute_bleu(
            self.bleu_counts[2:6], self.bleu_counts[6:], length, reference_length, smooth_method="exp"
        ).score


def agreement(per_language: Mapping[str, LanguageStatistics]) -> dict[str, dict[str, float]]:
    """
    How much two translators agree, as in LRM-LLaVA's table 2 (there BLEU, averaged over the languages).

    Returns:
        {language: {"bleu": corpus BLEU, "chrf": mean sentence chrF, "pairs": number of texts}}, and the mean of both
        scores over the languages under "mean". Languages without a second translation are left out.
    """
    summaries = {language: statistics.summary() for language, statistics in per_language.items()}
    scores = {
        language: {key: values[key] for key in ("bleu", "chrf", "pairs")}
        for language, values in summaries.items()
        if values["pairs"]
    }
    if scores:
        mean = {key: round(sum(each[key] for each in scores.values()) / len(scores), 1) for key in ("bleu", "chrf")}
        scores["mean"] = {**mean, "pairs": sum(each["pairs"] for each in scores.values())}
    return scores


def report(per_language: Mapping[str, LanguageStatistics], folder: str | Path) -> None:
    """
    Writes `quality.json` (summaries, and the statistics for merging), `quality.md` (a table) and `quality.png`.

    Raises:
        ValueError: no language.
        ImportError: matplotlib or sacrebleu is missing; nothing is written then.
    """
    if not per_language:
        raise ValueError("No translations to report on: the statistics have no language.")
    folder = Path(folder)
    summaries = {language: statistics.summary() for language, statistics in per_language.items()}
    languages = {
        language: {"summary": summaries[language], "statistics": statistics.to_json()}
        for language, statistics in per_language.items()
    }
    content = {"agreement": agreement(per_language), "languages": languages}
    figure = _figure(summaries)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "quality.png", dpi=200)
    (folder / "quality.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "quality.md").write_text(table(per_language) + "\n", encoding="utf-8")


def table(per_language: Mapping[str, LanguageStatistics]) -> str:
    """A Markdown table, a line per language. Problems are in per cent of the language's rows; a row may have several."""
    summaries = {language: statistics.summary() for language, statistics in per_language.items()}
    found = sorted({name for values in summaries.values() for name in values["problems"]})
    measured = {"bleu": "BLEU", "chrf": "chrF", "round_trip_chrf": "round trip chrF", "length_ratio": "length ratio"}
    header = [
        "language",
        "rows",
        "flagged, %",
        *(f"{name.replace('_', ' ')}, %" for name in found),
        *measured.values(),
    ]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for language, values in summaries.items():
        shares = [f"{values['problems'].get(name, 0):.1f}" for name in found]
        scores = ["" if values[name] is None else str(values[name]) for name in measured]
        cells = [language, f"{values['rows']:,}", f"{values['flagged']:.1f}", *shares, *scores]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(summaries: Mapping[str, Mapping[str, Any]]) -> Any:
    """A line per language: left the chrF of its texts, right how many of its rows are flagged."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError('The picture needs matplotlib: pip install "modeling-parrot[plot]".') from error
    figure = Figure(figsize=(8, 1.8 + 0.4 * len(summaries)), layout=ConstrainedLayoutEngine(wspace=0.08))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colors = {"chrf_quantiles": ("second translator", "#0072B2"), "round_trip_quantiles": ("round trip", "#E69F00")}
    shown = [key for key in colors if any(values[key] for values in summaries.values())]
    for number, key in enumerate(shown):
        shift = 0.4 * (number - (len(shown) - 1) / 2)
        for line, values in enumerate(summaries.values()):
            if values[key]:
                low, lower, median, upper, high = values[key]
                left.hlines(line + shift, low, high, color=colors[key][1], linewidth=1.2)
                left.barh(line + shift, upper - lower, 0.32, lower, color=colors[key][1])
                left.vlines(median, line + shift - 0.16, line + shift + 0.16, color="black", linewidth=1.8)
    left.set_xlim(0, 100)
    left.set_xlabel(
        "sentence chrF, 0 to 100\nbar: middle half of the texts, black: median,\nline: 5th to 95th percentile"
        if shown
        else "sentence chrF: not measured, as there is\nno second translation and no round trip"
    )
    left.grid(axis="x", color="0.85")
    left.set_axisbelow(True)
    left.set_yticks(range(len(summaries)), list(summaries))
    left.set_ylim(len(summaries) - 0.4, -0.6)  # the first language on top
    left.set_ylabel("language")
    if shown:
        handles = [Patch(color=colors[key][1], label=colors[key][0]) for key in shown]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
    shares = [values["flagged"] for values in summaries.values()]
    bars = right.barh(range(len(shares)), shares, 0.6, color="0.45")
    right.bar_label(bars, [f"{share:.1f}" for share in shares], padding=3)
    right.set_xlim(0, 1.2 * max(*shares, 1))
    right.set_xlabel("rows with a problem, %")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bin(position: float, bins: int) -> int:
    """The bin of a position between 0 and 1; what lies outside goes into the first or the last."""
    return min(max(int(position * bins), 0), bins - 1)


def _quantile(counts: list[int], share: float) -> float | None:
    """Where, between 0 and 1, so large a share of what was counted is reached. Inside of a bin it is interpolated."""
    reached = share * sum(counts)
    for number, count in enumerate(counts):
        if count and reached <= count:
            return (number + reached / count) / len(counts)
        reached -= count
    return None


def _chrf_quantiles(counts: list[int]) -> list[float] | None:
    if not any(counts):
        return None
    return [round(100 * (_quantile(counts, share) or 0), 1) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0
