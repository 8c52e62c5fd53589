"""
Serving with vLLM: an image's visual tokens belong to its question, in every cache.

The first part needs no vLLM. The second runs vLLM's own classes, and the last test its engine; they are skipped where
vLLM is not installed, or has no device.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_models import assistant, encode, picture, user

from processing_parrot import CHAT_TEMPLATES


QUESTION, OTHER = "What is in the picture?", "Resimde ne var?"


def prompt_of(processor, *messages) -> str:
    return str(processor.apply_chat_template(list(messages), add_generation_prompt=True))


# ---------------------------------------------------------------------- without vLLM


CHATS = {
    "one": [user(QUESTION, picture(0))],
    "two images": [user(QUESTION, picture(0), picture(1))],
    "chat": [user("图中是什么？", picture(0)), assistant("a cat"), user(OTHER, picture(1))],
    "no text": [user("", picture(0))],
}


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("scope", ["turn", "prompt"])
@pytest.mark.parametrize("language_model", ["qwen2", "llama"])
def test_rows_without_images_are_those_of_the_whole_call(tiny, language_model, scope, name):
    """ChatML and Vicuna; from text, and from the ids that an engine has."""
    chat = CHATS[name]
    _, processor = tiny(language_model=language_model, routing_scope=scope)
    inputs = encode(processor, chat)
    masks = inputs["routing_attention_mask"].bool()
    expected = [row[mask].tolist() for row, mask in zip(inputs["routing_input_ids"], masks, strict=True)]
    text = prompt_of(processor, *chat)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.routing_rows(text) == processor.routing_rows(processor.tokenizer.decode(ids)) == expected
    assert any(expected) != (name == "no text" and scope == "turn")


def test_a_growing_chat_keeps_the_rows_of_its_images(tiny):
    _, processor = tiny()
    start = [user(QUESTION, picture(0))]
    first = processor.routing_rows(prompt_of(processor, *start))
    second = processor.routing_rows(prompt_of(processor, *start, assistant("a cat"), user(OTHER, picture(1))))
    assert len(first) == 1 and first[0] and second[0] == first[0] != second[1]


def test_an_engine_that_hides_the_question_is_refused(tiny):
    _, processor = tiny()
    with pytest.raises(ValueError, match="without their question.*plugin"):
        processor(images=[picture(0)], text="<image>", return_text_replacement_offsets=True)
    processor(images=[picture(0)], text="<image>", return_text_replacement_offsets=True, routing_text="")
    processor.routing_scope = None  # as without experts
    processor(images=[picture(0)], text="<image>", return_text_replacement_offsets=True)


def test_the_entry_point_leads_to_the_plugin_without_importing_vllm():
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert (
        '[project.entry-points."vllm.general_plugins"]\nmodeling-parrot = "modeling_parrot.vllm_plugin:register"'
        in project
    )
    assert callable(importlib.import_module("modeling_parrot.vllm_plugin").register)


# ---------------------------------------------------------------------- vLLM's own classes


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A saved model, and what the tests know of it; its heads are as wide as vLLM's attention wants them."""
    vllm_model = pytest.importorskip("vllm.model_executor.models.registry")
    from modeling_parrot.vllm_plugin import register

    register()
    assert "ParrotForConditionalGeneration" in vllm_model.ModelRegistry.get_supported_archs()
    folder = tmp_path_factory.mktemp("served")
    tiny_models.save_language_model(
        folder / "text_qwen2", hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32
    )
    model, processor = tiny_models.parrot(folder)
    model.save_pretrained(folder / "parrot")
    processor.save_pretrained(folder / "parrot")
    return model, processor, folder / "parrot"


