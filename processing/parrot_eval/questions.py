"""Questions of a benchmark, from VLMEvalKit's TSV files as they are, or from a data set with such columns.

Texts are read at once, images when they are asked for: the table that holds them is memory-mapped.
"""

import base64
import binascii
import csv
import hashlib
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from parrot_data.images import BadImageError, load_image
from parrot_data.languages import language_of, same_language
from parrot_data.sources import DataSource, load


CIRCLE = 1_000_000  # rotations of question n have the indices n + k * CIRCLE
LETTERS = tuple(string.ascii_uppercase)
LONGEST_REFERENCE = 64  # a shorter image is the index of the row that holds it
IMAGE_COLUMNS = ("image", "images")
LANGUAGES = {"cn": "zh", "sp": "es", "cz": "cs", "jp": "ja", "kr": "ko"}  # names that files use, and their ISO codes
# Of questions whose language can be told, so many may be in another one: they name or quote something.
FOREIGN = 0.2
YES, NO = "Yes", "No"


@dataclass(frozen=True)
class Question:
    """
    One question on one or more images.

    Args:
        index: as in the file; unique in a language.
        options: {letter: text}; none if the answer is yes or no, or a text.
        answer: a letter, "Yes" or "No", or a reference text.
        group: what belongs together when answers are scored: the rotations of a question, the questions on one image.
        row: of the table that holds the image.
    """

    index: str
    language: str
    question: str
    answer: str
    options: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    category: str = ""
    l2_category: str = ""
    split: str = ""
    group: str = ""
    row: int = 0

    @property
    def target(self) -> str | bool:
        """What has to be read in an answer: a letter, or yes (True) or no (False)."""
        return self.answer if self.options or self.answer not in (YES, NO) else self.answer == YES


class QuestionSet(Sequence[Question]):
    """
    The questions of one language, and their images.

    Args:
        table: one row per question of the file, images as they are stored.
        name: of the file, for messages.
    """

    def __init__(self, questions: Sequence[Question], table: datasets.Dataset, name: str):
        self.questions, self.table, self.name = list(questions), table, name
        self.rows = {question.index: question.row for question in questions}

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, number):
        return self.questions[number]

    def replaced(self, questions: Sequence[Question]) -> "QuestionSet":
        """Other questions on the same images."""
        result = QuestionSet(questions, self.table, self.name)
        result.rows = self.rows
        return result

    def images(self, question: Question) -> list[Image.Image]:
        """
        The question's images, decoded.

        Raises:
            BadImageError: one cannot be read; names file, row and what to do.
        """
        where = f"{self.name}, index {question.index}"
        stored = self.stored_images(question.row, where)
        return [load_image(image, where).convert("RGB") for image in stored]

    def image_key(self, question: Question) -> str:
        """The same for questions with the same images, whatever the language."""
        digest = hashlib.sha256()
        for image in self.stored_images(question.row, f"{self.name}, index {question.index}"):
            digest.update(image["bytes"] if isinstance(image, dict) and image.get("bytes") else str(image).encode())
        return digest.hexdigest()

    def stored_images(self, row: int, where: str) -> list[Any]:
        """As bytes or paths, references to other rows resolved."""
        values = self.table[row]
        content = next((values[name] for name in IMAGE_COLUMNS if values.get(name)), None)
        if content is None and values.get("image_path"):
            content = str(Path(self.name).parent / values["image_path"])
            return [content]
        images = content if isinstance(content, list) else as_list(content)
        return [self.stored_image(image, where) for image in images]

    def stored_image(self, image: Any, where: str) -> Any:
        if not isinstance(image, str):
            return image
        if len(image) <= LONGEST_REFERENCE:
            if image not in self.rows:
                raise BadImageError(
                    f"{where}: its image is {image!r}, which is neither an image in base64 nor the index of a row."
                )
            values = self.table[self.rows[image]]
            image = next((values[name] for name in IMAGE_COLUMNS if values.get(name)), "")
            if len(image) <= LONGEST_REFERENCE:
                raise BadImageError(f"{where}: the row that it takes its image from has none itself.")
        try:
            return {"bytes": base64.b64decode(image, validate=True), "path": None}
        except binascii.Error as error:
            raise BadImageError(f"{where}: its image is not valid base64 ({error}).") from error


