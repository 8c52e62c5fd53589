"""
Turns a checkpoint of PARROT's authors (AIDC-AI/Parrot-7B, AIDC-AI/Parrot-14B) into a Parrot of this project.

    python examples/convert_official.py --checkpoint AIDC-AI/Parrot-7B \
        --vision-tower openai/clip-vit-large-patch14-336 --output parrot-7b

The result computes what the authors' code computes: their residual, their routing text ("prompt"), their prompt, their
pixels. Weights are read one at a time and written in shards, so memory holds one shard, not the model. Everything is
checked before the first file is written.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, GenerationConfig, Qwen2Config, Qwen2Tokenizer
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils import logging

from modeling_parrot import ParrotConfig, ParrotForConditionalGeneration, ParrotProcessor
from processing_parrot import CHAT_TEMPLATES, IMAGE_TOKEN


MAX_SHARD_BYTES = 5 * 10**9

# Our parameters' names and theirs, by prefix. The experts are the exception: see `official_names`.
OFFICIAL_PREFIXES = {
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.language_experts.router.": "model.moe_model.gate.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
EXPERT_LAYERS = ("gate_proj", "up_proj", "down_proj")
EXPERT_KEY = re.compile(r"model\.moe_model\.(gate|experts\.\d+\.(gate|up|down)_proj)\.weight")
# Buffers that old versions of transformers saved; they are computed.
COMPUTED_KEY = re.compile(r"model\.(vision_tower\..*\.position_ids|layers\.\d+\.self_attn\.rotary_emb\.inv_freq)")

# What of their config is the language model's. `use_cache` is not: their training script switches it off for good.
QWEN2_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "tie_word_embeddings", "rope_theta", "rope_scaling", "use_sliding_window", "sliding_window",
    "max_window_layers", "attention_dropout", "bos_token_id",
)  # fmt: skip

# Their code sets these itself, whatever the tokenizer's own files say.
END_OF_TURN, PADDING = "<|im_end|>", "<|endoftext|>"


class Place(NamedTuple):
    """Where one of their tensors goes: our parameter, its number among the parameter's parts, and its shape."""

    target: str
    position: int
    shape: tuple[int, ...]


# ---------------------------------------------------------------------------------------- reading


def local_folder(name_or_path: str | os.PathLike, *patterns: str) -> Path:
    """The folder itself, or a snapshot of the Hub's repository of that id with the files that match."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=list(patterns)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{name_or_path} is neither a folder nor a repository that can be fetched from the Hub "
            f"({str(error).splitlines()[0]}). Give the folder's path, or an id such as AIDC-AI/Parrot-7B."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}. Check the path and that nothing is missing there.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Fetch the file again.") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Their config.json; every setting that cannot be converted is refused by name."""
    path = folder / "config.json"
    settings = read_json(path)
    found = settings.get("model_type")
    if found != "parrot_qwen2":
        hint = " It is in this project's format already." if found == "parrot" else ""
        raise ValueError(
            f"{path} has model_type {found!r}; a checkpoint of the PARROT authors has 'parrot_qwen2'.{hint}"
        )
    problems = []
    # Where a setting is absent, their code's own default holds.
    if (projector := settings.get("mm_projector_type", "linear")) != "mlp2x_gelu":
        problems.append(f"mm_projector_type {projector!r}: only 'mlp2x_gelu' (two layers and GELU) can be converted")
    if (feature := settings.get("mm_vision_select_feature", "patch")) not in ("patch", "cls_patch"):
        problems.append(f"mm_vision_select_feature {feature!r}: only 'cls_patch' and 'patch' can be converted")
    if (ratio := settings.get("image_aspect_ratio")) not in ("pad", "square", None):
        problems.append(f"image_aspect_ratio {ratio!r}: only 'pad', 'square' and none can be converted")
    needed = ["vocab_size", "hidden_size", "mm_vision_select_layer"]
    if has_experts(settings):
        needed += ["num_experts", "moe_intermediate_size"]
        if settings["moe_hidden_size"] != settings.get("hidden_size"):
            problems.append(f"moe_hidden_size {settings['moe_hidden_size']}: it must be equal to hidden_size")
    problems += [f"{name} is {settings.get(name)!r}: it must be a number" for name in needed
                 if not isinstance(settings.get(name), int)]  # fmt: skip
    if problems:
        raise ValueError(_listed(f"{path} cannot be converted", problems))
    return settings


