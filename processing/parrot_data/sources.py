"""Opening training data: files or data sets, their rows checked and filtered. Images stay as they are stored."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructions_parrot import TASKS, Instructions, build_row, check_parallel, load_instructions
from parrot_data.conversations import to_row
from parrot_data.lengths import needed_size


# Every source is brought to these columns. An image is kept as it is stored: encoded bytes, or the path of its file.
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "messages": datasets.List(
            {
                "role": datasets.Value("string"),
                "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
            }
        ),
        "images": datasets.List({"bytes": datasets.Value("binary"), "path": datasets.Value("string")}),
        "language": datasets.Value("string"),
        "task": datasets.Value("string"),
    }
)
FILE_TYPES = (".json", ".jsonl", ".parquet", ".arrow")
NONE = "none"  # stands for a missing language or task, so that rows can be sorted by them


@dataclass
class DataSource:
    """One source of conversations, as it stands in a recipe.

    Rows are conversations, or texts in parallel languages (`texts`, see `instructions_parrot.build_row`). One of the
    latter gives many training rows: in every language that it has the format MVQA, and beside English EP-VQA and BVQA,
    as far as the filters keep them.

    Args:
        path: a `.json` (list) or `.jsonl` file in LLaVA's or chat format; `.parquet` or `.arrow` files (`*` allowed);
            a folder written by `Dataset.save_to_disk` or holding a data set; or the id of a data set on the Hub.
        image_folder: what relative image paths are relative to; by default the folder of a local file.
        split, config_name: of a data set; `split` may be a slice such as `train[:1%]`.
        weight: without streaming, how often each row is used per epoch: 1 is every row once, 0.25 a random quarter,
            2 every row twice. With streaming, where the number of rows is not known, the relative rate at which rows
            are drawn from this source. A mixture has weights of its own.
        language, task: given to rows that have no such column.
        keep_languages, keep_tasks: only rows of these languages or tasks are used.
        max_rows: only the first so many rows are used; of parallel rows, as they are stored.
        streaming: rows are read while training, and `max_steps` has to be set. One streaming source makes the whole
            mixture a stream.
        instructions: YAML files with the wording of further languages, see `instructions_parrot.load_instructions`.
    """

    path: str
    image_folder: str | None = None
    split: str = "train"
    config_name: str | None = None
    weight: float = 1.0
    language: str | None = None
    task: str | None = None
    keep_languages: list[str] | None = None
    keep_tasks: list[str] | None = None
    max_rows: int | None = None
    streaming: bool = False
    instructions: list[str] | None = None

    def __post_init__(self):
        if not isinstance(self.weight, (int, float)) or not self.weight > 0:
            raise ValueError(f"{self.path}: weight must be a number above 0, not {self.weight!r}.")

    def keeps(self, language: str | None, task: str | None) -> bool:
        """Whether the filters let a row of this language and task through."""
        return (not self.keep_languages or language in self.keep_languages) and (
            not self.keep_tasks or task in self.keep_tasks
        )

    def row(self, raw: dict, number: int, language: str | None = None, task: str | None = None) -> dict:
        """The common format of a raw row (see `parrot_data.conversations.to_row`); `number` names it in errors.

        `language` and `task` say which of its training rows a row of parallel texts becomes.
        """
        if raw.get("texts") is not None:
            texts = {name: turns for name, turns in raw["texts"].items() if turns}
            parallel = {**raw, "id": self.name_of(raw, number), "texts": texts}
            raw = build_row(str(task), parallel, str(language), wording(*self.instructions or ()))
        return to_row(raw, f"{self.path}, row {number}", language=self.language, task=self.task)

    def variants(self, raw: Mapping[str, Any], number: int) -> list[tuple[str, str]]:
        """The (language, task) of each training row that a row of parallel texts gives, its languages checked."""
        texts = {language: turns for language, turns in raw["texts"].items() if turns}
        check_parallel(texts, list(texts), f"{self.path}, row {number} (id {self.name_of(raw, number)})")
        pairs = [(language, task) for language in texts for task in TASKS]
        return [pair for pair in pairs if self.keeps(*pair) and is_format(*pair, has_english="en" in texts)]

    def name_of(self, raw: Mapping[str, Any], number: int) -> str:
        """The row's id, or its number where it has none."""
        return str(number if raw.get("id") is None else raw["id"])

    def locate(self, image: Any) -> Any:
        """An image as it is stored, with a relative path made relative to the image folder."""
        if isinstance(image, str):
            image = {"bytes": None, "path": image}
        if isinstance(image, dict) and image.get("bytes") is None and image.get("path"):
            folder = self.image_folder or (Path(self.path).parent if Path(self.path).is_file() else ".")
            return {"bytes": None, "path": str(Path(folder, image["path"]))}
        return image