def as_list(text: Any) -> list[Any]:
    """A cell with one image, or with several written as a Python list of texts."""
    if isinstance(text, str) and text.startswith("[") and text.endswith("]"):
        return [part.strip().strip("'\"") for part in text[1:-1].split(",")]
    return [] if text is None else [text]


def open_dataset(path: str, split: str, config_name: str | None) -> datasets.Dataset:
    """A data set as `DataSource` opens it, its images as they are stored."""
    table = load(DataSource(path, split=split, config_name=config_name))
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return table


def open_tsv(path: str) -> datasets.Dataset:
    """The rows of a TSV file, every cell as text: an option "1.50" or "None" is an option."""
    with open(path, encoding="utf-8", newline="") as file:
        names = next(csv.reader(file, delimiter="\t"), [])
    features = datasets.Features(dict.fromkeys(names, datasets.Value("string")))
    return datasets.load_dataset(
        "csv", data_files=path, split="train", delimiter="\t", features=features, keep_default_na=False, chunksize=256
    )


def read_questions(
    path: str,
    language: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    config_name: str | None = None,
    name: str | None = None,
) -> dict[str, QuestionSet]:
    """
    The questions of a file or data set, by language.

    Args:
        path: a `.tsv` file; or what `parrot_data.sources.DataSource` opens: parquet, JSON, a folder, an
            id on the Hub.
        language: of all rows. By default that of each row's column `language`, else that of the file's name
            (`mmmb_zh.tsv`).
        columns: {name here: name in the file}. Names here: index, question, hint, A, B, ... or options (a list of
            texts), answer, category, l2-category, split, image (or images, image_path), language.
        split, config_name: of a data set.
        name: stands for the path in messages.

    Raises:
        ValueError: a missing column, duplicated indices, an answer that is no option, or a file with questions in
            other languages than said; with file, rows and what to do.
    """
    name = name or path
    table = open_tsv(path) if name.endswith(".tsv") else open_dataset(path, split, config_name)
    if columns:
        if missing := sorted(set(columns.values()) - set(table.column_names)):
            raise ValueError(f"{name} has no column {', '.join(missing)}. It has: {', '.join(table.column_names)}.")
        table = table.rename_columns({theirs: ours for ours, theirs in columns.items() if ours != theirs})
    check_columns(table.column_names, name)
    texts = table.remove_columns([column for column in (*IMAGE_COLUMNS, "image_path") if column in table.column_names])
    default = language or language_of_name(name)
    by_language: dict[str, list[Question]] = defaultdict(list)
    for number, row in enumerate(texts.to_list()):
        own = language or row.get("language") or default
        if own is None:
            raise ValueError(
                f"{name} does not say its language: it has no column `language`, and its name does not end in one "
                "(such as _zh). Give `--languages zh`."
            )
        by_language[LANGUAGES.get(own, own)].append(to_question(row, number, LANGUAGES.get(own, own), name))
    result = {}
    for code, questions in by_language.items():
        check_indices(questions, name)
        check_languages(questions, code, name)
        result[code] = QuestionSet(questions, table, name)
    if not result:
        raise ValueError(f"{name} has no rows.")
    return result


def check_columns(found: Sequence[str], name: str) -> None:
    missing = [column for column in ("index", "question", "answer") if column not in found]
    if not any(column in found for column in (*IMAGE_COLUMNS, "image_path")):
        missing.append("image")
    if missing:
        raise ValueError(
            f"{name} has no column {', '.join(missing)}. It has: {', '.join(found)}. If they have other names there, "
            "map them under `columns`."
        )


