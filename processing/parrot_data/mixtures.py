"""Mixing training data: every row of the sources by weight, or shares of languages and tasks; of known length, or a stream.

A mixture says what share of the rows each language and each of LRM-LLaVA's instruction formats has:

    sources:                       # name: a `DataSource`
      chats: {path: data/chats/*.parquet}
    languages: {en: 0.5, cs: 0.25, de: 0.25}
    tasks: {mvqa: 0.34, ep_vqa: 0.33, bvqa: 0.33}    # of the rows in other languages than English
    non_english_ratio: 0.7         # rows in other languages per English row (LRM-LLaVA, figure 6)

`configuration/mixtures/` has those of the papers. Which rows are drawn depends on the seed alone. The order in which the
Trainer visits them is its own, the same for every number of processes, and it resumes in the middle of an epoch.
"""

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch

from parrot_data.images import ImageReader
from parrot_data.sources import FEATURES, NONE, DataSource, OpenSource, load, needed, open_source


TOLERANCE = 0.01  # shares are written with few digits: the papers' 50% and nine times 5.6% make 100.4%
Cell = tuple[str, str]  # language, task


@dataclass
class Mixture:
    """Shares of languages and tasks.

    Args:
        sources: by name.
        languages: share of the rows in each language; sum 1.
        tasks: share of each task among the rows of a language other than English; sum 1. English rows are taken
            whatever their task, and of parallel texts are MVQA: the other formats pair a language with English. None:
            rows of every language are taken whatever their task.
        non_english_ratio: rows in other languages per English row, in place of English's share in `languages`; the
            others keep their proportions (LRM-LLaVA, "Analysis on the Size of Synthesized Data": 0.4, 0.7, 1, 1.5).
        weights: share of each source in every language and task; sum 1. None: all their rows form one pool, which
            streams, whose length is not known, do not allow.
        rows: of an epoch. None: as many as there are without using one twice in a language and task.

    Raises:
        ValueError: shares that are no shares, or a name that is not among the sources.
    """

    sources: dict[str, DataSource]
    languages: dict[str, float]
    tasks: dict[str, float] | None = None
    non_english_ratio: float | None = None
    weights: dict[str, float] | None = None
    rows: int | None = None

    def __post_init__(self):
        for name in ("languages", "tasks", "weights"):
            shares = getattr(self, name)
            if shares is not None:
                setattr(self, name, checked_shares(shares, f"`{name}` of the mixture"))
        if not self.sources:
            raise ValueError("The mixture has no `sources`. Give at least one, by a name, with a `path`.")
        if self.weights is not None and (unknown := sorted(set(self.weights) ^ set(self.sources))):
            raise ValueError(
                f"weights and sources of the mixture name different things: {', '.join(unknown)} stand(s) in one of "
                f"the two only. Sources: {', '.join(self.sources)}."
            )
        if self.non_english_ratio is not None:
            ratio, others = self.non_english_ratio, {k: v for k, v in self.languages.items() if k != "en"}
            if not isinstance(ratio, (int, float)) or not ratio > 0 or not others or "en" not in self.languages:
                raise ValueError(
                    f"non_english_ratio={ratio!r} must be a number above 0, and `languages` name English and others."
                )
            scale = ratio / (1 + ratio) / sum(others.values())
            self.languages = {"en": 1 / (1 + ratio)} | {name: share * scale for name, share in others.items()}
        if self.rows is not None and (not isinstance(self.rows, int) or self.rows < 1):
            raise ValueError(f"rows={self.rows!r} of the mixture must be a whole number above 0.")

    def shares(self) -> dict[tuple[str, str | None], float]:
        """{(language, task or None for any): share of all rows}."""
        result: dict[tuple[str, str | None], float] = {}
        for language, share in self.languages.items():
            if self.tasks is None or language == "en":
                result[language, None] = share
            else:
                result |= {(language, task): share * part for task, part in self.tasks.items()}
        return {cell: share for cell, share in result.items() if share > 0}