@lru_cache
def wording(*paths: str) -> Instructions:
    """The wording of instructions, read once."""
    return load_instructions(*paths)


def is_format(language: str, task: str, has_english: bool) -> bool:
    """Whether a row of parallel texts has this format in this language: all but MVQA pair a language with English."""
    return task == "mvqa" or (has_english and language != "en")


@dataclass
class OpenSource:
    """A source of known length: its rows as stored, and the training rows that the filters keep of them."""

    table: datasets.Dataset  # in Arrow format: a row comes as it is stored, other formats would decode its images
    cells: dict[tuple[str, str], np.ndarray]  # {(language, task): [rows] int64, numbers of rows of `table`}
    # [rows of `table`, 3] int64, see `parrot_data.lengths.needed_size`. None for parallel texts, whose sizes depend on
    # language and task: `needed` reads them for the rows that a mixture takes.
    sizes: np.ndarray | None


def read_json(path: str | Path) -> Iterator[dict]:
    """Rows of a JSON list or of a JSON Lines file, one after the other: the file may be larger than the memory.

    Raises:
        ValueError: the file is empty, not JSON, or neither a list nor lines of objects; names file and line.
    """
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(4096).lstrip()[:1]
        file.seek(0)
        empty = True
        for row in _json_list(file, path) if start == "[" else _json_lines(file, path):
            empty = False
            yield row
        if empty:
            raise ValueError(
                f"{path} holds an empty list: no rows to train on."
                if start == "["
                else f"{path} is empty: no rows to train on."
            )


def raw_rows(source: DataSource) -> Iterator[Any]:
    """Every row of a source as it is stored, one after the other, images undecoded; filters do not apply.

    Raises:
        see `read_json` and `open_source`.
    """
    path = Path(source.path).expanduser()
    if path.suffix in (".json", ".jsonl"):
        if not path.is_file():
            raise FileNotFoundError(f"Data file {source.path} does not exist (searched from {Path.cwd()}).")
        return read_json(path)
    # A part of a split ("train[:1%]") cannot be streamed. Where the images are does not matter here.
    dataset = load(replace(source, streaming="[" not in source.split, image_folder=None))
    if isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    return iter(dataset.decode(False))


def _json_lines(file: TextIO, path: str | Path) -> Iterator[dict]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not valid JSON ({error.msg}). Expected a list of rows, or one row "
                    "(an object) on each line."
                ) from error


