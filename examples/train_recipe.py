"""What a training recipe may say, and how it is read. See `examples/train.py`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser, TrainingArguments

from parrot_data import DataSource, Mixture


CONFIGURATION = Path(__file__).resolve().parents[1] / "configuration"
# Every projection of the language model, and nothing of the vision tower or the experts, which have modules of the
# same names.
LORA_TARGETS = r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"

# Keys of a training recipe whose values are entries of their own.
NESTED = ("--train_data", "--eval_data", "--adapter", "--lora", "--quantization")


@dataclass
class ModelArguments:
    """Where the model comes from: a checkpoint, or a vision tower and a language model (directly or by a preset)."""

    checkpoint: str | None = field(
        default=None, metadata={"help": "Folder or id of a Parrot or LLaVA checkpoint to continue from."}
    )
    preset: str | None = field(
        default=None, metadata={"help": "Name of a file in configuration/presets, or a path to such a file."}
    )
    vision_tower: str | None = field(default=None, metadata={"help": "Folder or id of a vision tower."})
    language_model: str | None = field(default=None, metadata={"help": "Folder or id of a causal language model."})
    chat_template: str | None = field(default=None, metadata={"help": "chatml, vicuna, or a Jinja template."})
    adapter: dict = field(
        default_factory=dict, metadata={"help": "Fields of ParrotConfig, such as num_language_experts."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa or flash_attention_2."})
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata={"help": "Type of frozen weights. auto: bfloat16 with bf16 on unsharded GPUs, else float32."},
    )
    stage: Literal["alignment", "instruction"] = field(default="instruction", metadata={"help": "What is trained."})
    router_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the router; by default learning_rate."}
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of projector and experts; by default learning_rate."}
    )
    lora: dict | None = field(
        default=None,
        metadata={"help": "Arguments of peft.LoraConfig. The projector and the experts are then trained in full."},
    )
    quantization: dict | None = field(
        default=None,
        metadata={
            "help": "Arguments of transformers.BitsAndBytesConfig, for the language model under `lora` (QLoRA)."
        },
    )
    merge_lora: bool = field(
        default=False,
        metadata={"help": "Also write a whole checkpoint with the adapter merged, to output_dir/merged."},
    )


@dataclass
class DataArguments:
    """Which rows are used. Sources are described by `parrot_data.DataSource`, mixtures by `parrot_data.Mixture`.

    `train_data` is a list of sources, or a mixture: `mixture` names a file in configuration/mixtures (or a path), and
    the keys beside it come in place of the file's.
    """

    train_data: list[dict] = field(
        default_factory=list, metadata={"help": "Sources, mixed by their weights, or the keys of a mixture."}
    )
    eval_data: dict = field(default_factory=dict, metadata={"help": "Name to source; logged as eval_NAME_loss."})
    eval_by: list[str] = field(
        default_factory=list,
        metadata={"help": "language, task, or both: a loss for each value of these columns, beside no other."},
    )
    max_length: int | None = field(default=None, metadata={"help": "Longer rows are cut here, in text, in tokens."})
    on_bad_image: Literal["error", "skip"] = field(
        default="error", metadata={"help": "skip: leave out rows whose image cannot be read, and count them."}
    )
    on_long_row: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "skip: leave out rows whose images or question alone are longer than max_length."},
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Rows per step over all processes; sets gradient_accumulation_steps."}
    )


class RecipeParser(HfArgumentParser):
    """Errors of the command line in two lines instead of the list of all arguments."""

    def error(self, message: str):
        raise ValueError(f"{message}. Usage: train.py RECIPE.yaml [--argument VALUE ...]")


def read_recipe(arguments: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Reads `RECIPE.yaml [--argument VALUE ...]`. What the command line says wins over the recipe.

    `--train_data.0.path FILE` or `--lora.r 8` change one value inside a nested entry, and
    `--train_data '[{path: FILE}]'` replaces the entry.

    Raises:
        ValueError, FileNotFoundError: no or unreadable recipe, an unknown key (with the nearest known one), a wrong
            type, or settings that exclude each other.
    """
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("The first argument must be a recipe: train.py RECIPE.yaml [--argument VALUE ...]")
    path = Path(arguments[0])
    recipe = read_yaml(path)
    rest = set_nested(recipe, arguments[1:])

    kinds: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = RecipeParser(kinds, allow_abbrev=False)
    known = [item.name for kind in kinds for item in fields(kind) if item.init]
    for key in recipe:
        check_key(key, known, str(path))
    # As arguments, single values get the parser's checks of type and choice; the command line comes after them and wins.
    single = {key: value for key, value in recipe.items() if isinstance(value, (str, bool, int, float))}
    parser.set_defaults(**{key: value for key, value in recipe.items() if key not in single})
    model_arguments, data_arguments, training_arguments = parser.parse_args_into_dataclasses(
        [f"--{key}={value}" for key, value in single.items()] + rest, look_for_args_file=False
    )
    apply_preset(model_arguments)
    sources(data_arguments)
    if not data_arguments.train_data:
        raise ValueError(f"{path}: `train_data` is missing. Give at least one source with a `path`.")
    apply_global_batch_size(data_arguments, training_arguments)
    return model_arguments, data_arguments, training_arguments


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, with errors that name file and line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist (searched from {Path.cwd()}).")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, found {type(content).__name__}.")
    return content