def checked_shares(shares: Any, name: str) -> dict[str, float]:
    """Shares scaled to a sum of exactly 1. `name` is what messages call them.

    Raises:
        ValueError: no mapping of names to numbers of at least 0, or a sum that is not about 1.
    """
    if not isinstance(shares, Mapping) or not shares:
        raise ValueError(f"{name} must give a share to each name, is {shares!r}.")
    for key, share in shares.items():
        if not isinstance(key, str):
            raise ValueError(f"{name}: {key!r} is no name. Write 'no' in quotes: YAML reads it as false.")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not share >= 0:
            raise ValueError(f"{name}: the share of {key!r} is {share!r}, no number of 0 or more.")
    total = sum(shares.values())
    if abs(total - 1) > TOLERANCE:
        raise ValueError(f"{name}: the shares sum to {total:.4g} instead of 1.")
    return {key: share / total for key, share in shares.items()}


def apportion(total: int, shares: Mapping[Any, float]) -> dict[Any, int]:
    """Whole numbers that sum to `total`, as near to the shares as can be (largest remainders)."""
    exact = {key: total * share for key, share in shares.items()}
    result = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: result[key] - exact[key])
    for key in by_remainder[: total - sum(result.values())]:
        result[key] += 1
    return result


class ConversationDataset(torch.utils.data.Dataset):
    """Sources of known length, mixed. Indexing gives a row with decoded images.

    With `on_bad_image: skip`, the next row whose images can be read takes the place of a bad one. So batches stay
    full and the number of steps as planned, and a resumed run sees the same rows.

    Args:
        sources: a mixture, or sources of which every row is used as often as the source's weight says.
        seed: decides which rows are drawn.
        reader: decodes images.
    """

    def __init__(self, sources: Mixture | Sequence[DataSource], seed: int, reader: ImageReader):
        self.sources = list(sources.sources.values()) if isinstance(sources, Mixture) else list(sources)
        self.reader = reader
        self.opened = [open_source(source) for source in self.sources]
        if isinstance(sources, Mixture):
            draws = draw_shares(sources, self.opened, seed)
        else:
            draws = draw_weights(self.sources, self.opened, seed)
        self.index = np.concatenate([np.stack([np.full(len(rows), k), rows], 1) for k, rows, _ in draws])
        if len(self.index) == 0:
            raise ValueError("The weights of all sources round to zero rows. Raise the weights.")
        cells = np.concatenate([cells for _, _, cells in draws])
        self.languages, self.tasks = cells[:, 0], cells[:, 1]  # [rows] each, of text; "none" where there is none
        self.needed = np.zeros((len(self.index), 3), dtype=np.int64)  # see `parrot_data.lengths.needed_size`
        for number, (source, opened) in enumerate(zip(self.sources, self.opened, strict=True)):
            mine = self.index[:, 0] == number
            self.needed[mine] = needed(opened, source, self.index[mine, 1], [tuple(cell) for cell in cells[mine]])

    def __len__(self) -> int:
        return len(self.index)

    def stored_row(self, position: int) -> dict:
        """The row with its images as they are stored, undecoded."""
        position %= len(self)
        number, row_number = (int(value) for value in self.index[position])
        source = self.sources[number]
        raw = self.opened[number].table[row_number].to_pylist()[0]
        row = source.row(raw, row_number, str(self.languages[position]), str(self.tasks[position]))
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
        part.index, part.needed = self.index[kept], self.needed[kept]
        part.languages, part.tasks = self.languages[kept], self.tasks[kept]
        return part

    def by(self, column: str) -> dict[str, "ConversationDataset"]:
        """One data set per value of `column`, "language" or "task"; rows without one go to "none"."""
        values = {"language": self.languages, "task": self.tasks}[column]
        return {name: self.only(values == name) for name in sorted(set(values.tolist()))}

    def counts(self) -> dict[Cell, int]:
        """Rows by language and task."""
        pairs, counts = np.unique(np.stack([self.languages, self.tasks], 1), axis=0, return_counts=True)
        return {(str(language), str(task)): int(n) for (language, task), n in zip(pairs, counts, strict=True)}


Draw = tuple[int, np.ndarray, np.ndarray]  # number of a source, [rows] of its table, [rows, 2] language and task


