"""Read the emoji example's data: concepts with names in 13 languages, and their drawings."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image


DATA_DIR = Path(__file__).parent / "data"
TRAINED_PER_GROUP = 28


@dataclass(frozen=True)
class Concept:
    """One emoji. `names` and `keywords` are keyed by language; `split` is "train" or "held_out"."""

    id: str
    char: str
    group: str
    split: str
    names: dict[str, str]
    keywords: dict[str, list[str]]
    spelled_as_english: list[str]


@dataclass(frozen=True)
class EmojiData:
    """All concepts and where their images may be used.

    Only `train_styles` x concepts of split "train" may be shown to any training; `held_out_style` and the concepts of
    split "held_out" are for evaluation.
    """

    languages: list[str]
    train_styles: list[str]
    held_out_style: str
    image_size: int
    concepts: list[Concept]

    def split(self, name: str) -> list[Concept]:
        """The concepts of split "train" or "held_out"."""
        return [concept for concept in self.concepts if concept.split == name]


def load_data(data_dir: Path = DATA_DIR, trained_per_group: int | None = TRAINED_PER_GROUP) -> EmojiData:
    """Read `concepts.json`.

    Args:
        trained_per_group: keep so many training concepts of each group, those with the shortest names over all
            languages, and every held-out one. With a third of the concepts left to the tower alone (None: all), language
            model and stages fit into minutes on a CPU.
    """
    content = json.loads((data_dir / "concepts.json").read_text(encoding="utf-8"))
    concepts = [Concept(**concept) for concept in content["concepts"]]
    trained: dict[str, list[Concept]] = {}
    for concept in sorted(concepts, key=lambda concept: sum(len(name.encode()) for name in concept.names.values())):
        if concept.split == "train":
            trained.setdefault(concept.group, []).append(concept)
    kept = {concept.id for group in trained.values() for concept in group[:trained_per_group]}
    concepts = [concept for concept in concepts if concept.split == "held_out" or concept.id in kept]
    return EmojiData(**{**content, "concepts": concepts})


def load_images(data_dir: Path = DATA_DIR) -> dict[tuple[str, str], Image.Image]:
    """Read `images.parquet`: {(style, concept id): RGB image on white}. A style need not draw every concept."""
    table = pq.read_table(data_dir / "images.parquet")
    columns = (table[name].to_pylist() for name in ("style", "id", "image"))
    return {
        (style, id_): Image.open(io.BytesIO(image)).convert("RGB") for style, id_, image in zip(*columns, strict=True)
    }
