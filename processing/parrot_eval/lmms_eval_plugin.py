"""Where lmms-eval finds `--model parrot`: its entry point `lmms_eval.models`, named in pyproject.toml."""

from typing import Any


def manifests() -> list[Any]:
    # Called while lmms-eval is still being imported, so nothing of it may be imported at the top of this file.
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="parrot", simple_class_path="parrot_eval.lmms_eval_model.ParrotLmmsEval")]