def draw_weights(sources: Sequence[DataSource], opened: Sequence[OpenSource], seed: int) -> list[Draw]:
    """Every training row of each source, as often as the source's weight says, in the order of the file."""
    draws = []
    for number, (source, content) in enumerate(zip(sources, opened, strict=True)):
        rows = np.concatenate(list(content.cells.values()))
        cells = np.concatenate([np.full((len(n), 2), cell) for cell, n in content.cells.items()])
        in_order = np.argsort(rows, kind="stable")
        times, rest = divmod(round(source.weight * len(rows)), len(rows))
        part = np.sort(np.random.default_rng([seed, number]).permutation(len(rows))[:rest])
        chosen = in_order[np.concatenate([np.tile(np.arange(len(rows)), times), part])]
        draws.append((number, rows[chosen], cells[chosen]))
    return draws


def draw_shares(mixture: Mixture, opened: Sequence[OpenSource], seed: int) -> list[Draw]:
    """Rows in the mixture's shares. A row comes a second time only when all others of its cell have come once.

    Raises:
        ValueError: no rows for a language or task that has a share.
    """
    names, shares = list(mixture.sources), mixture.shares()
    # {cell of the mixture: {source: what it has of the cell}}
    pools: dict[tuple[str, str | None], dict[str, list[tuple[Cell, np.ndarray]]]] = {}
    for language, task in shares:
        pools[language, task] = {
            name: [(cell, rows) for cell, rows in content.cells.items() if matches(cell, (language, task))]
            for name, content in zip(names, opened, strict=True)
        }
        if mixture.weights is None:
            pools[language, task] = {name: found for name, found in pools[language, task].items() if found}
        if not pools[language, task] or not all(pools[language, task].values()):
            lacking = [name for name, found in pools[language, task].items() if not found] or names
            raise ValueError(missing_rows(language, task, lacking, opened))
    sizes = {
        cell: {name: sum(len(rows) for _, rows in found) for name, found in pool.items()}
        for cell, pool in pools.items()
    }
    weights = mixture.weights
    parts = {
        cell: {name: weights[name] if weights else size / sum(pool.values()) for name, size in pool.items()}
        for cell, pool in sizes.items()
    }
    total = mixture.rows or int(
        min(sizes[cell][name] / (share * parts[cell][name]) for cell, share in shares.items() for name in sizes[cell])
    )
    draws = []
    for number, (cell, count) in enumerate(apportion(total, shares).items()):
        for name, part in apportion(count, parts[cell]).items():
            source, found = names.index(name), pools[cell][name]
            rows = np.concatenate([numbers for _, numbers in found])
            cells = np.concatenate([np.full((len(numbers), 2), kind) for kind, numbers in found])
            order = np.random.default_rng([seed, number, source]).permutation(len(rows))
            chosen = order[np.arange(part) % len(rows)]
            draws.append((source, rows[chosen], cells[chosen]))
    return draws


def missing_rows(language: str, task: str | None, names: Sequence[str], opened: Sequence[OpenSource]) -> str:
    available = sorted({cell for content in opened for cell in content.cells})
    what = f"language {language!r}" + ("" if task is None else f" and task {task!r}")
    return (
        f"The mixture wants rows of {what}, but there are none in {', '.join(names)}. Its sources have: "
        f"{', '.join(' '.join(cell) for cell in available)}."
    )


