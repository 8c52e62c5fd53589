"""Parrot as a model of lmms-eval: `lmms-eval --model parrot --model_args pretrained=DIR_OR_ID --tasks ...`."""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from accelerate.state import PartialState
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from tqdm.auto import tqdm

import modeling_parrot  # noqa: F401 (registers Parrot's classes)
from parrot_eval.generation import Asker, Request


GENERATION = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")  # what tasks may set


class ParrotLmmsEval(lmms):
    """
    Args:
        pretrained: folder of a checkpoint, or id on the Hub.
        batch_size: questions at a time.
        device: by default the process's GPU, or the CPU.
        dtype: of the weights: auto, bfloat16, float16, float32.
        max_new_tokens: where a task does not say.
        trust_remote_code: run the Python files inside the checkpoint, not the package's.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = 128,
        trust_remote_code: bool = False,
        max_batch_size: int | str | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdigit():
            raise ValueError(f"--batch_size {batch_size}: Parrot needs a number.")
        self.batch_size = int(batch_size)
        several = PartialState().num_processes > 1
        self.device = PartialState().device if several or device is None else torch.device(device)
        self.asker = Asker.from_pretrained(
            pretrained,
            self.device,
            dtype=dtype,
            max_new_tokens=max_new_tokens,
            trust_remote_code=trust_remote_code,
        )

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        def answer(part: Sequence[Instance]) -> list[str]:
            settings = part[0].args[1]
            texts = self.asker.answers(
                [self.request(instance.args[0], *instance.args[2:]) for instance in part],
                **{name: settings[name] for name in GENERATION if settings.get(name) is not None},
            )
            until = settings.get("until") or []
            return [cut(text, [until] if isinstance(until, str) else until) for text in texts]

        return self.in_batches(
            requests, answer, lambda instance: json.dumps(instance.args[1], sort_keys=True, default=str)
        )

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """
        The loss of every candidate, the lowest of which lmms-eval chooses: mean negative log-probability per token.

        lmms-eval 0.7 turns plain tuples into text, so they come inside a `GenerationResult`.
        """
        questions: dict[tuple, list[int]] = defaultdict(list)
        for number, instance in enumerate(requests):
            text, _, _, doc_id, task, split = instance.args
            questions[text, doc_id, task, split].append(number)
        found: dict[int, GenerationResult] = {}
        groups = list(questions.values())
        for start in tqdm(range(0, len(groups), self.batch_size), desc="likelihoods", disable=self.rank > 0):
            part = groups[start : start + self.batch_size]
            first = [requests[numbers[0]].args for numbers in part]
            candidates = [[self.candidate(requests[number]) for number in numbers] for numbers in part]
            values = self.asker.likelihoods([self.request(args[0], *args[2:]) for args in first], candidates)
            for numbers, likelihoods in zip(part, values, strict=True):
                for number, value in zip(numbers, likelihoods, strict=True):
                    found[number] = GenerationResult(text=(-value.log_probability / value.tokens, value.greedy))
        return [found[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("Tasks with several rounds are not supported. Choose tasks with one question.")

    def request(self, text: str, doc_to_visual: Callable, doc_id: int, task: str, split: str) -> Request:
        images = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        return Request(text.replace("<image>", "").strip(), [image.convert("RGB") for image in images])

    def candidate(self, instance: Instance) -> str:
        continuation, _, doc_id, task, split = instance.args[1:]
        text = continuation(self.task_dict[task][split][doc_id]) if callable(continuation) else continuation
        return text.strip()

    def in_batches(
        self,
        requests: Sequence[Instance],
        ask: Callable[[Sequence[Instance]], list],
        key: Callable[[Instance], Hashable],
    ) -> list:
        """Answers in the order of the requests; those with equal keys and of similar length are asked together."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for number, instance in enumerate(requests):
            groups[key(instance)].append(number)
        answers: dict[int, Any] = {}
        with tqdm(total=len(requests), desc="answers", disable=self.rank > 0) as progress:
            for numbers in groups.values():
                numbers.sort(key=lambda number: -len(requests[number].args[0]))
                for start in range(0, len(numbers), self.batch_size):
                    part = numbers[start : start + self.batch_size]
                    answers |= zip(part, ask([requests[number] for number in part]), strict=True)
                    progress.update(len(part))
        return [answers[number] for number in range(len(requests))]


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the strings that end it."""
    for end in until:
        text = text.split(end)[0] if end else text
    return text
