"""People's corrections of translations (PARROT, section 4.4: "manual calibration"): a table out, the same table back.

The table has a line per text that looked wrong. A translator fills its last column, `correction`:

| correction | meaning |
|---|---|
| (empty) | not reviewed yet: the row stays out of this language |
| ok | the translation is right as it is |
| - | cannot be rescued: the row is dropped in this language |
| anything else | the right text, which takes the translation's place |

The table is CSV for spreadsheets or JSON Lines, by the file's name.
"""

import csv
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from instructions_parrot import IMAGE_MARKER


ACCEPT, DROP = "ok", "-"
PARTS = ("question", "answer")


@dataclass
class ReviewEntry:
    """One text to look at.

    Attributes:
        id: of the row.
        language: of the translation.
        turn, part: which text of the row: the number of the turn, from 0, and "question" or "answer".
        source, translation: in English and in `language`.
        second: another translator's translation, or "".
        problems: see `parrot_data.multilingual.quality.PROBLEMS`.
        correction: see above.
    """

    id: str
    language: str
    turn: int
    part: str
    source: str
    translation: str
    second: str = ""
    problems: list[str] = field(default_factory=list)
    correction: str = ""


COLUMNS = [item.name for item in fields(ReviewEntry)]


def write_review(path: str | Path, entries: Iterable[ReviewEntry]) -> int:
    """
    Writes the whole table, or nothing if it is interrupted.

    Returns:
        the number of entries.

    Raises:
        ValueError: the name ends neither in .csv nor in .jsonl.
        FileExistsError: the file is there and holds corrections, which would be lost.
    """
    path = Path(path)
    _check_name(path)
    if path.exists() and any(entry.correction for entry in read_review(path)):
        raise FileExistsError(
            f"{path} holds corrections, which writing would delete. Apply them first and move the file away, or give "
            "another name."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    count = 0
    # With the mark at its start that utf-8-sig writes, spreadsheets read the file as UTF-8.
    with open(unfinished, "w", encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if path.suffix == ".csv":
            writer.writerow(COLUMNS)
        for entry in entries:
            count += 1
            if path.suffix == ".csv":
                writer.writerow(_cells(entry))
            else:
                file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
    os.replace(unfinished, path)
    return count


def read_review(path: str | Path, rows: Container[str] | None = None) -> Iterator[ReviewEntry]:
    """
    The entries of a table that `write_review` wrote and people filled, reviewed or not.

    Further columns and empty lines are ignored, and a spreadsheet may have written other separators than commas.

    Args:
        rows: ids of the rows that exist.

    Raises:
        ValueError: not UTF-8, a missing column, a bad turn or part, or an unknown row; names file and line.
    """
    path = Path(path)
    _check_name(path)
    try:
        for number, record in _csv_records(path) if path.suffix == ".csv" else _json_records(path):
            entry = _entry(record, f"{path}, line {number}")
            if rows is not None and entry.id not in rows:
                raise ValueError(
                    f"{path}, line {number}: there is no row {entry.id!r}. Does the table belong to this data, and did "
                    "the spreadsheet leave the column `id` as it was?"
                )
            yield entry
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8. Save it again as “CSV UTF-8”.") from error


def apply_corrections(row: Mapping[str, Any], corrections: Iterable[ReviewEntry]) -> dict[str, Any]:
    """
    A parallel row with its corrections, as a new one. A language with an entry that is empty or "-" is left out of it.

    Args:
        row: {"id", "texts": {language: [{"question", "answer"}, ...]}}, and whatever else.
        corrections: all entries of this row.

    Raises:
        ValueError: an entry of another row, a language or a turn that the row does not have, two different
            corrections of one text, or a correction with another number of image markers; names row, language and turn.
    """
    texts = {language: [dict(turn) for turn in turns] for language, turns in row["texts"].items()}
    dropped = set()
    seen: dict[tuple[str, int, str], str] = {}
    for entry in corrections:
        where = f"Row {row['id']!r}, {entry.language!r}, turn {entry.turn}, {entry.part}"
        if entry.id != str(row["id"]):
            raise ValueError(f"{where}: got a correction of row {entry.id!r}.")
        if entry.part not in PARTS or not 0 <= entry.turn < len(texts.get(entry.language, ())):
            has = ", ".join(f"{language} ({len(turns)} turns)" for language, turns in texts.items())
            raise ValueError(f"{where}: the row has no such text to correct. It has: {has}.")
        correction = entry.correction.strip().replace("\r\n", "\n")
        if seen.setdefault((entry.language, entry.turn, entry.part), correction) != correction:
            raise ValueError(f"{where}: two different corrections. Keep one of the lines.")
        if correction in ("", DROP):
            dropped.add(entry.language)
        elif correction.lower() != ACCEPT:
            before = texts[entry.language][entry.turn]
            if correction.count(IMAGE_MARKER) != before[entry.part].count(IMAGE_MARKER):
                raise ValueError(
                    f"{where}: the correction must have as many {IMAGE_MARKER} as {before[entry.part]!r}."
                )
            before[entry.part] = correction
    return {**row, "texts": {language: turns for language, turns in texts.items() if language not in dropped}}


def _cells(entry: ReviewEntry) -> list[str]:
    """
    A line of the CSV file. Text that a spreadsheet would take for a formula or, in an id, for a number ("0017" would
    come back as 17) gets an apostrophe in front, which `_csv_records` takes away.
    """
    texts = [entry.source, entry.translation, entry.second]
    marked = ["'" + text if text.startswith(("=", "+", "-", "@", "\t", "'")) else text for text in texts]
    row_id = "'" + entry.id if not entry.id[:1].isalpha() else entry.id
    return [
        row_id, entry.language, str(entry.turn), entry.part, *marked, ", ".join(entry.problems), entry.correction
    ]  # fmt: skip


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines by column, numbered as spreadsheets do it."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        separator = next((sign for sign in file.readline() if sign in ",;\t"), ",")
        file.seek(0)
        reader = csv.reader(file, delimiter=separator)
        header = [name.strip() for name in next(reader, [])]
        for number, cells in enumerate(reader, start=2):
            if any(cells):
                filled = [*cells, *[""] * (len(header) - len(cells))]  # empty cells at the end may have been left out
                record: dict[str, Any] = dict(zip(header, filled, strict=False))
                for name in {"id", "source", "translation", "second"} & record.keys():
                    record[name] = record[name].removeprefix("'")
                if "problems" in record:
                    record["problems"] = [name.strip() for name in record["problems"].split(",") if name.strip()]
                yield number, record


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg}).") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{path}, line {number}: expected an object with the entry, got {record!r}.")
                yield number, record


def _entry(record: Mapping[str, Any], where: str) -> ReviewEntry:
    missing = [name for name in COLUMNS if name not in record]
    if missing:
        raise ValueError(
            f"{where}: no column {', '.join(missing)}. A review needs the columns {', '.join(COLUMNS)} as they were "
            "written, the first line being their names."
        )
    if not str(record["turn"]).strip().isdecimal():
        raise ValueError(f"{where}: the turn must be a number, 0 being the first, not {record['turn']!r}.")
    if record["part"] not in PARTS:
        raise ValueError(f"{where}: the part must be one of {', '.join(PARTS)}, not {record['part']!r}.")
    if not isinstance(record["correction"], str):
        raise ValueError(f"{where}: the correction must be text, not {record['correction']!r}.")
    values = {name: record[name] for name in COLUMNS}
    return ReviewEntry(**{**values, "id": str(record["id"]), "turn": int(record["turn"])})


def _check_name(path: Path) -> None:
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: a review is a .csv file (for spreadsheets) or a .jsonl file.")
