"""Which languages an instruction set speaks: PARROT's question about LLaVA's data (appendix A, table 4 and figure 7).

    result = audit({"pretrain": [DataSource("llava_558k.json")], "finetune": [DataSource("llava_665k.json")]})
    print(result.table())
    result.write("audit")

PARROT blames shares of English near 100% for models that answer in English whatever they are asked in (section 1).
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from instructions_parrot import Turn, check_parallel, parse_pivot
from parrot_data.conversations import to_row
from parrot_data.languages import language_of, same_language
from parrot_data.sources import DataSource, raw_rows


MODALITIES = ("image-text", "several images", "text-only")
UNDECIDABLE = "und"  # ISO 639-2's code for an undetermined language
FEW = 1.0  # per cent: rarer languages are only listed
REFUSALS = 20  # messages kept per stage
CHART_LANGUAGES = 30
MARKS = [
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#000000", "v"),
]  # safe without colour


class Conversation(NamedTuple):
    """The text of one training row, and the language that its column says it has."""

    questions: list[str]
    answers: list[str]
    images: int
    labelled: str | None


@dataclass
class Audit:
    """Counts of training rows. A row of parallel texts counts once in each of its languages.

    Attributes:
        rows, turns: by (stage, modality, language). A row's language is that of its answers, or of its questions where
            the answers are too short to tell ("Yes", "2"). `UNDECIDABLE`: these are too short as well, or no words.
        mixed: by stage, rows whose questions and answers are in different languages.
        mislabelled: by (stage, the row's own `language`, found), rows in another language than their column says.
        refused: by stage, rows that training would refuse. They are not counted above.
        refusals: by stage, why, for the first of them.
    """

    rows: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    turns: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    mixed: Counter[str] = field(default_factory=Counter)
    mislabelled: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: dict[str, list[str]] = field(default_factory=dict)

    def add(self, stage: str, conversation: Conversation, languages: Sequence[str] | None = None) -> None:
        """Counts one row; `languages` are those to choose from."""
        questions, answers, images, labelled = conversation
        answered = language_of("\n".join(answers), languages, expected=labelled)
        asked = language_of("\n".join(questions), languages, expected=answered or labelled)
        language = answered or asked or UNDECIDABLE
        key = (stage, MODALITIES[2 if images == 0 else 0 if images == 1 else 1], language)
        self.rows[key] += 1
        self.turns[key] += len(questions)
        found = [code for code in (answered, asked) if code]
        if len(found) == 2 and not same_language(*found):
            self.mixed[stage] += 1
        if labelled and found and not any(same_language(code, labelled) for code in found):
            self.mislabelled[stage, labelled, language] += 1

    def languages(self, stage: str) -> dict[str, int]:
        """Rows by language, most of them first, the undecidable ones last."""
        counts: Counter[str] = Counter()
        for (of_stage, _, language), rows in self.rows.items():
            if of_stage == stage:
                counts[language] += rows
        return dict(sorted(counts.items(), key=lambda item: (item[0] == UNDECIDABLE, -item[1], item[0])))

    def shares(self, stage: str) -> dict[str, float]:
        """Per cent of the stage's rows, by language."""
        counts = self.languages(stage)
        return {language: 100 * rows / sum(counts.values()) for language, rows in counts.items()}

    def sentences(self) -> list[str]:
        """What a user should know, in words."""
        lines = []
        for stage in self.refusals:
            shares = self.shares(stage)
            spoken = {language: share for language, share in shares.items() if language != UNDECIDABLE}
            many = [f"{language} {share:.1f}%" for language, share in spoken.items() if share >= FEW]
            few = [f"{language} {share:.2g}%" for language, share in spoken.items() if share < FEW]
            rows = sum(self.languages(stage).values())
            line = f"{', '.join(many) or 'no language'} of {rows:,} rows; languages below {FEW:g}%: "
            line += ", ".join(few) or "none"
            if UNDECIDABLE in shares:
                line += f"; too short to tell, or without words: {shares[UNDECIDABLE]:.1f}%"
            lines.append(f"{stage}: {line}.")
            if self.mixed[stage]:
                lines.append(
                    f"{stage}: rows that answer in another language than they are asked in: {self.mixed[stage]:,}."
                )
            wrong = [(key, rows) for key, rows in self.mislabelled.most_common() if key[0] == stage]
            if wrong:
                most = ", ".join(f"{label} looks like {found} ({rows:,})" for (_, label, found), rows in wrong[:5])
                total = sum(rows for _, rows in wrong)
                lines.append(f"{stage}: rows that do not look like their column `language` says: {total:,}. {most}.")
            if self.refused[stage]:
                first = self.refusals[stage][0]
                lines.append(f"{stage}: rows that cannot be trained on: {self.refused[stage]:,}. The first: {first}")
        return lines

    def records(self) -> list[dict[str, Any]]:
        """The counts as lines: stage, language, rows by modality, rows, share (per cent), turns."""
        lines = []
        for stage in self.refusals:
            shares = self.shares(stage)
            for language, rows in self.languages(stage).items():
                by_modality = {name: self.rows[stage, name, language] for name in MODALITIES}
                turns = sum(self.turns[stage, name, language] for name in MODALITIES)
                line = {"stage": stage, "language": language, **by_modality, "rows": rows}
                lines.append({**line, "share": round(shares[language], 4), "turns": turns})
        return lines

    def table(self) -> str:
        """Counts and sentences, as Markdown that reads well in a terminal too."""
        lines = [
            f"| {'stage':12} | language | {' | '.join(MODALITIES)} |       rows | share, % |      turns |",
            f"|:{'-' * 13}|:---------|{''.join('-' * (len(name) + 1) + ':|' for name in MODALITIES)}-----------:|---------:|-----------:|",
        ]
        for line in self.records():
            counts = " | ".join(f"{line[name]:{len(name)},}" for name in MODALITIES)
            lines.append(
                f"| {line['stage']:12} | {line['language']:8} | {counts} | {line['rows']:10,} | {line['share']:8.2f} | "
                f"{line['turns']:10,} |"
            )
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.sentences())])

    def write(self, folder: str | Path) -> None:
        """
        Writes `audit.json` and `audit.csv` (counts), `audit.md` (`table`) and `audit.png` (shares by language).

        Raises:
            ValueError: no row was counted.
            ImportError: matplotlib is missing; nothing is written then.
        """
        if not self.rows:
            raise ValueError("No row was counted, so there is nothing to write. " + " ".join(self.sentences()))
        folder, figure, records = Path(folder), self._figure(), self.records()
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "audit.png", dpi=200)
        stages = {
            stage: {
                "mixed": self.mixed[stage],
                "mislabelled": [[*key[1:], rows] for key, rows in self.mislabelled.items() if key[0] == stage],
                "refused": self.refused[stage],
                "refusals": refusals,
            }
            for stage, refusals in self.refusals.items()
        }
        content = json.dumps({"counts": records, "stages": stages}, indent=1, ensure_ascii=False)
        (folder / "audit.json").write_text(content, encoding="utf-8")
        (folder / "audit.md").write_text(self.table() + "\n", encoding="utf-8")
        with open(folder / "audit.csv", "w", encoding="utf-8-sig", newline="") as file:  # the mark is for spreadsheets
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)

    def _figure(self) -> Any:
        """A line per language, a mark per stage. Logarithmic, because one language usually has almost everything."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('The picture needs matplotlib: pip install "modeling-parrot[plot]".') from error
        shares = {stage: self.shares(stage) for stage in self.refusals}
        largest: dict[str, float] = {}
        for of_stage in shares.values():
            for language, share in of_stage.items():
                largest[language] = max(share, largest.get(language, 0))
        order = sorted(largest, key=lambda language: (language == UNDECIDABLE, -largest[language]))
        spoken = [language for language in order if language != UNDECIDABLE]
        shown = spoken[:CHART_LANGUAGES] + order[len(spoken) :]
        figure = Figure(figsize=(7, 1.6 + 0.25 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for number, (stage, of_stage) in enumerate(shares.items()):
            color, marker = MARKS[number % len(MARKS)]
            lines = [line for line, language in enumerate(shown) if language in of_stage]
            values = [of_stage[shown[line]] for line in lines]
            label = f"{stage} ({sum(self.languages(stage).values()):,} rows)"
            axes.plot(values, lines, marker, color=color, markerfacecolor="none", markeredgewidth=1.8, label=label)
        axes.set_xscale("log")
        axes.set_xlim(right=130)
        axes.xaxis.set_major_formatter("{x:g}")
        rarer = f"; {len(order) - len(shown)} rarer languages are left out" if len(order) > len(shown) else ""
        axes.set_xlabel(f"share of the stage's rows, % (logarithmic{rarer})")
        axes.set_yticks(range(len(shown)), ["undecidable" if code == UNDECIDABLE else code for code in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_ylabel("language")
        axes.grid(color="0.88")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        return figure


def audit(
    sources: Mapping[str, Sequence[DataSource]], *, max_rows: int | None = None, languages: Sequence[str] | None = None
) -> Audit:
    """
    Counts the rows of all sources, reading one after the other. Images are not decoded.

    Args:
        sources: by stage, for example "pretrain" and "finetune". Their filters and `max_rows` apply, weights do not.
        max_rows: only the first so many rows of each source are read.
        languages: ISO 639 codes to choose from; by default all that py3langid knows, of which a large set will hold
            some by mistake. Where it is known what the data may speak, say so.

    Raises:
        FileNotFoundError: a local path does not exist.
        ValueError: a file is not what its name says, or py3langid does not know one of the languages.
        ImportError: py3langid is missing.
    """
    result = Audit()
    for stage, of_stage in sources.items():
        refusals = result.refusals.setdefault(stage, [])
        for source in of_stage:
            kept = 0
            for number, raw in enumerate(islice(raw_rows(source), max_rows)):
                if kept == source.max_rows:
                    break
                try:
                    conversations = _conversations(source, raw, number)
                except ValueError as error:  # training would stop here; an audit says how many such rows there are
                    result.refused[stage] += 1
                    refusals += [str(error)] if len(refusals) < REFUSALS else []
                    continue
                kept += bool(conversations)
                for conversation in conversations:
                    result.add(stage, conversation, languages)
    return result


def _conversations(source: DataSource, raw: Any, number: int) -> list[Conversation]:
    """What the filters leave of a row: a conversation or none, of parallel texts one in each language."""
    where = f"{source.path}, row {number}"
    if isinstance(raw, Mapping) and raw.get("texts") is not None:
        texts = {language: turns for language, turns in raw["texts"].items() if turns}
        check_parallel(texts, list(texts), where)
        variants = [
            {**raw, "language": language, "conversations": _llava_turns(texts[language])}
            for language in texts
            if not source.keep_languages or language in source.keep_languages
        ]
        return [_conversation(to_row(variant, where)) for variant in variants]
    row = to_row(raw, where, language=source.language, task=source.task)
    return [_conversation(row)] if source.keeps(row["language"], row["task"]) else []


def _llava_turns(turns: Sequence[Turn]) -> list[dict[str, str]]:
    speakers = (("human", "question"), ("gpt", "answer"))
    return [{"from": speaker, "value": turn[part]} for turn in turns for speaker, part in speakers]


def _conversation(row: Mapping[str, Any]) -> Conversation:
    said: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for message in row["messages"]:
        said[message["role"]].append(" ".join(part.get("text") or "" for part in message["content"]))
    # The first half of a pivot answer (EP-VQA) is English in every language.
    answers = [parse_pivot(text)[1] for text in said["assistant"]] if row["task"] == "ep_vqa" else said["assistant"]
    return Conversation(said["user"], answers, len(row["images"]), row["language"])