def check_key(key: str, known: list[str], where: str) -> None:
    if key not in known:
        near = get_close_matches(str(key), known, n=1)
        raise ValueError(f"{where}: unknown key `{key}`." + (f" Did you mean `{near[0]}`?" if near else ""))


def set_nested(recipe: dict[str, Any], arguments: list[str], nested: Sequence[str] = NESTED) -> list[str]:
    """Applies `--a.b VALUE` and, for `nested` entries, `--a YAML` to the recipe. Returns the other arguments."""
    rest, position = [], 0
    while position < len(arguments):
        name, is_joined, value = arguments[position].partition("=")
        position += 1
        if not (name in nested or name.startswith("--") and "." in name):
            rest.append(arguments[position - 1])
            continue
        if not is_joined:
            if position == len(arguments):
                raise ValueError(f"{name} needs a value.")
            value = arguments[position]
            position += 1
        *parents, last = name[2:].split(".")
        target: Any = recipe
        for parent in parents:
            if isinstance(target, list) and parent.isdigit() and int(parent) < len(target):
                target = target[int(parent)]
            elif isinstance(target, dict):
                target[parent] = target.get(parent) or {}
                target = target[parent]
            else:
                raise ValueError(f"{name}: the recipe has no entry {parent!r} there.")
        if not isinstance(target, dict):
            raise ValueError(f"{name}: only values inside a nested entry can be set this way.")
        target[last] = yaml.safe_load(value)
    return rest


def apply_preset(arguments: ModelArguments) -> None:
    """Fills in what the preset says and the recipe does not, and checks that the model is given in one way only."""
    if arguments.preset is not None:
        path = named_file(arguments.preset, "presets")
        preset = read_yaml(path)
        for key in preset:
            check_key(key, ["vision_tower", "language_model", "chat_template", "adapter"], str(path))
        arguments.adapter = {**preset.get("adapter", {}), **arguments.adapter}
        if arguments.checkpoint is None:
            for key in ("vision_tower", "language_model", "chat_template"):
                if getattr(arguments, key) is None:
                    setattr(arguments, key, preset.get(key))
    is_composed = arguments.vision_tower is not None and arguments.language_model is not None
    if (arguments.checkpoint is not None) == is_composed or (
        arguments.checkpoint is not None and (arguments.vision_tower or arguments.language_model)
    ):
        raise ValueError(
            "The recipe must name the model in one way: `checkpoint`, or `vision_tower` with `language_model`, or a "
            "`preset` that names these two."
        )
    if arguments.lora is not None and arguments.stage != "instruction":
        raise ValueError("`lora` belongs to the instruction stage: in the alignment stage only the projector trains.")
    if arguments.merge_lora and arguments.lora is None:
        raise ValueError("`merge_lora` needs `lora`.")
    if arguments.quantization is not None and (arguments.lora is None or arguments.checkpoint is None):
        raise ValueError(
            "`quantization` needs `lora`, because quantised weights cannot be trained themselves, and a `checkpoint`, "
            "such as that of the alignment stage, to quantise."
        )