def language_of_name(name: str) -> str | None:
    """The language at the end of a file's name: zh of "mmmb_zh.tsv" and of "MMBench_dev_cn.tsv"."""
    end = Path(name).stem.replace("-", "_").rsplit("_", 1)[-1].lower()
    return LANGUAGES.get(end, end) if len(end) == 2 and end.isalpha() else None


def to_question(row: Mapping[str, Any], number: int, language: str, name: str) -> Question:
    """
    A question from a row of the file.

    Raises:
        ValueError: no index or question, or an answer that is no option.
    """
    index = text_of(row["index"])
    where = f"{name}, row {number} (index {index or 'missing'})"
    question = text_of(row["question"])
    if not index or not question:
        raise ValueError(f"{where}: it has no {'question' if index else 'index'}.")
    if isinstance(row.get("options"), (list, tuple)):
        options = dict(zip(LETTERS, map(text_of, row["options"]), strict=False))
    else:
        options = {letter: text for letter in LETTERS if (text := text_of(row.get(letter)))}
    answer = row["answer"]
    if options:
        answer = LETTERS[answer] if isinstance(answer, int) and 0 <= answer < len(options) else text_of(answer).upper()
        if answer not in options:
            raise ValueError(f"{where}: its answer is {answer!r}, but its options are {', '.join(options)}.")
    else:
        answer = text_of(answer)
        answer = {"yes": YES, "no": NO}.get(answer.lower(), answer)
    group = index
    if index.isdigit():
        group = str(int(index) % CIRCLE)
    return Question(
        index, language, question, answer, options, text_of(row.get("hint")), text_of(row.get("category")),
        text_of(row.get("l2-category")), text_of(row.get("split")), text_of(row.get("image_path")) or group, number
    )  # fmt: skip


def text_of(value: Any) -> str:
    return "" if value is None else str(value).strip()


def check_indices(questions: Sequence[Question], name: str) -> None:
    twice = [index for index, count in Counter(question.index for question in questions).items() if count > 1]
    if twice:
        raise ValueError(
            f"{name}: {len(twice)} indices stand in several rows of language {questions[0].language!r}, the first: "
            f"{', '.join(twice[:5])}. Every row needs an index of its own."
        )


def check_languages(questions: Sequence[Question], language: str, name: str) -> None:
    """Refuses a file of which a good part is in another language than said. Names and quotations are no good part."""
    found = Counter(code for q in questions if (code := language_of(q.question, expected=language)))
    others = {code: count for code, count in found.items() if not same_language(code, language)}
    if sum(others.values()) > FOREIGN * sum(found.values()):
        most = max(others, key=lambda code: others[code])
        raise ValueError(
            f"{name}: of {sum(found.values())} questions whose language can be told, {sum(others.values())} are not in "
            f"{language!r}, most of these in {most!r} ({others[most]}). Languages need files of their own, or a column "
            "`language`."
        )


def check_circles(questions: Sequence[Question], name: str) -> None:
    """
    Refuses rotations that do not make whole circles: a question with n options has n of them, and each option's
    letter is the answer once.

    Raises:
        ValueError: names the first incomplete groups.
    """
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.group].append(question)
    broken = [
        f"{group} ({len(members)} of {len(members[0].options)})"
        for group, members in groups.items()
        if len(members) != len(members[0].options) or len({q.answer for q in members}) != len(members)
    ]
    if broken:
        raise ValueError(
            f"{name}: {len(broken)} of {len(groups)} questions lack rotations: {', '.join(broken[:5])}"
            f"{', ...' if len(broken) > 5 else ''}. Circular scoring needs a row for every place of the right answer, "
            f"with indices n, n + {CIRCLE:,}, n + 2 x {CIRCLE:,}, ...; or score them as plain choice (`--protocol "
            "choice`)."
        )
