"""Asking a model: batches, likelihoods of candidates, and what they are equal to."""

import pytest
import tiny_models
import torch

from parrot_eval.generation import Asker, Request


pytestmark = pytest.mark.usefixtures("one_thread")

REQUESTS = [
    Request("What is in the picture?", [tiny_models.picture(0)]),
    Request("图中是什么？ a cat and a dog, um gato. Resimde ne var?", [tiny_models.picture(1)]),
    Request("Что на картинке?", []),
    Request("a cat and a dog?", [tiny_models.picture(2), tiny_models.picture(3)]),
]


@pytest.fixture(scope="module", params=[0, 2], ids=["LLaVA", "Parrot"])
def asker(tiny, request):
    return Asker(*tiny(num_language_experts=request.param), max_new_tokens=6)


def test_a_batch_answers_as_single_questions_do(asker):
    together = asker.answers(REQUESTS)
    assert together == [asker.answers([request])[0] for request in REQUESTS]
    assert len(set(together)) > 1


def log_probability(asker, request, candidate):
    """The same from one plain forward pass over prompt and candidate, token by token."""
    inputs = asker.encode([request])
    added = asker.processor.tokenizer(candidate, add_special_tokens=False, return_tensors="pt")["input_ids"]
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], added], 1)
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in inputs:
            filler = torch.ones_like(added) if name == "attention_mask" else torch.zeros_like(added)
            inputs[name] = torch.cat([inputs[name], filler], 1)
    with torch.inference_mode():
        logits = asker.model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
    return logits.gather(1, added[0][:, None]).sum().item(), added.shape[1]


def test_likelihoods_are_those_of_a_plain_forward_pass(asker):
    candidates = [["A", "B", "C"], ["um gato", "a cat and a dog, 一只猫"], ["да", "нет, кошка", "x", "y"], ["A"]]
    found = asker.likelihoods(REQUESTS, candidates)
    assert [len(values) for values in found] == [3, 2, 4, 1]
    for request, own, values in zip(REQUESTS, candidates, found, strict=True):
        for candidate, value in zip(own, values, strict=True):
            total, tokens = log_probability(asker, request, candidate)
            assert value.tokens == tokens
            assert value.log_probability == pytest.approx(total, abs=2e-4)


def test_only_the_greedy_answer_is_called_greedy(asker):
    tokens = asker.model.generate(**asker.encode(REQUESTS[:1]), max_new_tokens=3, do_sample=False)[0, -3:]
    text = asker.processor.tokenizer.decode(tokens)
    if asker.processor.tokenizer(text, add_special_tokens=False)["input_ids"] != tokens.tolist():
        text = asker.processor.tokenizer.decode(tokens[:1])
    values = asker.likelihoods(REQUESTS[:1], [[text, text + "?", "a cat and a dog"]])[0]
    assert values[0].greedy and not values[2].greedy


def test_a_processor_without_template_is_refused(tiny):
    model, processor = tiny()
    processor.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        Asker(model, processor)
