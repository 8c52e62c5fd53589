"""A data set in parallel languages, written in files that any number of machines and processes make alike.

Rows are numbered as the source has them, and each run of `rows_per_file` becomes one file whose content depends on the
source and the settings only. Each shard has a manifest, one line per finished file, with counts, checksum and settings;
whoever starts it again goes on after the last one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from parrot_data.multilingual.parts import BuildSettings, PartBuilder
from parrot_data.multilingual.quality_report import LanguageStatistics
from parrot_data.sources import raw_rows


@dataclass(frozen=True)
class Shard:
    """Every `count`-th part, beginning with number `index` (from 1)."""

    index: int = 1
    count: int = 1

    @classmethod
    def from_text(cls, text: str) -> "Shard":
        """From "3/64".

        Raises:
            ValueError: anything else.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ValueError(f"shard {text!r}: write it as 3/64, the third of 64, the first being 1.")
        return cls(int(index), int(count))

    def manifest(self, folder: Path) -> Path:
        return folder / f"manifest-{self.index:05d}-of-{self.count:05d}.jsonl"


def build(
    builder: PartBuilder,
    folder: str | Path,
    shard: Shard = Shard(),
    num_proc: int = 1,
    progress: Callable[[int], Any] = lambda rows: None,
) -> dict[str, int]:
    """
    Writes the files of a shard that are not there yet.

    Args:
        builder: of the parts. With several processes, each makes its own from the same settings.
        folder: `part-*.parquet`, `review/part-*.jsonl` and the shard's manifest go there.
        num_proc: processes that translate. One is right for a model on a GPU and for an endpoint, which has its own
            concurrency.
        progress: is told of the rows that are done, those of an earlier run included.

    Returns:
        number of rows and of files of the shard, and of files that were there already.

    Raises:
        ValueError: a bad row, or the folder was begun with other settings.
        TranslationError: the translator failed. Files that are finished stay; the same command goes on after them.
    """
    folder = Path(folder)
    settings = builder.settings
    done = read_manifest(shard, folder, builder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "review").mkdir(exist_ok=True)
    if not shard.manifest(folder).exists():
        append(shard.manifest(folder), {"settings": builder.fingerprint(), "shard": asdict(shard)})
    totals = {"rows": sum(line["rows"] for line in done.values()), "files": len(done), "earlier": len(done)}
    for line in done.values():
        progress(line["rows"])

    def finish(number: int, counts: dict[str, Any]) -> None:
        append(shard.manifest(folder), {"part": number, **counts})
        totals["rows"] += counts["rows"]
        totals["files"] += 1
        progress(counts["rows"])

    waiting = (job for job in parts(settings, shard) if job[0] not in done)
    if num_proc == 1:
        for number, rows in waiting:
            finish(number, write_part(builder, folder, number, rows))
        return totals
    with ProcessPoolExecutor(num_proc, get_context("spawn"), _start, (settings,)) as pool:
        running: dict[Future, int] = {}

        def start_next() -> None:
            for number, rows in islice(waiting, 1):
                running[pool.submit(_work, folder, number, rows)] = number

        try:
            for _ in range(2 * num_proc):  # some parts ahead, never the whole source
                start_next()
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finish(running.pop(future), future.result())
                    start_next()
        finally:
            for future in running:
                future.cancel()
            # What the others have finished is not lost when one fails.
            for future in [one for one in wait(running).done if not one.cancelled() and not one.exception()]:
                finish(running[future], future.result())
    return totals


# Of a worker process: to load a model for every part would take longer than the part.
_builder: PartBuilder | None = None


def _start(settings: BuildSettings) -> None:
    global _builder
    _builder = PartBuilder(settings)


def _work(folder: Path, number: int, rows: list[tuple[int, Any]]) -> dict[str, Any]:
    assert _builder is not None
    return write_part(_builder, folder, number, rows)


def parts(settings: BuildSettings, shard: Shard) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
    """Numbers and rows of the shard's parts, read one after the other."""
    rows = enumerate(islice(raw_rows(settings.source), settings.source.max_rows))
    number = 0
    while part := list(islice(rows, settings.rows_per_file)):
        if number % shard.count == shard.index - 1:
            yield number, part
        number += 1


