"""Opening training data: files or data sets, filtered, mixed by weight; images are decoded when a row is used."""

import json
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from parrot_data.conversations import to_row
from parrot_data.images import ImageReader
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


@dataclass
class DataSource:
    """One source of conversations, as it stands in a recipe.

    Args:
        path: a `.json` (list) or `.jsonl` file in LLaVA's or chat format; `.parquet` or `.arrow` files (`*` allowed);
            a folder written by `Dataset.save_to_disk` or holding a data set; or the id of a data set on the Hub.
        image_folder: what relative image paths are relative to; by default the folder of a local file.
        split, config_name: of a data set; `split` may be a slice such as `train[:1%]`.
        weight: without streaming, how often each row is used per epoch: 1 is every row once, 0.25 a random quarter,
            2 every row twice. With streaming, where the number of rows is not known, the relative rate at which rows
            are drawn from this source.
        language, task: given to rows that have no such column.
        keep_languages, keep_tasks: only rows of these languages or tasks are used.
        max_rows: only the first so many rows are used.
        streaming: rows are read while training, and `max_steps` has to be set. One streaming source makes the whole
            mixture a stream.
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

    def __post_init__(self):
        if not isinstance(self.weight, (int, float)) or not self.weight > 0:
            raise ValueError(f"{self.path}: weight must be a number above 0, not {self.weight!r}.")

    def keeps(self, language: str | None, task: str | None) -> bool:
        """Whether the filters let a row of this language and task through."""
        return (not self.keep_languages or language in self.keep_languages) and (
            not self.keep_tasks or task in self.keep_tasks
        )

    def row(self, raw: dict, number: int) -> dict:
        """The common format of a raw row (see `parrot_data.conversations.to_row`); `number` names it in errors."""
        return to_row(raw, f"{self.path}, row {number}", language=self.language, task=self.task)

    def locate(self, image: Any) -> Any:
        """An image as it is stored, with a relative path made relative to the image folder."""
        if isinstance(image, str):
            image = {"bytes": None, "path": image}
        if isinstance(image, dict) and image.get("bytes") is None and image.get("path"):
            folder = self.image_folder or (Path(self.path).parent if Path(self.path).is_file() else ".")
            return {"bytes": None, "path": str(Path(folder, image["path"]))}
        return image


@dataclass
class OpenSource:
    """A source of known length: its rows as stored, and which of them are used."""

    table: datasets.Dataset  # in Arrow format: a row comes as it is stored, other formats would decode its images
    numbers: np.ndarray  # [rows] int64, the used rows of `table`
    languages: np.ndarray  # [rows] of their language, "none" where there is none
    needed: np.ndarray  # [rows, 3] int64, see `parrot_data.lengths.needed_size`


def read_json(path: str | Path) -> Iterator[dict]:
    """Rows of a JSON list or of a JSON Lines file.

    Raises:
        ValueError: the file is empty, not JSON, or neither a list nor lines of objects; names file and line.
    """
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(4096).lstrip()[:1]
        file.seek(0)
        if start == "[":
            try:
                rows = json.load(file)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Was the file written completely?"
                ) from error
            if not rows:
                raise ValueError(f"{path} holds an empty list: no rows to train on.")
            yield from rows
            return
        empty = True
        for number, line in enumerate(file, start=1):
            if line.strip():
                empty = False
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number}: not valid JSON ({error.msg}). Expected a list of rows, or one row "
                        "(an object) on each line."
                    ) from error
        if empty:
            raise ValueError(f"{path} is empty: no rows to train on.")


def open_source(source: DataSource) -> OpenSource | datasets.IterableDataset:
    """Opens one source without decoding any image.

    A source of known length is checked: the text of every row is read once, so that a bad row is found before training
    and not in the middle of it. A stream has the columns `FEATURES`.

    Raises:
        FileNotFoundError: the path looks like a local one and is not there.
        ValueError: a bad file or row, or the filters leave nothing; see `read_json` and `to_row`.
    """
    path = Path(source.path).expanduser()
    folder = path.parent if any(mark in source.path for mark in "*?[") else path
    looks_local = path.is_absolute() or source.path.startswith((".", "~")) or path.suffix in FILE_TYPES
    if looks_local and not folder.exists():
        raise FileNotFoundError(f"Data file or folder {source.path} does not exist (searched from {Path.cwd()}).")
    if source.image_folder and not Path(source.image_folder).is_dir():
        raise FileNotFoundError(f"{source.path}: image_folder {source.image_folder} is not a folder.")

    if path.suffix in (".json", ".jsonl"):
        dataset = _table_of_json(path, source)
    elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, datasets.DatasetDict):
            if source.split not in dataset:
                raise ValueError(f"{source.path} has no split {source.split!r}, but {sorted(dataset)}.")
            dataset = dataset[source.split]
    elif path.suffix in (".parquet", ".arrow"):
        files = {"data_files": str(path), "split": source.split, "streaming": source.streaming}
        dataset = datasets.load_dataset(path.suffix[1:], **files)
    else:
        dataset = datasets.load_dataset(
            source.path, source.config_name, split=source.split, streaming=source.streaming
        )
    if source.streaming:
        return _stream(dataset, source)
    numbers, languages, needed = _check_rows(dataset, source)
    if len(numbers) == 0:
        raise ValueError(
            f"{source.path}: no rows are left. Filters: keep_languages={source.keep_languages}, "
            f"keep_tasks={source.keep_tasks}, split={source.split!r}."
        )
    return OpenSource(dataset.with_format("arrow"), np.array(numbers), np.array(languages), np.array(needed))


def _table_of_json(path: Path, source: DataSource) -> datasets.Dataset:
    rows = []
    for number, raw in enumerate(read_json(path)):
        row = source.row(raw, number)
        if not all(isinstance(image, str) for image in row["images"]):
            raise ValueError(f"{path}, row {number} (id {row['id']!r}): an image must be the path of a file.")
        rows.append({**row, "images": [{"bytes": None, "path": image} for image in row["images"]]})
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _check_rows(dataset: datasets.Dataset, source: DataSource) -> tuple[list[int], list[str], list[tuple]]:
    """Checks the text of every row, without reading an image.

    Returns:
        the number, the language and the needed size of each row that the filters keep.
    """
    image_columns = [name for name in ("images", "image") if name in dataset.column_names][:1]
    text_columns = [
        name for name in ("id", "messages", "conversations", "language", "task") if name in dataset.column_names
    ]
    numbers: list[int] = []
    languages: list[str] = []
    needed: list[tuple] = []
    number = 0
    for table in dataset.select_columns(text_columns + image_columns).with_format("arrow").iter(batch_size=1000):
        counts = [0] * len(table)
        for name in image_columns:
            column = table[name]
            if isinstance(column.type, (pa.ListType, pa.LargeListType)):
                counts = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
            else:
                is_there = pc.not_equal(column, "") if pa.types.is_string(column.type) else column.is_valid()
                counts = pc.cast(pc.fill_null(is_there, False), pa.int64()).to_pylist()
        for raw, count in zip(table.select(text_columns).to_pylist(), counts, strict=True):
            row = source.row({**raw, "images": [None] * count}, number)
            if source.keeps(row["language"], row["task"]) and len(numbers) != source.max_rows:
                numbers.append(number)
                languages.append(row["language"] or "none")
                needed.append(needed_size(row["messages"]))
            number += 1
    return numbers, languages, needed


def _stream(dataset: datasets.Dataset | datasets.IterableDataset, source: DataSource) -> datasets.IterableDataset:
    if isinstance(dataset, datasets.Dataset):  # in shards, so that several workers and processes can share it
        dataset = dataset.to_iterable_dataset(num_shards=min(64, len(dataset)))

    def convert(raw: dict, number: int) -> dict:
        row = source.row(raw, number)
        return {**row, "images": [source.locate(image) for image in row["images"]]}

    columns = [name for name in dataset.column_names or () if name not in FEATURES]
    stream = dataset.decode(False).map(convert, with_indices=True, remove_columns=columns, features=FEATURES)
    if source.keep_languages or source.keep_tasks:
        stream = stream.filter(lambda row: source.keeps(row["language"], row["task"]))
    return stream if source.max_rows is None else stream.take(source.max_rows)


class ConversationDataset(torch.utils.data.Dataset):
    """Sources of known length, mixed by weight. Indexing gives a row with decoded images.

    With `on_bad_image: skip`, the next row whose images can be read takes the place of a bad one. So batches stay
    full and the number of steps as planned, and a resumed run sees the same rows.

    Args:
        sources: the recipe's sources.
        seed: decides which rows a fractional weight takes.
        reader: decodes images.
    """

    def __init__(self, sources: Sequence[DataSource], seed: int, reader: ImageReader):
        self.sources = list(sources)
        self.reader = reader
        self.opened: list[Any] = [open_source(source) for source in self.sources]
        index, languages, needed = [], [], []
        for number, (source, opened) in enumerate(zip(self.sources, self.opened, strict=True)):
            available = len(opened.numbers)
            times, rest = divmod(round(source.weight * available), available)
            part = np.random.default_rng([seed, number]).permutation(available)[:rest]
            chosen = np.concatenate([np.tile(np.arange(available), times), np.sort(part)])
            index.append(np.stack([np.full(len(chosen), number), opened.numbers[chosen]], axis=1))
            languages.append(opened.languages[chosen])
            needed.append(opened.needed[chosen])
        self.index = np.concatenate(index)  # [rows, 2]: source, row of its table
        self.languages = np.concatenate(languages)  # [rows]
        self.needed = np.concatenate(needed)  # [rows, 3], see `parrot_data.lengths.needed_size`
        if len(self.index) == 0:
            raise ValueError("The weights of all sources round to zero rows. Raise the weights.")

    def __len__(self) -> int:
        return len(self.index)

    def stored_row(self, position: int) -> dict:
        """The row with its images as they are stored, undecoded."""
        number, row_number = (int(value) for value in self.index[position % len(self)])
        source = self.sources[number]
        row = source.row(self.opened[number].table[row_number].to_pylist()[0], row_number)
        return {**row, "images": [source.locate(image) for image in row["images"]]}

    def __getitem__(self, position: int) -> dict:
        if not 0 <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        for step in range(len(self)):
            row = self.reader.read(self.stored_row(position + step))
            if row is not None:
                return row
        raise ValueError(f"None of the {len(self)} rows has readable images. Check `image_folder`.")

    def only(self, kept: np.ndarray) -> "ConversationDataset":
        """The rows where `kept` [rows] is true, sharing everything else with this data set."""
        part = copy(self)
        part.index, part.languages, part.needed = self.index[kept], self.languages[kept], self.needed[kept]
        return part

    def by_language(self) -> dict[str, "ConversationDataset"]:
        """One data set per value of the `language` column; rows without one go to "none"."""
        return {name: self.only(self.languages == name) for name in sorted(set(self.languages.tolist()))}


def open_stream(
    sources: Sequence[DataSource], seed: int, reader: ImageReader, shuffle_buffer: int = 1000
) -> datasets.IterableDataset:
    """Sources mixed as one endless stream.

    Each source is shuffled in a buffer of undecoded rows and starts again when it ends; rows are drawn from the sources
    at rates given by their weights. With `on_bad_image: skip`, bad rows are left out.
    """
    streams: list[Any] = [open_source(replace(source, streaming=True)) for source in sources]
    streams = [stream.shuffle(seed=seed, buffer_size=shuffle_buffer).repeat(None) for stream in streams]
    weights = np.array([source.weight for source in sources])
    mixed = (
        datasets.interleave_datasets(streams, probabilities=list(weights / weights.sum()), seed=seed)
        if len(streams) > 1
        else streams[0]
    )

    def decode(batch: dict[str, list]) -> dict[str, list]:
        rows = [reader.read(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in rows if row is not None] for name in batch}

    return mixed.map(decode, batched=True, batch_size=1)


def open_sources(
    sources: Sequence[DataSource], seed: int, reader: ImageReader
) -> ConversationDataset | datasets.IterableDataset:
    """The mixture of a recipe's sources: a stream if one of them streams, else a data set of known length."""
    if not sources:
        raise ValueError("No data: give at least one source with a `path`.")
    if any(source.streaming for source in sources):
        return open_stream(sources, seed, reader)
    return ConversationDataset(sources, seed, reader)