def open_stream(
    sources: Mixture | Sequence[DataSource],
    seed: int,
    reader: ImageReader,
    readers: int = 1,
    shuffle_buffer: int = 2000,
) -> datasets.IterableDataset:
    """Sources mixed as one endless stream.

    Each language and task of a mixture is a stream of its own, as is each source without a mixture. It is shuffled in
    its part of a buffer of undecoded rows and starts again when it ends; rows are drawn from the streams at rates given
    by their shares. With `on_bad_image: skip`, bad rows are left out.

    The order of a stream depends on the number of processes and workers; the proportions do not. Each of them reads a
    share of the rows, over and over: of a table, as many rows as the others, so that all together read every row once
    before one comes again. Of files it reads whole ones, and rows come equally often if the files are equally long and
    their number is a multiple or a divisor of `readers`.

    Args:
        readers: processes times data loading workers of each.
    """
    if isinstance(sources, Mixture):
        if sources.weights is None and len(sources.sources) > 1:
            raise ValueError("A mixture of several streams needs `weights`: how long they are is not known.")
        reader.count_kinds(list(sources.shares()))
        weights = sources.weights or dict.fromkeys(sources.sources, 1.0)
        parts = [
            (share * weights[name], stream(source, cell, seed, readers))
            for cell, share in sources.shares().items()
            for name, source in sources.sources.items()
        ]
    else:
        parts = [(source.weight, stream(source, None, seed, readers)) for source in sources]
    buffer = max(1, shuffle_buffer // len(parts))
    streams: list[Any] = [part.shuffle(seed=seed, buffer_size=buffer).repeat(None) for _, part in parts]
    rates = np.array([rate for rate, _ in parts])
    mixed = (
        datasets.interleave_datasets(streams, probabilities=list(rates / rates.sum()), seed=seed)
        if len(streams) > 1
        else streams[0]
    )

    def decode(batch: dict[str, list]) -> dict[str, list]:
        rows = [reader.read(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in rows if row is not None] for name in batch}

    return mixed.map(decode, batched=True, batch_size=1)


def stream(
    source: DataSource, cell: tuple[str, str | None] | None = None, seed: int = 0, readers: int = 1
) -> datasets.IterableDataset:
    """The training rows of a source in the columns `FEATURES`, images as they are stored.

    Args:
        cell: only rows of this language, and this task unless it is None.
        seed, readers: see `open_stream`.
    """
    dataset = load(replace(source, streaming=True))
    if isinstance(dataset, datasets.Dataset):
        # One shard for each reader, equally long to within a row. Rows are shuffled before, so that a shard is like the
        # whole; the first `max_rows` have to stay the first.
        if source.max_rows is None:
            dataset = dataset.shuffle(seed=seed)
        dataset = dataset.to_iterable_dataset(num_shards=min(readers, len(dataset)))
    elif dataset.num_shards % readers and readers % dataset.num_shards:
        warnings.warn(
            f"{source.path}: {dataset.num_shards} files are shared by {readers} readers (processes times workers), so "
            f"rows of some come more often than of others. Write {readers} files, or a multiple, for equal shares.",
            stacklevel=2,
        )

    def training_rows(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        rows = []
        for values, number in zip(zip(*batch.values(), strict=True), numbers, strict=True):
            raw = dict(zip(batch, values, strict=True))
            if raw.get("texts") is not None:
                pairs = [pair for pair in source.variants(raw, number) if cell is None or matches(pair, cell)]
                rows += [source.row(raw, number, *pair) for pair in pairs]
            else:
                row = source.row(raw, number)
                pair = (row["language"] or NONE, row["task"] or NONE)
                if source.keeps(row["language"], row["task"]) and (cell is None or matches(pair, cell)):
                    rows.append(row)
        located = [{**row, "images": [source.locate(image) for image in row["images"]]} for row in rows]
        return {name: [row[name] for row in located] for name in FEATURES}

    columns = dataset.column_names or ()
    options: dict[str, Any] = {"with_indices": True, "batched": True, "batch_size": 1, "features": FEATURES}
    options["remove_columns"] = [name for name in columns if name not in FEATURES]
    limit = source.max_rows
    if limit is None:
        return dataset.decode(False).map(training_rows, **options)
    if "texts" in columns:  # stored rows are counted: each may become several
        return dataset.take(limit).decode(False).map(training_rows, **options)
    return dataset.decode(False).map(training_rows, **options).take(limit)


def matches(pair: Cell, cell: tuple[str, str | None]) -> bool:
    return pair[0] == cell[0] and cell[1] in (None, pair[1])


def open_sources(
    sources: Mixture | Sequence[DataSource], seed: int, reader: ImageReader, readers: int = 1
) -> ConversationDataset | datasets.IterableDataset:
    """A mixture, or sources with weights: a stream if one of them streams, else a data set of known length.

    `readers` is the number of processes times the data loading workers of each, among which a stream is shared.
    """
    opened: Sequence[DataSource] = list(sources.sources.values()) if isinstance(sources, Mixture) else sources
    if not opened:
        raise ValueError("No data: give at least one source with a `path`.")
    if any(source.streaming for source in opened):
        return open_stream(sources, seed, reader, readers)
    return ConversationDataset(sources, seed, reader)
