"""
Writes model cards.

    python model_cards/generate.py                                   the cards of the presets, from presets.yaml
    python model_cards/generate.py --model DIR --facts FACTS.yaml    README.md of a checkpoint in DIR

A file of facts holds the arguments of `modeling_parrot.model_card.model_card` (languages, base_models, datasets,
license, scores, training, ...); the entries of presets.yaml are examples, but for their sizes under `config`.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from configuration_parrot import ParrotConfig
from modeling_parrot.model_card import Score, TrainingStage, model_card, write_model_card


HERE = Path(__file__).resolve().parent
PRESETS = HERE.parent / "configuration" / "presets"


def facts_from(entry: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `model_card` from a YAML mapping: scores and training stages become their classes."""
    return {
        **entry,
        "scores": [Score(**score) for score in entry.get("scores", [])],
        "training": [TrainingStage(**stage) for stage in entry.get("training", [])],
    }


def preset_cards() -> dict[Path, str]:
    """`{path: text}` of every preset's card. What the model is built from stands in the preset itself."""
    entries = yaml.safe_load((HERE / "presets.yaml").read_text(encoding="utf-8"))["cards"]
    cards = {}
    for name, entry in entries.items():
        preset = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
        config = ParrotConfig(**preset["adapter"], **entry.pop("config"))
        base_models = [preset["vision_tower"], preset["language_model"]]
        cards[HERE / f"{name}.md"] = str(model_card(config, base_models=base_models, **facts_from(entry)))
    return cards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--facts", type=Path, help="YAML file with what the checkpoint itself does not say")
    options = parser.parse_args()
    if (options.model is None) != (options.facts is None):
        parser.error("give --model and --facts together, or neither for the presets' cards")
    if options.model is not None:
        facts = facts_from(yaml.safe_load(options.facts.read_text(encoding="utf-8")))
        print(f"wrote {write_model_card(options.model, **facts)}")
        return
    for path, text in preset_cards().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
