"""Faster decoding changes nothing: a cache of fixed size, and code compiled by torch.compile."""

import shutil

import pytest
import torch
from tiny_models import encode, picture, user
from transformers import CompileConfig


TWO = [user("What is the same in both?", picture(0), picture(1))]
ONE = [user("Что на картинке?", picture(2))]
TEXT = [user("Resimde ne var?")]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.mark.parametrize("language_model", ["qwen2", "gemma"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_static_cache_generates_the_same(tiny, language_model, options):
    model, processor = tiny(language_model=language_model)
    inputs = encode(processor, TWO, ONE, TEXT)
    options = {**GREEDY, **options, "return_dict_in_generate": True}
    dynamic = model.generate(**inputs, **options)
    static = model.generate(**inputs, **options, cache_implementation="static")
    assert type(static.past_key_values).__name__ == "StaticCache" != type(dynamic.past_key_values).__name__
    assert torch.equal(static.sequences, dynamic.sequences)


def compile_config(backend: str) -> CompileConfig:
    config = CompileConfig(fullgraph=True, mode=None, backend=backend)
    config._compile_all_devices = True  # `generate` compiles on accelerators only, unless told
    return config


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_decoding_generates_the_same(tiny, backend):
    """The graph is whole, and the one made for the first prompt serves the second."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    model, processor = tiny()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {
        **GREEDY,
        "cache_implementation": "static",
        "compile_config": compile_config(backend),
        "max_length": None,
    }
    graphs = []
    for chats in ([TWO, ONE], [ONE, TEXT]):
        inputs = encode(processor, *chats)
        assert torch.equal(model.generate(**inputs, **options), model.generate(**inputs, **GREEDY))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    print(graphs)
    assert graphs[0] > 0


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_model_gives_the_same_logits(tiny):
    """
    As C++ by inductor, without a break in the graph (the quick test of the graph is in test_modeling), after one
    ordinary call: transformers installs the hooks that read hidden states in the first, under a lock.
    """
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    model, processor = tiny()
    inputs = encode(processor, TWO)
    expected = model(**inputs).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