@pytest.fixture(scope="module")
def process(served):
    """`process(messages..., cache=None)` processes a conversation as vLLM's front end does."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    _, processor, folder = served
    config = ModelConfig(str(folder), dtype="float32", max_model_len=256)
    engine_side = MULTIMODAL_REGISTRY.create_processor(config)
    assert type(engine_side).__name__ == "ParrotVLLMProcessor"

    def run(*messages, cache=None):
        images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        items = engine_side.info.parse_mm_data({"image": images} if images else {})
        return engine_side(prompt_of(processor, *messages), items, cache=cache)

    run.config, run.engine_side = config, engine_side
    return run


@pytest.mark.parametrize("template", ["chatml", "vicuna"])
def test_vllm_sees_that_our_templates_take_parts(template):
    """Else it would hand them one text per message, with images always in front."""
    detect = pytest.importorskip("vllm.renderers.hf")._detect_content_format
    assert detect(CHAT_TEMPLATES[template], default="string") == "openai"


def test_the_backend_without_the_plugin_is_refused(served):
    """`--model-impl transformers` goes round the plugin: every image would be routed by no text at all."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = ModelConfig(str(served[2]), dtype="float32", model_impl="transformers", trust_remote_code=True)
    engine_side = MULTIMODAL_REGISTRY.create_processor(config)
    assert type(engine_side).__name__ == "MultiModalProcessor"
    with pytest.raises(ValueError) as caught:
        engine_side("<image>" + QUESTION, engine_side.info.parse_mm_data({"image": [picture(0)]}))
    assert "without their question" in str(caught.value.__cause__)


def test_a_hash_belongs_to_image_and_question(process):
    def hashes(*messages):
        return process(*messages)["mm_hashes"]["image"]

    first = hashes(user(QUESTION, picture(0)))
    assert hashes(user(QUESTION, picture(0))) == first
    assert hashes(user(OTHER, picture(0))) != first != hashes(user(QUESTION, picture(1)))
    # A later turn changes nothing of an earlier one, so that what is cached of a chat stays valid.
    chat = [user(QUESTION, picture(0)), assistant("a cat"), user(OTHER, picture(0))]
    longer = hashes(*chat)
    assert longer[0] == first[0] != longer[1]
    assert hashes(*chat[:1], assistant("a dog"), chat[2]) == longer


def test_items_and_placeholders_are_those_of_the_processor(served, process):
    _, processor, _ = served
    chat = [user(QUESTION, picture(0)), assistant("a cat"), user(OTHER, picture(1))]
    expected, found = encode(processor, chat), process(*chat)
    assert found["prompt_token_ids"] == expected["input_ids"][0].tolist()
    for index, item in enumerate(found["mm_kwargs"]["image"]):
        data = item.get_data()
        assert torch.equal(data["pixel_values"].flatten(0, -4).squeeze(0), expected["pixel_values"][index])
        mask = expected["routing_attention_mask"][index].bool()
        assert torch.equal(data["routing_input_ids"], expected["routing_input_ids"][index][mask])
    assert [place.length for place in found["mm_placeholders"]["image"]] == [processor.num_image_tokens] * 2
    assert not process(user(OTHER)).get("mm_hashes")


def test_the_cache_gives_each_question_its_own_row(process):
    """Of two images one is in the cache: the row of the other must not be taken for its own."""
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    cache = MultiModalProcessorOnlyCache(process.config)
    process(user(QUESTION, picture(0)), cache=cache)
    chat = [user(QUESTION, picture(0)), assistant("a cat"), user(OTHER, picture(0))]
    cached, fresh = process(*chat, cache=cache), process(*chat)
    rows = [item.get_data()["routing_input_ids"].tolist() for item in cached["mm_kwargs"]["image"]]
    assert rows == [item.get_data()["routing_input_ids"].tolist() for item in fresh["mm_kwargs"]["image"]]
    assert rows[0] != rows[1] and cached["mm_hashes"] == fresh["mm_hashes"]


