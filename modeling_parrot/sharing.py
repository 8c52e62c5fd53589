"""Uploads a checkpoint to the Hub whole: weights, configuration, code, processor and card, and nothing else."""

import json
import os
import re
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports


_NEEDED = {
    "config.json": "save the model with `model.save_pretrained(folder)`",
    "processor_config.json": "save the processor with `processor.save_pretrained(folder)`",
    "tokenizer.json": "save the processor with `processor.save_pretrained(folder)`",
    "tokenizer_config.json": "save the processor with `processor.save_pretrained(folder)`",
    "README.md": "write the card with `modeling_parrot.model_card.write_model_card(folder, ...)`",
}
# Further files of a processor or a model, which one checkpoint has and another has not.
_ALLOWED = (
    "generation_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
)
_AUTO_CLASSES = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
_SNIPPET_ID = re.compile(r'^model_id = ".*"$', flags=re.MULTILINE)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def share(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model, processor, code and card",
) -> str:
    """
    Uploads a checkpoint with its processor, code and model card to the Hub.

    Only the files that [`shareable_files`] lists go up: no optimizer states, no training arguments, no intermediate
    checkpoints. The card's usage snippet is set to `repo_id` first. Log in before, with `hf auth login`.

    Args:
        folder: holds what `model.save_pretrained`, `processor.save_pretrained` (or a `Trainer`) and
            `write_model_card` wrote.
        repo_id: "name" or "owner/name"; made if it does not exist.
        private: of a new repository; by default as the account says.
        token: to use instead of the one from the login.
        revision: branch to upload to.

    Returns:
        The repository's address.

    Raises:
        ValueError: the folder is not complete; the message lists everything that is missing. Nothing was uploaded.
    """
    folder = Path(folder)
    files = shareable_files(folder)
    api = HfApi(token=token)
    repository = api.create_repo(repo_id, private=private, exist_ok=True)
    card = folder / "README.md"
    card.write_text(
        _SNIPPET_ID.sub(f'model_id = "{repository.repo_id}"', card.read_text(encoding="utf-8")), encoding="utf-8"
    )
    api.upload_folder(
        repo_id=repository.repo_id,
        folder_path=folder,
        allow_patterns=files,
        revision=revision,
        commit_message=commit_message,
    )
    return str(repository)


def shareable_files(folder: str | os.PathLike) -> list[str]:
    """
    The files of a checkpoint that others need, relative to its folder, sorted.

    Raises:
        ValueError: something is missing or broken: configuration, code, weights, processor or card. All problems are
            listed, each with what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the one that `save_pretrained` wrote to.")
    problems = [f"{name} is missing: {cure}" for name, cure in _NEEDED.items() if not (folder / name).is_file()]
    files = {name for name in (*_NEEDED, *_ALLOWED) if (folder / name).is_file()}
    for collect in (_code_files, _weight_files, _card_files):
        found, wrong = collect(folder)
        files.update(found)
        problems.extend(wrong)
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise ValueError(f"{folder} cannot be shared yet:{listed}")
    return sorted(files)


def _code_files(folder: Path) -> tuple[set[str], list[str]]:
    """The modules that the configuration names, and what they import from beside them."""
    if not (folder / "config.json").is_file():
        return set(), []
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    if absent := [name for name in _AUTO_CLASSES if name not in auto_map]:
        return set(), [
            f"config.json has no `auto_map` for {', '.join(absent)}, so the checkpoint would not load with "
            "`trust_remote_code=True`: save the model again with `modeling_parrot` imported"
        ]
    if elsewhere := sorted({target for target in auto_map.values() if "--" in target}):
        return set(), [
            f"its code lies in other repositories ({', '.join(elsewhere)}): save it with `modeling_parrot` imported"
        ]
    files: set[str] = set()
    waiting = [target.split(".")[0] for target in auto_map.values()]
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in files and (folder / name).is_file():
            waiting += get_relative_imports(folder / name)
        files.add(name)
    absent = sorted(name for name in files if not (folder / name).is_file())
    return files, [f"{name} is missing, a part of its code: save the model again" for name in absent]


def _weight_files(folder: Path) -> tuple[set[str], list[str]]:
    """The safetensors files, whole ones only, and the index of sharded ones."""
    if (folder / "model.safetensors").is_file():
        files, shards = {"model.safetensors"}, {"model.safetensors"}
    elif (index := folder / "model.safetensors.index.json").is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = {index.name, *shards}
    elif (folder / "adapter_config.json").is_file():
        return set(), ["it holds a LoRA adapter only: merge it (`merge_and_unload()`) and save the whole model"]
    else:
        return set(), ["model.safetensors is missing: save the model with `model.save_pretrained(folder)`"]
    problems = []
    for name in sorted(shards):
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (FileNotFoundError, SafetensorError) as error:
            problems.append(f"{name} is missing or not complete ({error}): save the model again")
    return files, problems


def _card_files(folder: Path) -> tuple[set[str], list[str]]:
    """The pictures that the card shows; complains about a card that the Hub could not sort."""
    path = folder / "README.md"
    if not path.is_file():
        return set(), []
    card = ModelCard.load(path)
    problems = [
        f"README.md has no `{key}` in its front matter: write the card with `write_model_card`"
        for key in ("pipeline_tag", "library_name", "license", "language")
        if not getattr(card.data, key, None)
    ]
    pictures = {link for link in _PICTURE.findall(card.text) if "://" not in link}
    for link in sorted(pictures):
        target = (folder / link).resolve()
        if not target.is_file() or not target.is_relative_to(folder.resolve()):
            problems.append(f"README.md shows {link}, which is not in the folder: put it there or take it out")
    return pictures, problems
