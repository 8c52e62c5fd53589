"""People's corrections applied to a built data set (PARROT, section 4.4: "manual calibration")."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from parrot_data.multilingual.review import DROP, ReviewEntry, apply_corrections, read_review
from parrot_data.multilingual.shards import Shard, append, checksum_of, manifests


def review_entries(folder: Path) -> Iterator[ReviewEntry]:
    """What a person should look at, of all parts in order."""
    for path in sorted((folder / "review").glob("part-*.jsonl")):
        yield from read_review(path)


def apply_review(folder: Path, review: str | Path) -> dict[str, int]:
    """
    Moves corrected and accepted translations from `pending` to `texts`, and drops those that cannot be rescued.

    A row's language moves when all its entries are reviewed. Applying the same table again changes nothing.

    Args:
        review: the table that `review_entries` were written to, with corrections.

    Returns:
        numbers of (row, language) pairs: "accepted", "dropped", "waiting" for a review.

    Raises:
        ValueError: a bad table (see `parrot_data.multilingual.review`), or rows that are not in the folder. Nothing is written then.
    """
    given: dict[str, list[ReviewEntry]] = {}
    for entry in read_review(review):
        given.setdefault(entry.id, []).append(entry)
    done, _ = manifests(folder)
    unknown = set(given)
    for lines in done.values():
        for line in lines.values():
            unknown -= set(pq.read_table(folder / line["file"], columns=["id"])["id"].to_pylist())
    if unknown:
        raise ValueError(
            f"{review}: there is no row {min(unknown)!r} in {folder} ({len(unknown)} such). Wrong folder?"
        )
    totals = {"accepted": 0, "dropped": 0, "waiting": 0}
    for is_writing in (False, True):  # all is checked before anything is written
        for shard, lines in done.items():
            for number, line in lines.items():
                if line["review"]:  # not `pending`: after a kill the manifest may be ahead of the file
                    part = folder / "review" / f"part-{number:06d}.jsonl"
                    table, counts = _reviewed(folder / line["file"], read_review(part), given)
                    if is_writing:
                        totals = {key: totals[key] + counts[key] for key in totals}
                        if counts["accepted"] or counts["dropped"]:
                            _replace_part(folder, shard, line, table)
    return totals


def _reviewed(
    path: Path, entries: Iterable[ReviewEntry], given: Mapping[str, Sequence[ReviewEntry]]
) -> tuple[pa.Table, dict[str, int]]:
    """A part with its corrections, and what became of its pending translations."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    wanted: dict[tuple[str, str], dict[tuple[int, str], ReviewEntry]] = {}
    for entry in entries:
        wanted.setdefault((entry.id, entry.language), {})[entry.turn, entry.part] = entry
    totals = {"accepted": 0, "dropped": 0, "waiting": 0}
    for row in rows:
        for language in [language for language, turns in row["pending"].items() if turns]:
            found = dict(wanted[row["id"], language])
            found |= {(e.turn, e.part): e for e in given.get(row["id"], ()) if e.language == language}
            pending = {"id": row["id"], "texts": {language: row["pending"][language]}}
            corrected = apply_corrections(pending, found.values())["texts"].get(language)
            if any(entry.correction.strip() == DROP for entry in found.values()):
                outcome, row["pending"][language] = "dropped", None
            elif corrected is None:
                outcome = "waiting"
            else:
                outcome, row["texts"][language], row["pending"][language] = "accepted", corrected, None
            totals[outcome] += 1
    return pa.Table.from_pylist(rows, table.schema), totals


def _replace_part(folder: Path, shard: Shard, line: Mapping[str, Any], table: pa.Table) -> None:
    """Writes a part again. The manifest is told first: after a kill in between, applying the review again mends it."""
    path = folder / line["file"]
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(table, unfinished, compression="zstd")
    rows = table.select(["texts", "pending"]).to_pylist()
    counts = {
        column: dict(Counter(language for row in rows for language, turns in row[column].items() if turns))
        for column in ("texts", "pending")
    }
    new = {**line, "sha256": checksum_of(unfinished), "languages": counts["texts"], "pending": counts["pending"]}
    append(shard.manifest(folder), new)
    os.replace(unfinished, path)
