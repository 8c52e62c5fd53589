"""Tensor parallelism by transformers' `tp_plan="auto"` on two CPU processes: the answers of one, from half of the weights."""

import pytest
import tiny_models
import torch
from tiny_runs import torchrun

from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor


ASK = """
import sys
import torch
sys.path[:0] = ["tests", "tests/modeling_parrot"]
from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor
from test_tensor_parallel import questions

folder = sys.argv[1]
model = ParrotForConditionalGeneration.from_pretrained(folder, tp_plan="auto").eval()
with torch.no_grad():
    inputs = questions(ParrotProcessor.from_pretrained(folder))
    logits, answer = model(**inputs).logits, model.generate(**inputs, max_new_tokens=8, do_sample=False)
rank = torch.distributed.get_rank()
here = {name: getattr(p, "_local_tensor", p).numel() for name, p in model.named_parameters()}
torch.save({"logits": logits, "answer": answer, "here": here}, f"{folder}/{rank}.pt")
"""


def questions(processor):
    return tiny_models.encode(
        processor,
        [tiny_models.user("What is in the picture?", tiny_models.picture())],
        [tiny_models.user("图中是什么？", tiny_models.picture(1), tiny_models.picture(2))],
        [tiny_models.user("Why?")],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language_model", "options"),
    [("qwen2", {}), ("llama", {"num_active_experts": 2}), ("gemma", {"expert_type": "mlp"})],
)
def test_two_processes_answer_as_one(language_model, options, tiny, tmp_path):
    model, processor = tiny(language_model=language_model, num_language_experts=4, **options)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model = ParrotForConditionalGeneration.from_pretrained(folder).eval()
    inputs = questions(ParrotProcessor.from_pretrained(folder))
    with torch.no_grad():
        logits, answer = model(**inputs).logits, model.generate(**inputs, max_new_tokens=8, do_sample=False)

    program = tmp_path / "ask.py"
    program.write_text(ASK)
    torchrun(program, folder)
    for rank in range(2):
        found = torch.load(folder / f"{rank}.pt")
        torch.testing.assert_close(found["logits"], logits, atol=2e-5, rtol=1e-4)
        assert torch.equal(found["answer"], answer)
        for name, parameter in model.named_parameters():
            # Every product of the language model and its word embeddings are split, all else is whole everywhere.
            is_split = (
                ("language_model.layers" in name and "_proj" in name) or "embed_tokens" in name or "lm_head" in name
            )
            assert found["here"][name] * (2 if is_split else 1) == parameter.numel(), name
