"""Fills a model card: what a checkpoint is, how to use it, how it was trained, and what was measured on it."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import safe_open

from configuration_parrot import ParrotConfig


# A wheel carries the template inside the package; in a clone it lies with the cards.
_TEMPLATES = (
    Path(__file__).parent / "model_cards" / "template.md",
    Path(__file__).parents[1] / "model_cards" / "template.md",
)
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
_PACKAGES = ("modeling-parrot", "transformers", "torch", "datasets", "tokenizers")


@dataclass(frozen=True)
class Score:
    """
    One metric on one benchmark, per language.

    Args:
        benchmark: its name, e.g. "MMMB".
        metric: e.g. "accuracy".
        values: `{language code: value}`. Keys that are no language of the card, such as "mean", get columns after it.
        dataset: Hub id of the benchmark's data, where there is one.
        split: the part of the benchmark, e.g. "held-out style".
        source: who reports the value, where this is not a measurement of the card's own checkpoint, e.g. "PARROT,
            table 2". Such scores stand in a table of their own and never in the front matter, because leaderboards
            read that as results of the checkpoint.
        decimals: digits after the point in the table.
    """

    benchmark: str
    metric: str
    values: Mapping[str, float]
    dataset: str | None = None
    split: str | None = None
    source: str | None = None
    decimals: int = 1

    def __post_init__(self):
        wrong = {
            key: value for key, value in self.values.items() if not isinstance(value, int | float) or math.isnan(value)
        }
        if not self.values or wrong:
            raise ValueError(
                f"The score {self.benchmark} ({self.metric}) has "
                f"{f'values that are no numbers: {wrong}' if wrong else 'no values'}. Give a number per language, or "
                "leave the score out."
            )


@dataclass(frozen=True)
class TrainingStage:
    """
    One stage of the training.

    Args:
        name: e.g. "alignment" or "instruction".
        trains: the parts whose weights moved, e.g. "projector".
        data: the data sets and how much of each.
        hyperparameters: `{name: value}`, in the order of the card's table.
    """

    name: str
    trains: str
    data: Sequence[str] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arguments(cls, name: str, arguments, *, trains: str, data: Sequence[str] = (), **more) -> "TrainingStage":
        """
        A stage with the hyper-parameters of a `transformers.TrainingArguments`; `more` adds entries to them (with
        spaces for underscores), e.g. `max_length=2048`.
        """
        per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        by_steps = arguments.max_steps > 0
        warm_up = arguments.warmup_steps
        precision = "bf16 autocast" if arguments.bf16 else "fp16 autocast" if arguments.fp16 else "as loaded"
        return cls(
            name,
            trains,
            data,
            {
                "learning rate": arguments.learning_rate,
                "schedule": str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)),
                "warm-up": f"{warm_up:.0%} of the steps" if 0 < warm_up < 1 else f"{warm_up:g} steps",
                "batch size (all devices)": per_step,
                "steps" if by_steps else "epochs": arguments.max_steps if by_steps else arguments.num_train_epochs,
                "optimizer": str(getattr(arguments.optim, "value", arguments.optim)),
                "weight decay": arguments.weight_decay,
                "gradient clipping": arguments.max_grad_norm,
                "precision": precision,
                "seed": arguments.seed,
                **{key.replace("_", " "): value for key, value in more.items()},
            },
        )


def model_card(
    config: ParrotConfig,
    *,
    model_id: str,
    languages: Sequence[str],
    base_models: Sequence[str],
    datasets: Sequence[str],
    license: str,
    license_name: str | None = None,
    license_link: str | None = None,
    scores: Iterable[Score] = (),
    training: Iterable[TrainingStage] = (),
    notice: str | None = None,
    description: str | None = None,
    limits: Sequence[str] = (),
    pictures: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    parameters: int | None = None,
    versions: Mapping[str, str] | None = None,
) -> ModelCard:
    """
    The card of one model.

    Args:
        config: says what the model is made of.
        model_id: Hub id (or folder) that the usage snippet loads.
        languages: ISO 639 codes of the languages it was trained for, e.g. `["en", "zh"]`.
        base_models: vision tower and language model it was built from. Hub ids also go into the front matter, folders
            only into the text.
        datasets: what it was trained on; Hub ids and other names are told apart in the same way.
        license: identifier of the Hub, e.g. "apache-2.0"; "other" with `license_name` and `license_link`.
        scores: measured ones make the model index and a table, reported ones a table that names its source.
        training: the stages in their order.
        notice: put first, for what a reader must not miss.
        description: a paragraph on this model in particular.
        limits: added to what holds for every such model.
        pictures: `{caption: file in the model's folder}`, e.g. of router weights.
        tags: added to the usual ones.
        parameters: number of parameters.
        versions: `{package: version}`; by default those installed now.

    Raises:
        ValueError: no language or base model is named, or a language is not an ISO code.
    """
    wrong = [code for code in languages if not _LANGUAGE_CODE.fullmatch(code)]
    if not languages or wrong or not base_models:
        raise ValueError(
            "A card names its languages by ISO 639 codes such as 'en' or 'zh', and its base models by Hub ids or "
            f"names; got languages={list(languages)!r}, base_models={list(base_models)!r}."
        )
    scores, training = list(scores), list(training)
    measured = [score for score in scores if score.source is None]
    name = model_id.rstrip("/").rsplit("/", 1)[-1]
    experts = config.num_language_experts
    data = ModelCardData(
        model_name=name,
        language=list(languages),
        license=license,
        license_name=license_name,
        license_link=license_link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=[model for model in base_models if _is_hub_id(model)] or None,
        datasets=[dataset for dataset in datasets if _is_hub_id(dataset)] or None,
        tags=["parrot", "multilingual", "vision-language", *(["mixture-of-experts"] if experts else ["llava"]), *tags],
        eval_results=[result for score in measured for result in _eval_results(score)] or None,
    )
    return ModelCard.from_template(
        data,
        template_str=template_path().read_text(encoding="utf-8"),
        name=name,
        model_id=model_id,
        notice=notice,
        description=description,
        languages=list(languages),
        base_models=[_link(model) for model in base_models],
        data=[_link(dataset, "datasets/") for dataset in datasets],
        experts=experts,
        image_size=config.vision_config.image_size,  # type: ignore[union-attr]
        architecture=_architecture(config, parameters),
        stages=training,
        hyperparameters=list(dict.fromkeys(key for stage in training for key in stage.hyperparameters)),
        measured=_table(measured, languages),
        reported={
            source: _table([score for score in scores if score.source == source], languages)
            for source in dict.fromkeys(score.source for score in scores if score.source)
        },
        pictures=pictures or {},
        limits=list(limits),
        versions=versions if versions is not None else _installed_versions(),
    )


def write_model_card(folder: str | os.PathLike, *, model_id: str | None = None, **facts: Any) -> Path:
    """
    Writes `README.md` into a checkpoint's folder, from its `config.json`, its weights and the facts given.

    Args:
        folder: where `save_pretrained` wrote the model.
        model_id: the Hub id it will have. By default the folder's path; [`share`] puts in the id it uploads to.
        facts: as in [`model_card`]: at least `languages`, `base_models`, `datasets` and `license`.

    Returns:
        The path of the card.

    Raises:
        ValueError: as in [`model_card`].
        OSError: the folder has no `config.json` of Parrot's.
    """
    folder = Path(folder)
    config = ParrotConfig.from_pretrained(folder)
    card = model_card(
        config, model_id=model_id or str(folder), parameters=facts.pop("parameters", None) or _count(folder), **facts
    )
    card.save(folder / "README.md")
    return folder / "README.md"


def template_path() -> Path:
    """The card's Jinja template."""
    found = next((path for path in _TEMPLATES if path.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"The model card's template is in none of {', '.join(map(str, _TEMPLATES))}. Install the package again."
        )
    return found


def _is_hub_id(name: str) -> bool:
    """Whether a name can be an id on the Hub: of its form, and not a folder on this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not Path(name).exists()


def _link(name: str, kind: str = "") -> str:
    """A name as the card's text shows it; of a folder elsewhere on this machine only its last part."""
    if _is_hub_id(name):
        return f"[{name}](https://huggingface.co/{kind}{name})"
    return Path(name).name if Path(name).is_absolute() else name


def _eval_results(score: Score) -> list[EvalResult]:
    """The model index's entries of a measured score, one per language or other column."""
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=score.dataset or re.sub(r"\W+", "-", score.benchmark).lower(),
            dataset_name=f"{score.benchmark} ({key})",
            dataset_config=key,
            dataset_split=score.split,
            metric_type=re.sub(r"\W+", "_", score.metric).lower(),
            metric_name=score.metric,
            metric_value=value,
        )
        for key, value in score.values.items()
    ]