def sources(arguments: DataArguments) -> tuple[list[DataSource] | Mixture, dict[str, DataSource]]:
    """The training sources or their mixture, and the evaluation sources by name, checked."""
    train: list[DataSource] | Mixture
    if isinstance(arguments.train_data, dict):
        train = mixture(arguments.train_data)
    else:
        train = [source(entry, f"train_data, entry {number}") for number, entry in enumerate(arguments.train_data)]
    evaluation = {name: source(entry, f"eval_data, {name}") for name, entry in arguments.eval_data.items()}
    for name, entry in evaluation.items():
        if entry.streaming:
            raise ValueError(
                f"eval_data, {name}: an evaluation set cannot be a stream. Use `max_rows` to keep it short."
            )
    for column in arguments.eval_by:
        if column not in ("language", "task"):
            raise ValueError(f"eval_by: {column!r} is neither language nor task.")
    return train, evaluation


def source(entry: Any, where: str) -> DataSource:
    if not isinstance(entry, dict) or "path" not in entry:
        raise ValueError(f"{where} must be an entry with a `path`, is {entry!r}.")
    for key in entry:
        check_key(key, [item.name for item in fields(DataSource)], where)
    return DataSource(**entry)


def mixture(entry: dict[str, Any]) -> Mixture:
    """A mixture from the keys of `train_data`, on top of those of the file that its `mixture` names."""
    where, content = "train_data", {}
    if "mixture" in entry:
        path = named_file(str(entry["mixture"]), "mixtures")
        where, content = f"train_data on {path}", read_yaml(path)
    content |= {key: value for key, value in entry.items() if key != "mixture"}
    for key in content:
        check_key(key, [item.name for item in fields(Mixture)], where)
    if not isinstance(content.get("sources"), dict):
        raise ValueError(f"{where}: a mixture needs `sources`, a name and an entry with a `path` for each.")
    if "languages" not in content:
        raise ValueError(f"{where}: a mixture needs `languages`, a share for each.")
    content["sources"] = {name: source(one, f"{where}, source {name}") for name, one in content["sources"].items()}
    return Mixture(**content)


def named_file(name: str, kind: str) -> Path:
    """A YAML file by its path, or by its name in a folder of `configuration`."""
    path = Path(name) if Path(name).suffix == ".yaml" else CONFIGURATION / kind / f"{name}.yaml"
    if not path.is_file():
        available = sorted(file.stem for file in (CONFIGURATION / kind).glob("*.yaml"))
        what = {"presets": "Preset", "mixtures": "Mixture", "data": "Recipe"}[kind]
        raise FileNotFoundError(f"{what} {name} does not exist. Available: {', '.join(available)}.")
    return path


def apply_global_batch_size(data: DataArguments, training: TrainingArguments) -> None:
    """Sets the accumulation that gives the wanted batch with the processes there are."""
    if data.global_batch_size is None:
        return
    per_pass = training.per_device_train_batch_size * training.world_size
    if data.global_batch_size % per_pass:
        raise ValueError(
            f"global_batch_size={data.global_batch_size} is no multiple of {training.per_device_train_batch_size} rows "
            f"per device times {training.world_size} process(es). Change per_device_train_batch_size."
        )
    training.gradient_accumulation_steps = data.global_batch_size // per_pass


if __name__ == "__main__":  # shows what a recipe comes to
    print(*read_recipe(sys.argv[1:]), sep="\n")
