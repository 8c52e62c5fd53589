"""A saved checkpoint for programs that use one; for those that train, the parts of a model and recipes on top of them."""

from types import SimpleNamespace

import pytest
import tiny_data
import tiny_models
from tiny_runs import EXPERTS, settings, write_recipe


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """The folder of a model with three experts, with its processor."""
    folder = tmp_path_factory.mktemp("checkpoint") / "mine"
    model, processor = tiny(num_language_experts=3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tower, a language model, 24 rows in two languages with their images, and a stage-1 checkpoint."""
    import train

    folder = tmp_path_factory.mktemp("parts")
    tiny_models.save_tower(folder / "tower")
    tiny_models.save_language_model(folder / "lm")
    data = tiny_data.write(folder / "data", tiny_data.rows(24))
    content = settings(folder, data, folder / "stage1", stage="alignment", adapter={"num_language_experts": 0})
    content |= {"eval_data": {"test": content["train_data"][0] | {"max_rows": 8}}, "eval_by": ["language"]}
    content |= {"eval_strategy": "epoch", "learning_rate": 1e-2}
    train.main([write_recipe(folder / "stage1.yaml", content)])
    return SimpleNamespace(folder=folder, data=data, stage1=folder / "stage1")


@pytest.fixture
def recipe(parts, tmp_path):
    """`recipe(name, key=value...)` writes a recipe of the instruction stage on top of stage 1; gives its path."""

    def write(name="run", **changes):
        content = settings(parts.folder, parts.data, tmp_path / name)
        if "vision_tower" not in changes:
            content |= {"checkpoint": str(parts.stage1), "adapter": {"num_language_experts": 4, **EXPERTS}}
            content |= {"vision_tower": None, "language_model": None}
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        return write_recipe(tmp_path / f"{name}.yaml", content)

    return write
