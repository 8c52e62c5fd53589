"""Translators behind one small protocol, and files of existing translations, which are one.

PARROT (section 4.4) translated with GPT-4 and had it corrected, LRM-LLaVA with a commercial service; here it is a choice
of the recipe. A translator says what it could not translate instead of returning less; see `TranslationError`.
"""

import csv
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from parrot_data.sources import read_json


def digest(content: bytes) -> str:
    """A short name of a file's or a prompt's content."""
    return hashlib.sha256(content).hexdigest()[:12]


class Translator(Protocol):
    """`name` says for a manifest what it is: kind, model, and the settings that change what it writes."""

    @property
    def name(self) -> str: ...

    def translate(self, texts: Sequence[str], target: str, source: str = "en") -> list[str]:
        """One translation per text, in order. Languages are ISO 639 codes."""
        ...


class TranslationError(RuntimeError):
    """
    A translator could not translate all texts.

    Attributes:
        texts: those that it cannot translate, so that leaving them out would help; empty if it failed as a whole.
        finished: {text: translation} of the others as far as it came, so that they need not be paid for twice.
    """

    def __init__(self, message: str, texts: Sequence[str] = (), finished: Mapping[str, str] | None = None):
        super().__init__(message)
        self.texts = list(texts)
        self.finished = dict(finished or {})


def translate_checked(translator: Translator, texts: Sequence[str], target: str, source: str = "en") -> list[str]:
    """
    What `translator.translate` returns, if it is one line with content for each text.

    Raises:
        TranslationError: it is not; names translator, languages, counts and the first text concerned.
    """
    lines = translator.translate(texts, target, source)
    where = f"{translator.name}, {source} to {target}"
    if len(lines) != len(texts):
        first = texts[min(len(lines), len(texts) - 1)] if texts else None
        raise TranslationError(
            f"{where}: {len(lines)} translation(s) came back for {len(texts)} text(s), so it is unknown which belongs "
            f"to which. First text without one: {first!r}. A translator has to return one line for each text."
        )
    empty = [text for text, line in zip(texts, lines, strict=True) if not line.strip()]
    if empty:
        raise TranslationError(
            f"{where}: {len(empty)} of {len(texts)} translations are empty, the first is of {empty[0]!r}. Leave such "
            "rows out, or use another translator.",
            empty,
            {text: line for text, line in zip(texts, lines, strict=True) if line.strip()},
        )
    return lines


@dataclass
class FileTranslator:
    """
    Existing translations, between any two columns of a file.

    Args:
        path: .csv, .tsv, .json, .jsonl or .parquet with a column per language code. Of several translations of a text,
            the first is taken.
        otherwise: translates what the file does not have.

    Raises:
        ValueError: a file of another kind, or a row with more cells than columns.
    """

    path: str
    otherwise: Translator | None = None

    def __post_init__(self):
        path = Path(self.path)
        if path.suffix in (".csv", ".tsv"):
            with open(path, encoding="utf-8-sig", newline="") as file:
                self.rows = list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))
        elif path.suffix == ".parquet":
            self.rows = pq.read_table(path).to_pylist()
        elif path.suffix in (".json", ".jsonl"):
            self.rows = list(read_json(path))
        else:
            raise ValueError(f"{path}: translations are read from .csv, .tsv, .json, .jsonl or .parquet.")
        for number, row in enumerate(self.rows, start=1):
            if None in row:
                raise ValueError(
                    f"{path}, row {number}: more cells than columns. Put quotes around texts with commas."
                )
        self.known: dict[tuple[str, str], dict[str, str]] = {}  # {(source, target): {text: translation}}
        self.name = f"file {path.name} ({digest(path.read_bytes())})"
        if self.otherwise is not None:
            self.name += f", otherwise {self.otherwise.name}"

    def translate(self, texts: Sequence[str], target: str, source: str = "en") -> list[str]:
        """Raises TranslationError if a text is not in the file and there is no other translator."""
        if (source, target) not in self.known:
            rows = [row for row in reversed(self.rows) if row.get(source) and row.get(target)]
            self.known[source, target] = {str(row[source]).strip(): str(row[target]) for row in rows}
        known = self.known[source, target]
        missing = [text for text in dict.fromkeys(texts) if text.strip() not in known]
        found = {text: known[text.strip()] for text in texts if text.strip() in known}
        if missing and self.otherwise is None:
            raise TranslationError(
                f"{self.path} has no translation from {source} to {target} of {len(missing)} text(s), the first is "
                f"{missing[0]!r}. Add them (columns: {', '.join(self.rows[0]) if self.rows else 'none'}), or give a "
                "translator for them as `otherwise`.",
                missing,
                found,
            )
        if missing and self.otherwise is not None:
            found |= dict(zip(missing, translate_checked(self.otherwise, missing, target, source), strict=True))
        return [found[text] for text in texts]


def translator_from(settings: Mapping[str, Any]) -> Translator:
    """
    A translator from a recipe's entry: `kind` (seq2seq, endpoint or file) and the arguments of its class.

    Raises:
        ValueError: unknown kind, or unknown or missing arguments; lists those that there are.
    """
    from parrot_data.multilingual.endpoint import EndpointTranslator
    from parrot_data.multilingual.seq2seq import Seq2SeqTranslator

    kinds: dict[str, Any] = {"seq2seq": Seq2SeqTranslator, "endpoint": EndpointTranslator, "file": FileTranslator}
    arguments = {key: value for key, value in settings.items() if key != "kind"}
    kind = settings.get("kind")
    if kind not in kinds:
        raise ValueError(f"translator: `kind` must be one of {', '.join(kinds)}, is {kind!r}.")
    parameters = inspect.signature(kinds[kind]).parameters
    unknown = [key for key in arguments if key not in parameters]
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in arguments]
    if unknown or missing:
        raise ValueError(
            f"translator of kind {kind!r}: unknown arguments {unknown}, missing ones {missing}. "
            f"It takes {', '.join(parameters)}."
        )
    if isinstance(arguments.get("otherwise"), Mapping):
        arguments["otherwise"] = translator_from(arguments["otherwise"])
    return kinds[kind](**arguments)