def _json_list(file: TextIO, path: str | Path, block: int = 1 << 20) -> Iterator[dict]:
    """The items of a JSON list, each decoded when it has been read as a whole."""
    decoder = json.JSONDecoder()
    text, position, line = file.read(block), 0, 1
    wanted = "["  # the next mark: the beginning, then what stands between items
    while True:
        try:
            position = _skip_space(text, position)
            if position == len(text):
                raise json.JSONDecodeError("Unexpected end", text, position)
            if text[position] == "]" and wanted == ",":
                if rest := (text[position + 1 :] + file.read()).strip():
                    raise ValueError(f"{path}: not valid JSON, the list is followed by {rest[:40]!r}.")
                return
            if text[position] != wanted:
                raise json.JSONDecodeError(f"Expecting '{wanted}'", text, position)
            after = _skip_space(text, position + 1)
            if wanted == "[" and text[after : after + 1] == "]":
                return
            row, end = decoder.raw_decode(text, after)
        except json.JSONDecodeError as error:
            more = file.read(max(block, len(text)))
            if not more:
                line += text.count("\n", 0, error.pos)
                raise ValueError(
                    f"{path}, line {line}: not valid JSON ({error.msg}). Was the file written completely?"
                ) from error
            line += text.count("\n", 0, position)
            text, position = text[position:] + more, 0
        else:
            yield row
            position, wanted = end, ","


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def open_source(source: DataSource) -> OpenSource:
    """Opens one source without decoding any image.

    The text of every row is read once, so that a bad row is found before training and not in the middle of it.

    Raises:
        FileNotFoundError: the path looks like a local one and is not there.
        ValueError: a bad file or row, or the filters leave nothing; see `read_json` and `to_row`.
    """
    dataset = load(source)
    if "texts" in dataset.column_names:
        opened = OpenSource(dataset.with_format("arrow"), _cells_of_parallel_rows(dataset, source), None)
    else:
        opened = OpenSource(dataset.with_format("arrow"), *_check_rows(dataset, source))
    if not opened.cells:
        raise ValueError(
            f"{source.path}: no rows are left. Filters: keep_languages={source.keep_languages}, "
            f"keep_tasks={source.keep_tasks}, split={source.split!r}."
        )
    return opened


def load(source: DataSource) -> Any:
    """The source as `datasets` opens it: a `Dataset`, or an `IterableDataset` if it streams.

    Raises:
        see `open_source`.
    """
    path = Path(source.path).expanduser()
    folder = path.parent if any(mark in source.path for mark in "*?[") else path
    looks_local = path.is_absolute() or source.path.startswith((".", "~")) or path.suffix in FILE_TYPES
    if looks_local and not folder.exists():
        raise FileNotFoundError(f"Data file or folder {source.path} does not exist (searched from {Path.cwd()}).")
    if source.image_folder and not Path(source.image_folder).is_dir():
        raise FileNotFoundError(f"{source.path}: image_folder {source.image_folder} is not a folder.")

    if path.suffix in (".json", ".jsonl"):
        return _table_of_json(path, source)
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, datasets.DatasetDict):
            if source.split not in dataset:
                raise ValueError(f"{source.path} has no split {source.split!r}, but {sorted(dataset)}.")
            dataset = dataset[source.split]
        return dataset
    if path.suffix in (".parquet", ".arrow"):
        files = {"data_files": str(path), "split": source.split, "streaming": source.streaming}
        return datasets.load_dataset(path.suffix[1:], **files)
    return datasets.load_dataset(source.path, source.config_name, split=source.split, streaming=source.streaming)


def _table_of_json(path: Path, source: DataSource) -> datasets.Dataset:
    tables: list[pa.Table] = []
    rows = enumerate(read_json(path))
    while part := list(islice(rows, 1000)):
        ready = [_stored(source, raw, number) for number, raw in part]
        tables.append(pa.Table.from_pylist(ready, None if "texts" in ready[0] else FEATURES.arrow_schema))
        for number, row in zip((number for number, _ in part), ready, strict=True):
            if ("texts" in row) != ("texts" in tables[0].column_names):
                raise ValueError(
                    f"{path}, row {number}: conversations and parallel texts (`texts`) cannot stand in one file."
                )
    return datasets.Dataset(pa.concat_tables(tables, promote_options="permissive"))  # languages may differ by part


def _stored(source: DataSource, raw: Any, number: int) -> dict:
    """A row of a JSON file with its images as paths; a conversation in the common format."""
    where = f"{source.path}, row {number}"
    if isinstance(raw, Mapping) and raw.get("texts") is not None:
        images = raw.get("images") or raw.get("image") or []
        row = {"id": source.name_of(raw, number), "images": images if isinstance(images, list) else [images]}
        row["texts"] = raw["texts"]
    else:
        row = source.row(raw, number)
        where += f" (id {row['id']!r})"
    if not all(isinstance(image, str) for image in row["images"]):
        raise ValueError(f"{where}: an image must be the path of a file.")
    return {**row, "images": [{"bytes": None, "path": image} for image in row["images"]]}