@torch.no_grad()
def test_requests_batched_in_the_encoder_get_the_visual_tokens_of_each_alone(served, process, monkeypatch):
    from vllm.multimodal.utils import group_and_batch_mm_kwargs
    from vllm.utils import torch_utils

    from modeling_parrot.vllm_model import ParrotForVLLM

    monkeypatch.setattr(torch_utils, "PIN_MEMORY", torch.cuda.is_available())  # a CUDA build takes it for granted
    model, processor, _ = served
    shell = ParrotForVLLM.__new__(ParrotForVLLM)  # the part that encodes images needs nothing of an engine
    torch.nn.Module.__init__(shell)
    shell.model = model.model
    chats = [[user(QUESTION, picture(0))], [user("a", picture(0))], [user("", picture(1))]]
    items = [("image", process(*chat)["mm_kwargs"]["image"][0]) for chat in chats]
    found = []
    for _, _, batch in group_and_batch_mm_kwargs(items):
        found += shell.embed_multimodal(**batch)
    names = ("pixel_values", "routing_input_ids", "routing_attention_mask")
    for tokens, chat in zip(found, chats, strict=True):
        inputs = encode(processor, chat)
        expected = model.get_image_features(**{name: inputs[name] for name in names}).pooler_output[0]
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)


def test_images_without_placeholders_are_refused(process):
    engine_side, items = process.engine_side, process.engine_side.info.parse_mm_data({"image": [picture(0)]})
    with pytest.raises(ValueError, match="has 0 <image> token.*but there are 1 image"):
        engine_side(QUESTION, items)


# ---------------------------------------------------------------------- the engine


# In a process of its own: vLLM changes the classes of transformers' models in the one it runs in.
ENGINE = """
import json, sys
from tiny_models import picture
from vllm import LLM, SamplingParams

def main():
    folder, batches = sys.argv[1], json.loads(sys.argv[2])
    engine = LLM(
        folder, dtype="float32", max_model_len=256, enforce_eager=True, limit_mm_per_prompt={"image": 2},
        enable_prefix_caching=True, block_size=32,
    )
    sampling = SamplingParams(temperature=0, max_tokens=8, min_tokens=8)
    for batch in batches:
        requests = [{"prompt": text} for text, _ in batch]
        for request, (_, images) in zip(requests, batch):
            if images:
                request["multi_modal_data"] = {"image": [picture(index) for index in images]}
        results = engine.generate(requests, sampling, use_tqdm=False)
        print("ANSWERS", json.dumps([[list(r.outputs[0].token_ids), r.num_cached_tokens] for r in results]))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_the_engine_generates_what_the_model_generates(served, tmp_path):
    """Batched, repeated, and one image with several questions; a chat that grows goes on from its cached prefix."""
    from vllm.platforms import current_platform

    if not (current_platform.is_cpu() or current_platform.is_cuda_alike()):
        pytest.skip("this build of vLLM finds no device here")
    model, processor, folder = served
    long = QUESTION * 5  # fills blocks of the cache
    first, other = [user(long, picture(0))], [user(OTHER, picture(0))]
    mixed = [first, other, [user(QUESTION, picture(0), picture(1))], [user(OTHER)]]
    grown = [*first, assistant("a cat"), user(OTHER, picture(0))]
    images = {id(first): [0], id(other): [0], id(mixed[2]): [0, 1], id(mixed[3]): [], id(grown): [0, 0]}
    batches = [mixed, *([chat] for chat in mixed), [grown], [[user("a" + long, picture(0))]]]

    def expected(chat):
        inputs = encode(processor, chat)
        tokens = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        return tokens[0, inputs["input_ids"].shape[1] :].tolist()

    asked = [[(prompt_of(processor, *chat), images.get(id(chat), [0])) for chat in batch] for batch in batches]
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    done = subprocess.run(
        [sys.executable, str(script), str(folder), json.dumps(asked)],
        env=os.environ | {"PYTHONPATH": str(Path(tiny_models.__file__).parent), "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    lines = [line.partition("ANSWERS ")[2] for line in done.stdout.splitlines() if "ANSWERS " in line]
    results = [json.loads(line) for line in lines]
    assert [[tokens for tokens, _ in batch] for batch in results] == [[expected(c) for c in b] for b in batches]
    assert results[0][0] != results[0][1]

    image = (encode(processor, first)["input_ids"][0] == processor.image_token_id).nonzero()
    (of_grown, of_new_question) = (batch[0][1] for batch in results[-2:])
    assert of_grown > image.max()  # the image and its question came from the cache
    assert of_new_question <= image.min()  # nothing from the image on did
