"""Reading the images of a row, in the worker that needs them, and what happens with those that cannot be read."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import get_worker_info


class BadImageError(ValueError):
    """An image that is missing, empty, truncated, or not an image. The message names the row and the file."""


def load_image(image: Any, where: str) -> Image.Image:
    """Decode one image completely, so that a truncated file is noticed here and not in the middle of a batch.

    Args:
        image: a path, a dictionary with `bytes` or `path` as `datasets` stores images, or a PIL image. The colour mode
            is left to the image processor.
        where: names the row in errors.

    Raises:
        BadImageError: with the row, the path and what to do.
    """
    remedy = "Repair or remove it, or set `on_bad_image: skip` to leave such rows out and count them."
    source: Any
    if isinstance(image, Image.Image):
        name, source = "the image in the row", image
    elif isinstance(image, Mapping) and image.get("bytes") is not None:
        name, source = f"the image stored in the row ({image.get('path') or 'no name'})", BytesIO(image["bytes"])
        if not image["bytes"]:
            raise BadImageError(f"{where}: {name} has no bytes. {remedy}")
    else:
        path = image.get("path") if isinstance(image, Mapping) else image
        if not isinstance(path, (str, Path)):
            raise BadImageError(
                f"{where}: an image must be a path, a dictionary with bytes, or a PIL image: {image!r}."
            )
        source = Path(path)
        name = f"image file {source}"
        if not source.is_file():
            raise BadImageError(f"{where}: {name} does not exist. Check `image_folder`. {remedy}")
        if source.stat().st_size == 0:
            raise BadImageError(f"{where}: {name} is empty (0 bytes). {remedy}")
    try:
        opened = source if isinstance(source, Image.Image) else Image.open(source)
        opened.load()
    except UnidentifiedImageError as error:
        raise BadImageError(f"{where}: {name} is not an image. {remedy}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL's decoders raise
        raise BadImageError(f"{where}: {name} cannot be decoded, it may be truncated ({error}). {remedy}") from error
    if 0 in opened.size:
        raise BadImageError(f"{where}: {name} is {opened.width} by {opened.height} pixels. {remedy}")
    return opened


class ImageReader:
    """Replaces the images of a row by decoded ones and counts the rows whose images cannot be read.

    Args:
        on_bad_image: "error" raises `BadImageError`; "skip" makes `read` return None and counts the row.
        limit: so many bad rows in a row are an error even when skipping, because then the folder is wrong, not a file.
    """

    max_workers = 256

    def __init__(self, on_bad_image: Literal["error", "skip"] = "error", limit: int = 1000):
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"on_bad_image must be 'error' or 'skip', not {on_bad_image!r}.")
        self.on_bad_image = on_bad_image
        self.limit = limit
        self._in_a_row = 0
        # Rows are read in worker processes but reported by the main one. A slot per worker needs no lock.
        self._skipped = torch.zeros(self.max_workers, dtype=torch.int64).share_memory_()
        self.kinds: list[tuple[str, str | None]] = []
        self._read = torch.zeros(self.max_workers, 0, dtype=torch.int64)

    @property
    def skipped(self) -> int:
        """Number of times a row was skipped, over all workers of this process."""
        return int(self._skipped.sum())

    def count_kinds(self, kinds: Sequence[tuple[str, str | None]]) -> None:
        """From now on counts the rows that are read by (language, task), a task of None being any."""
        self.kinds = list(kinds)
        self._read = torch.zeros(self.max_workers, len(self.kinds), dtype=torch.int64).share_memory_()

    @property
    def rows_read(self) -> dict[tuple[str, str | None], int]:
        """Rows read so far, over all workers of this process; workers are some batches ahead of the training."""
        return dict(zip(self.kinds, self._read.sum(0).tolist(), strict=True))

    def read(self, row: dict) -> dict | None:
        """The row with PIL images, or None if it has to be skipped."""
        try:
            images = [load_image(image, f"row {row['id']!r}") for image in row["images"]]
        except BadImageError as error:
            if self.on_bad_image == "error":
                raise
            self._in_a_row += 1
            if self._in_a_row >= self.limit:
                raise BadImageError(f"{self.limit} rows in a row have unreadable images, the last: {error}") from error
            self._skipped[self._slot()] += 1
            return None
        self._in_a_row = 0
        for number, (language, task) in enumerate(self.kinds):
            if row["language"] == language and task in (None, row["task"]):
                self._read[self._slot(), number] += 1
        return {**row, "images": images}

    def _slot(self) -> int:
        worker = get_worker_info()
        return 0 if worker is None else 1 + worker.id % (self.max_workers - 1)