def _check_rows(dataset: datasets.Dataset, source: DataSource) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Checks the text of every conversation, without reading an image.

    Returns:
        the rows that the filters keep, by language and task, and the needed size of every row.
    """
    image_column = next((name for name in ("images", "image") if name in dataset.column_names), None)
    text_columns = [
        name for name in ("id", "messages", "conversations", "language", "task") if name in dataset.column_names
    ]
    cells: dict[tuple[str, str], list[int]] = {}
    sizes: list[tuple[int, int, int]] = []
    kept = 0
    columns = text_columns + ([image_column] if image_column else [])
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        counts = _image_counts(table, image_column)
        for raw, count in zip(table.select(text_columns).to_pylist(), counts, strict=True):
            row = source.row({**raw, "images": [None] * count}, len(sizes))
            if source.keeps(row["language"], row["task"]) and kept != source.max_rows:
                cells.setdefault((row["language"] or NONE, row["task"] or NONE), []).append(len(sizes))
                kept += 1
            sizes.append(needed_size(row["messages"]))
    return {cell: np.array(numbers) for cell, numbers in cells.items()}, np.array(sizes)


def _image_counts(table: pa.Table, column: str | None) -> list[int]:
    """Images of each row, whose bytes stay unread."""
    if column is None:
        return [0] * len(table)
    images = table[column]
    if isinstance(images.type, (pa.ListType, pa.LargeListType)):
        return pc.fill_null(pc.list_value_length(images), 0).to_pylist()
    is_there = pc.not_equal(images, "") if pa.types.is_string(images.type) else images.is_valid()
    return pc.cast(pc.fill_null(is_there, False), pa.int64()).to_pylist()


def _cells_of_parallel_rows(dataset: datasets.Dataset, source: DataSource) -> dict[tuple[str, str], np.ndarray]:
    """Which rows have text in which language. Rows are numbered; their texts are checked when a mixture takes them."""
    has: dict[str, list[np.ndarray]] = {}
    for table in dataset.select_columns(["texts"]).with_format("arrow").iter(batch_size=10_000):
        texts = table["texts"].combine_chunks()
        for field in texts.type:
            turns = pc.fill_null(pc.list_value_length(pc.struct_field(texts, field.name)), 0)
            has.setdefault(field.name, []).append(turns.to_numpy(zero_copy_only=False) > 0)
    masks = {language: np.concatenate(parts)[: source.max_rows] for language, parts in has.items()}
    english = masks.get("en", np.zeros(len(dataset), bool)[: source.max_rows])
    cells = {}
    for language, mask in masks.items():
        both = np.flatnonzero(mask & english)
        for task in TASKS:
            numbers = np.flatnonzero(mask) if task == "mvqa" else both
            if source.keeps(language, task) and is_format(language, task, has_english=True) and len(numbers):
                cells[language, task] = numbers
    return cells


def needed(opened: OpenSource, source: DataSource, numbers: np.ndarray, cells: list[tuple[str, str]]) -> np.ndarray:
    """The needed sizes [rows, 3] of training rows, see `parrot_data.lengths.needed_size`.

    Args:
        numbers: [rows] of the table.
        cells: their (language, task); parallel texts are checked here.
    """
    if opened.sizes is not None:
        return opened.sizes[numbers]
    image_column = next((name for name in ("images", "image") if name in opened.table.column_names), None)
    text_columns = [name for name in ("id", "texts") if name in opened.table.column_names]
    wanted: dict[int, list[int]] = {}
    for place, number in enumerate(numbers.tolist()):
        wanted.setdefault(number, []).append(place)
    sizes = np.zeros((len(numbers), 3), dtype=np.int64)
    stored = sorted(wanted)
    for start in range(0, len(stored), 1000):
        part = stored[start : start + 1000]
        table = opened.table[part]
        rows = table.select(text_columns).to_pylist()
        for number, raw, count in zip(part, rows, _image_counts(table, image_column), strict=True):
            source.variants(raw, number)
            for place in wanted[number]:
                row = source.row({**raw, "images": [None] * count}, number, *cells[place])
                sizes[place] = needed_size(row["messages"])
    return sizes