def _table(scores: Sequence[Score], languages: Sequence[str]) -> list[list[str]]:
    """Rows of a table with one column per language, then the other columns; the first row is the head."""
    if not scores:
        return []
    known = [code for code in languages if any(code in score.values for score in scores)]
    columns = [*known, *dict.fromkeys(key for score in scores for key in score.values if key not in languages)]
    rows = [["benchmark", "metric", *columns]]
    for score in scores:
        title = f"{score.benchmark}, {score.split}" if score.split else score.benchmark
        cells = [f"{score.values[key]:.{score.decimals}f}" if key in score.values else "" for key in columns]
        rows.append([title, score.metric, *cells])
    return rows


def _architecture(config: ParrotConfig, parameters: int | None) -> dict[str, str]:
    """What the model is made of, in words, by part."""
    vision, text = config.vision_config, config.text_config
    assert vision is not None and text is not None and not isinstance(vision, dict) and not isinstance(text, dict)
    experts = config.num_language_experts
    kind = {
        "swiglu": f"SwiGLU with {config.expert_intermediate_size} hidden units",
        "mlp": f"two linear layers with {config.expert_intermediate_size} hidden units",
    }[config.expert_type]
    active = config.num_active_experts or experts
    scope = {
        "turn": "the text of the turn that carries the image",
        "prompt": "all text of the prompt that is not an answer",
    }[config.routing_scope]
    parts = {
        "vision tower": f"{vision.model_type}, {vision.num_hidden_layers} layers of width {vision.hidden_size}, "
        f"{vision.image_size} px in patches of {vision.patch_size} px; output of layer {config.vision_feature_layer}",
        "projector": f"two linear layers with {config.projector_hidden_act.upper()}",
        "language experts": f"{experts}, each {kind}; {active} active per image, routed by {scope}"
        if experts
        else "none (the architecture of LLaVA)",
        "language model": f"{text.model_type}, {text.num_hidden_layers} layers of width {text.hidden_size}, "
        f"vocabulary of {text.vocab_size}",
        "visual tokens per image": str(config.image_seq_length),
    }
    if parameters:
        parts["parameters"] = f"{parameters:,}"
    return parts


def _count(folder: Path) -> int:
    """Number of parameters in a folder's safetensors files."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())
    return total


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # the code is on the path, but not installed
            versions[package] = "not installed"
    return versions
