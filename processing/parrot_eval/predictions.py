"""Answers of a model, kept as they come: written batch by batch, continued after an interruption, scored any time.

A folder holds

- `settings.json`: what was asked of which model. Answers to anything else are refused.
- `answers/NNNNN.jsonl`: what each process wrote.
- `predictions.jsonl`: all answers in the order of the questions, written when none is missing.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache


Key = tuple[str, str]  # language, index of the question
SAMPLE = 1 << 20  # bytes of a weights file that tell it from another one of the same shape


class Predictions:
    """
    The answers in a folder.

    Args:
        folder: made if it does not exist.
        settings: what the answers depend on; of simple types.

    Raises:
        ValueError: the folder holds answers to something else; names what differs. Nothing is written then.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        path = folder / "settings.json"
        wanted = json.loads(json.dumps(settings))  # as it will be read again
        if path.exists():
            check_settings(json.loads(path.read_text(encoding="utf-8")), wanted, folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        (folder / "answers").mkdir(exist_ok=True)

    def read(self) -> dict[Key, dict[str, Any]]:
        """{(language, index): {"answer": text, ...}}, of all processes. A line that was cut off is not there."""
        found: dict[Key, dict[str, Any]] = {}
        for path in sorted((self.folder / "answers").glob("*.jsonl")):
            found |= {(row["language"], row["index"]): row for row in read_lines(path)}
        return found

    def writer(self, process: int) -> "Writer":
        return Writer(self.folder / "answers" / f"{process:05d}.jsonl")

    def finish(self, keys: Sequence[Key]) -> Path:
        """
        Writes `predictions.jsonl`.

        Raises:
            ValueError: answers are missing.
        """
        found = self.read()
        if missing := [key for key in keys if key not in found]:
            raise ValueError(
                f"{self.folder}: {len(missing)} of {len(keys)} answers are missing. Start again to go on."
            )
        path = self.folder / "predictions.jsonl"
        lines = (json.dumps(found[key], ensure_ascii=False) + "\n" for key in keys)
        write_atomically(path, "".join(lines))
        return path


class Writer:
    """Appends rows to a file; what is written stays, whatever happens next."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        end_line(self.path)
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *details):
        self.file.close()

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.file.flush()
        os.fsync(self.file.fileno())


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def end_line(path: Path) -> None:
    """Cuts off a last line that an interruption left unfinished."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def write_atomically(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def check_settings(stored: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    differing = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if differing:
        changes = "; ".join(f"{key} {stored.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
        raise ValueError(
            f"{folder} holds answers of another run: {changes}. Choose another --output, or remove that folder."
        )


def model_fingerprint(model: str) -> str:
    """
    What tells a checkpoint from another one under the same name.

    Of a local folder the sizes and parts of its weights, of a model on the Hub the commit that was loaded last.
    """
    folder = Path(model)
    if not folder.is_dir():
        cached = try_to_load_from_cache(model, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else "unknown"
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for place in (0, size // 2, max(0, size - SAMPLE)):
                file.seek(place)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]