def has_experts(settings: dict[str, Any]) -> bool:
    """Whether their code runs the experts: it builds them if there is a `moe_hidden_size`, `use_moe` switches them."""
    return "moe_hidden_size" in settings and settings.get("use_moe", True)


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's weight files, safetensors or .bin, one or several by an index."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        single = folder / index.removesuffix(".index.json")
        if single.is_file():
            return [single]
        if (folder / index).is_file():
            files = sorted(set(read_json(folder / index)["weight_map"].values()))
            if lost := [name for name in files if not (folder / name).is_file()]:
                raise FileNotFoundError(_listed(f"{folder} lacks weight files that {index} names", lost))
            return [folder / name for name in files]
    raise FileNotFoundError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, and no index of either."
    )


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one file, one after the other; those of a .bin are mapped from disk, not loaded."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    yield key, file.get_tensor(key)
        else:
            mapped = zipfile.is_zipfile(path)  # torch's format since 1.6; older files can only be loaded whole
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=mapped).items()
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({reason}). Fetch the file again.") from error


def read_layout(files: list[Path]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor, without keeping one."""
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for path in files:
        for key, tensor in read_tensors(path):
            if key in layout:
                raise ValueError(f"{path} holds {key}, and so does an earlier weight file. Remove stale files.")
            layout[key] = (tuple(tensor.shape), tensor.dtype)
    return layout


# ---------------------------------------------------------------------------------------- processor and config


def build_processor(checkpoint: Path, tower: Path, settings: dict[str, Any]) -> ParrotProcessor:
    """Their tokenizer with `<image>` added, their ChatML prompt, and their way from an image to pixels."""
    for path in (tower / "preprocessor_config.json", checkpoint / "tokenizer_config.json"):
        read_json(path)
    vision_config = read_tower_config(tower)
    layer, layers = settings["mm_vision_select_layer"], vision_config.num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise ValueError(f"mm_vision_select_layer is {layer}, but the tower in {tower} has {layers} layers.")
    image_processor = LlavaImageProcessorPil.from_pretrained(tower, do_pad=settings.get("image_aspect_ratio") == "pad")
    side, crop = vision_config.image_size, image_processor.crop_size
    if not image_processor.do_center_crop or (crop["height"], crop["width"]) != (side, side):
        raise ValueError(
            f"{tower / 'preprocessor_config.json'} does not crop images to the tower's {side} x {side} pixels "
            f"(do_center_crop {image_processor.do_center_crop}, crop_size {dict(crop)}). Give the tower's own folder."
        )

    # Their padding side is "right", for training; batched generation needs left.
    tokenizer = Qwen2Tokenizer.from_pretrained(checkpoint, padding_side="left")
    if lost := [token for token in ("<|im_start|>", END_OF_TURN, PADDING) if token not in tokenizer.get_vocab()]:
        raise ValueError(_listed(f"The tokenizer in {checkpoint} lacks tokens of the ChatML prompt", lost))
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token = END_OF_TURN, PADDING, PADDING
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return ParrotProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,  # type: ignore[arg-type]  # CLIP's is one number
        num_additional_image_tokens=1,  # CLIP's CLS token
        vision_feature_select_strategy=select_strategy(settings),
        routing_scope="prompt",
        chat_template=CHAT_TEMPLATES["chatml"],
    )


def select_strategy(settings: dict[str, Any]) -> Literal["full", "default"]:
    return "full" if settings.get("mm_vision_select_feature", "patch") == "cls_patch" else "default"


def read_tower_config(tower: Path) -> CLIPVisionConfig:
    kind = read_json(tower / "config.json").get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{tower} is a {kind!r}; the authors' checkpoints have a CLIP tower.")
    return CLIPVisionConfig.from_pretrained(tower)


def build_config(
    settings: dict[str, Any], vision_config: CLIPVisionConfig, processor: ParrotProcessor, dtype: torch.dtype
) -> ParrotConfig:
    """Our config with the meaning theirs has in the authors' code."""
    tokenizer = processor.tokenizer
    text_settings = {name: settings[name] for name in QWEN2_SETTINGS if name in settings}
    text_config = Qwen2Config.from_dict(
        {**text_settings, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    )
    # The placeholder needs a row of the embedding; Qwen's has many more rows than the tokenizer has tokens.
    text_config.vocab_size = max(text_config.vocab_size, processor.image_token_id + 1)
    experts: dict[str, Any] = {"num_language_experts": 0}
    if has_experts(settings):
        experts = {
            "num_language_experts": settings["num_experts"],
            "num_active_experts": None,  # their `moe_top_k` is stored and never used
            "expert_type": "swiglu",
            "expert_intermediate_size": settings["moe_intermediate_size"],
            "expert_scale": 1.0,
            "residual_scale": settings.get("moe_weight", 1.0) if settings.get("use_moe_residual", True) else 0.0,
        }
    vision_config.dtype = text_config.dtype = dtype
    return ParrotConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=processor.image_token_id,
        image_seq_length=processor.num_image_tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=settings["mm_vision_select_layer"],
        vision_feature_select_strategy=select_strategy(settings),
        routing_scope="prompt",
        architectures=["ParrotForConditionalGeneration"],
        dtype=dtype,
        **experts,
    )


# ---------------------------------------------------------------------------------------- weights


def official_names(name: str, config: ParrotConfig) -> list[str]:
    """Their names of the tensors that make up one of our parameters, in order."""
    for layer in EXPERT_LAYERS:
        if name == f"model.language_experts.{layer}.weight":
            return [f"model.moe_model.experts.{i}.{layer}.weight" for i in range(config.num_language_experts)]
    ours, theirs = next(item for item in OFFICIAL_PREFIXES.items() if name.startswith(item[0]))
    return [theirs + name.removeprefix(ours)]


def plan_weights(config: ParrotConfig, vocabulary: int) -> dict[str, Place]:
    """Each of their tensors that is needed, by its name, and its place; `vocabulary` is the rows theirs has."""
    with torch.device("meta"):
        model = ParrotForConditionalGeneration(config)
    tied = set(model.all_tied_weights_keys)
    plan = {}
    for name, parameter in model.state_dict().items():
        if name in tied:
            continue
        names, shape = official_names(name, config), list(parameter.shape)
        shape[_joined_dimension(name)] //= len(names)
        if _is_vocabulary(name):
            shape[0] = vocabulary
        plan.update({theirs: Place(name, i, tuple(shape)) for i, theirs in enumerate(names)})
    return plan


def _is_vocabulary(name: str) -> bool:
    return name in ("model.language_model.embed_tokens.weight", "lm_head.weight")


def _joined_dimension(name: str) -> int:
    """The experts' hidden units lie side by side: rows of gate and up projections, columns of the down projection."""
    return 1 if name.endswith("down_proj.weight") else 0


def droppable(key: str, config: ParrotConfig) -> bool:
    """Their tensors that have no effect: computed buffers, a tied head, experts that are switched off."""
    idle_expert = config.num_language_experts == 0 and EXPERT_KEY.fullmatch(key) is not None
    tied_head = config.tie_word_embeddings and key == "lm_head.weight"
    return COMPUTED_KEY.fullmatch(key) is not None or idle_expert or tied_head


def check_weights(plan: dict[str, Place], layout: dict[str, tuple], config: ParrotConfig, source: Path) -> list[str]:
    """
    Refuses a checkpoint that has not exactly the needed tensors, naming all that differ.

    Returns:
        The keys that are left out because they have no effect.
    """
    extra = sorted(layout.keys() - plan.keys())
    dropped = [key for key in extra if droppable(key, config)]
    problems = [f"missing: {key} {list(plan[key].shape)}" for key in plan if key not in layout]
    problems += [f"unknown: {key} {list(layout[key][0])}" for key in extra if key not in dropped]
    problems += [
        f"wrong shape: {key} is {list(layout[key][0])}, but its config and the tower's say {list(place.shape)}"
        for key, place in plan.items()
        if key in layout and layout[key][0] != place.shape
    ]
    if problems:
        raise ValueError(_listed(f"Weights in {source} do not fit its config; nothing was written", problems))
    return dropped


def load_tower(tower: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tower's own weights by our names, for a checkpoint that carries none."""
    loaded: Any = CLIPVisionModel.from_pretrained(tower, dtype=dtype, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(_listed(f"{tower} lacks weights of the vision tower", sorted(info["missing_keys"])))
    return {f"model.vision_tower.{key}": tensor for key, tensor in model.state_dict().items()}


def merge_parts(name: str, parts: list[torch.Tensor], rows: int, dtype: torch.dtype | None) -> torch.Tensor:
    """One of our parameters from theirs; an embedding without a free row gets one, the mean of the others."""
    parts = [part.to(dtype or part.dtype) for part in parts]
    if _is_vocabulary(name) and (free := rows - len(parts[0])) > 0:
        parts.append(parts[0].float().mean(0, keepdim=True).to(parts[0].dtype).expand(free, -1))
    return (torch.cat(parts, dim=_joined_dimension(name)) if len(parts) > 1 else parts[0]).contiguous()


def write_weights(
    files: list[Path],
    plan: dict[str, Place],
    tower: dict[str, torch.Tensor],
    rows: int,
    output: Path,
    dtype: torch.dtype | None,
) -> int:
    """
    Writes our parameters in shards of at most `MAX_SHARD_BYTES`, with an index; returns the bytes written.

    `tower` holds weights that are written as they are; `rows` is the size of our vocabulary.
    """
    expected = Counter(place.target for place in plan.values())
    waiting: dict[str, dict[int, torch.Tensor]] = {name: {} for name in expected}
    shard: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []
    total = 0

    def flush() -> None:
        shards.append(list(shard))
        save_file(shard, output / f"{len(shards):05d}.safetensors", metadata={"format": "pt"})
        shard.clear()

    def finished() -> Iterator[tuple[str, torch.Tensor]]:
        for path in files:
            for key, tensor in read_tensors(path):
                if key in plan:
                    target, position, _ = plan[key]
                    waiting[target][position] = tensor
                    if len(waiting[target]) == expected[target]:
                        parts = waiting.pop(target)
                        yield target, merge_parts(target, [parts[i] for i in sorted(parts)], rows, dtype)
        yield from tower.items()

    for name, tensor in finished():
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > MAX_SHARD_BYTES:
            flush()
        shard[name] = tensor
        total += tensor.nbytes
    flush()

    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (output / f"{number:05d}.safetensors").rename(output / file)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


# ---------------------------------------------------------------------------------------- the whole


def check_output(output: Path, needed_bytes: int = 0) -> None:
    """Refuses an output that is not a new or empty folder, cannot be written, or lies on a full disk."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"The output {output} exists and is not an empty folder. Give a new one.")
    parent = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"The output {output} cannot be made: {parent} is no folder that you may write to.")
    if (free := shutil.disk_usage(parent).free) < needed_bytes:
        raise ValueError(
            f"The output {output} needs {needed_bytes / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB left."
        )


def convert(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    vision_tower: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
) -> ParrotConfig:
    """
    Converts a checkpoint of the PARROT authors and says what was made.

    Args:
        checkpoint: folder or Hub id with config, tokenizer and weights (safetensors or .bin, in shards or not).
        output: a new or empty folder.
        vision_tower: folder or Hub id of the CLIP tower, for its config, its image settings, and its weights if the
            checkpoint carries none. By default what the checkpoint's config names.
        dtype: of all weights; by default each keeps its own.

    Returns:
        The config that was written.

    Raises:
        FileNotFoundError: a folder, repository or file does not exist.
        ValueError: the checkpoint is of another kind, its weights are not exactly those of its config, or the output
            cannot be written. Nothing was written.
    """
    output = Path(output)
    check_output(output)
    source = local_folder(checkpoint, "*.json", "*.txt", "*.safetensors", "*.bin")
    settings = read_settings(source)
    files = weight_files(source)
    layout = read_layout(files)

    tower_name = vision_tower or settings.get("mm_vision_tower")
    if tower_name is None:
        raise ValueError(f"The config of {source} names no vision tower. Give one with --vision-tower.")
    if vision_tower is None and (source / tower_name).is_dir():
        tower_name = source / tower_name
    tower = local_folder(tower_name, "*.json")
    processor = build_processor(source, tower, settings)

    kept = dtype or layout.get("model.embed_tokens.weight", ((), torch.float32))[1]
    config = build_config(settings, read_tower_config(tower), processor, kept)
    rows = config.text_config.vocab_size  # type: ignore[union-attr]
    plan = plan_weights(config, settings["vocab_size"])
    tower_weights: dict[str, torch.Tensor] = {}
    prefix = OFFICIAL_PREFIXES["model.vision_tower."]
    if not any(key.startswith(prefix) for key in layout):
        plan = {key: place for key, place in plan.items() if not key.startswith(prefix)}
        tower_weights = load_tower(local_folder(tower_name, "*.json", "*.safetensors", "*.bin"), kept)
    dropped = check_weights(plan, layout, config, source)
    sizes = [prod(layout[key][0]) * (dtype or layout[key][1]).itemsize for key in plan]
    check_output(output, sum(sizes) + sum(tensor.nbytes for tensor in tower_weights.values()))

    try:
        output.mkdir(parents=True, exist_ok=True)
        written = write_weights(files, plan, tower_weights, rows, output, dtype)
        processor.save_pretrained(output)
        GenerationConfig(
            bos_token_id=settings.get("bos_token_id"),
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        ).save_pretrained(output)
        config.save_pretrained(output)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)  # a part of a checkpoint is worth nothing
        raise
    report(source, tower, output, config, settings, written, dropped, carried=not tower_weights)
    return config


def report(source, tower, output, config, settings, written, dropped, carried) -> None:
    """Prints what was made, what was left out, and how to load it."""
    experts = "none: features pass from the projector to the language model unchanged"
    if config.num_language_experts:
        experts = f"{config.num_language_experts} x {config.expert_intermediate_size}, SwiGLU, all active, output + "
        experts += f"{config.residual_scale:g} x projected features"
    print(f"Converted {source} to {output}: {written / 1e9:.3f} GB, {str(config.dtype).removeprefix('torch.')}")
    print(f"  language experts: {experts}")
    print(f"  image: {config.vision_config.image_size} px, {config.image_seq_length} tokens, tower layer "
          f"{config.vision_feature_layer}; tower weights from {'the checkpoint' if carried else tower}")  # fmt: skip
    if config.num_language_experts and config.vision_feature_select_strategy == "default":
        print("  note: the authors' code cannot run experts on patch features alone. Here the CLS token guides the "
              "router, as in the paper, and the language model sees the patches.")  # fmt: skip
    if config.text_config.vocab_size > settings["vocab_size"]:
        print(f"  note: the embedding had no free row for {IMAGE_TOKEN}; it and the head grew to "
              f"{config.text_config.vocab_size} rows, so logits have new columns.")  # fmt: skip
    if dropped:
        print(f"  left out, without effect: {len(dropped)} tensors, e.g. {dropped[0]}")
    print("Load it with:")
    print("  from transformers import AutoModelForImageTextToText, AutoProcessor")
    print(f"  model = AutoModelForImageTextToText.from_pretrained({str(output)!r}, trust_remote_code=True)")
    print(f"  processor = AutoProcessor.from_pretrained({str(output)!r}, trust_remote_code=True)")


def _listed(what: str, items: list[str]) -> str:
    return f"{what}:\n" + "\n".join(f"  {item}" for item in items)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder or Hub id of the authors' checkpoint")
    parser.add_argument("--vision-tower", help="folder or Hub id of its CLIP tower; default: what its config names")
    parser.add_argument("--output", required=True, help="new or empty folder for the result")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as in the checkpoint")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        convert(
            options.checkpoint,
            options.output,
            options.vision_tower,
            getattr(torch, options.dtype) if options.dtype else None,
        )
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