def write_part(builder: PartBuilder, folder: Path, number: int, raw: list[tuple[int, Any]]) -> dict[str, Any]:
    """Builds and writes a part: first its review, then its rows, each whole or not at all. Returns its counts."""
    rows, entries, counts = builder.build(raw)
    name = f"part-{number:06d}"
    review = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
    replace_file(folder / "review" / f"{name}.jsonl", lambda path: path.write_text(review, encoding="utf-8"))
    table = pa.Table.from_pylist(rows, builder.settings.features.arrow_schema)
    replace_file(folder / f"{name}.parquet", lambda path: pq.write_table(table, path, compression="zstd"))
    checksum = checksum_of(folder / f"{name}.parquet")
    return {"file": f"{name}.parquet", "sha256": checksum, "review": len(entries), **counts}


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    write(unfinished)
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def checksum_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def append(path: Path, line: Mapping[str, Any]) -> None:
    """A line of a manifest, on the disk before this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(shard: Shard, folder: Path, builder: PartBuilder | None = None) -> dict[int, dict[str, Any]]:
    """
    The finished parts of a shard by number. A part whose file is gone is not finished, nor is one that a kill cut off.

    Args:
        builder: whose settings the folder must have been begun with; None does not check.

    Raises:
        ValueError: the folder was begun with other settings, or another number of shards.
    """
    for other in sorted(folder.glob("manifest-*-of-*.jsonl")):
        if not other.stem.endswith(f"-of-{shard.count:05d}"):
            raise ValueError(
                f"{folder} was begun in another number of shards ({other.name}). Use the same number, or another folder."
            )
        begun = next(lines_of(other), None)
        if builder is not None and begun is not None and begun["settings"] != (now := builder.fingerprint()):
            names = sorted(key for key in now if begun["settings"].get(key) != now[key])
            raise ValueError(
                f"{other} is from other settings ({', '.join(names)}). Go on with those, or choose another output "
                "folder: rows made in two ways must not be mixed without notice."
            )
    done = {}
    for line in lines_of(shard.manifest(folder)):
        if "part" in line and (folder / line["file"]).exists():
            done[line["part"]] = {key: value for key, value in line.items() if key != "statistics"}
    return done


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a manifest; the last one may have been cut off by a kill, and is then cut off for good."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        replace_file(path, lambda unfinished: unfinished.write_bytes(whole))
    for line in whole.decode("utf-8").splitlines():
        yield json.loads(line)


def manifests(folder: Path) -> tuple[dict[Shard, dict[int, dict[str, Any]]], list[str]]:
    """The finished parts of every shard, and the shards that have not begun, as "3/64"."""
    found = sorted(folder.glob("manifest-*-of-*.jsonl"))
    if not found:
        raise FileNotFoundError(f"{folder} has no manifest: nothing was built there.")
    count = int(found[0].stem.rpartition("-")[2])
    shards = [Shard(index, count) for index in range(1, count + 1)]
    missing = [f"{shard.index}/{shard.count}" for shard in shards if not shard.manifest(folder).exists()]
    return {shard: done for shard in shards if (done := read_manifest(shard, folder))}, missing


def damaged_files(folder: Path) -> list[str]:
    """Files whose content is not what their manifest says."""
    lines = [line for done in manifests(folder)[0].values() for line in done.values()]
    return [line["file"] for line in lines if checksum_of(folder / line["file"]) != line["sha256"]]


def statistics(folder: Path) -> dict[str, LanguageStatistics]:
    """Quality per language, of all parts together, as it was before any review."""
    result: dict[str, LanguageStatistics] = {}
    for shard, done in manifests(folder)[0].items():
        seen: set[int] = set()
        for line in lines_of(shard.manifest(folder)):
            if line.get("part") in done and line["part"] not in seen and "statistics" in line:
                seen.add(line["part"])
                for language, numbers in line["statistics"].items():
                    found = LanguageStatistics.from_json(numbers)
                    result[language] = result[language].merge(found) if language in result else found
    return result
