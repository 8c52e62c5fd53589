"""Putting a benchmark's questions to a model: batches, several processes, continued after an interruption."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from parrot_data.images import BadImageError
from parrot_eval.benchmarks import Benchmark
from parrot_eval.generation import Asker, Request
from parrot_eval.predictions import Key, Predictions
from parrot_eval.prompts import fingerprint, prompt, wording_of
from parrot_eval.questions import Question, QuestionSet


RANKED = ("letters", "texts")  # what the likelihood of options is asked of; of Yes/No questions it is "words"


class Requests(Dataset):
    """
    Batches of questions as requests, their images decoded in the worker that takes them.

    Args:
        batches: of (language, question).
        pictures: {image: image to show instead}, see `exchanged_pictures`; None: the question's own.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        batches: Sequence[Sequence[Question]],
        prompts: Mapping[Key, str],
        pictures: Mapping[str, tuple[str, Question]] | None,
    ):
        self.benchmark, self.batches, self.prompts, self.pictures = benchmark, batches, prompts, pictures

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[tuple[Question, Request | None, str]]:
        """[(question, request or None, why there is none), ...]"""
        result: list[tuple[Question, Request | None, str]] = []
        for question in self.batches[number]:
            questions = self.benchmark.sets[question.language]
            try:
                shown = question
                if self.pictures is not None:
                    language, shown = self.pictures[questions.image_key(question)]
                    questions = self.benchmark.sets[language]
                request = Request(self.prompts[question.language, question.index], questions.images(shown))
                result.append((question, request, ""))
            except BadImageError as error:
                result.append((question, None, str(error)))
        return result


def prompts_of(benchmark: Benchmark, style: str) -> dict[Key, str]:
    return {
        (language, question.index): prompt(question, style, asks_itself=benchmark.asks_itself)
        for language, questions in benchmark.sets.items()
        for question in questions
    }


def settings_of(benchmark: Benchmark, style: str) -> dict[str, Any]:
    """What answers depend on beside the model, for `Predictions`."""
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "languages": list(benchmark.sets),
        "questions": benchmark.fingerprint(),
        "prompts": style,
        "prompt_fingerprint": fingerprint(list(prompts_of(benchmark, style).values())),
    }


def ask(
    benchmark: Benchmark,
    asker: Asker,
    predictions: Predictions,
    *,
    style: str = "parrot",
    batch_size: int = 16,
    ranked: Sequence[str] = (),
    control: bool = False,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    skip_bad_images: bool = False,
    barrier: Any = lambda: None,
) -> int:
    """
    Asks what has no answer yet, and keeps the answers.

    Batches are the same for every number of processes, so that answers are too; each process takes its share of them.

    Args:
        ranked: "letters" and "texts" of options (of Yes/No questions the words) whose likelihood is kept as well.
        control: show the picture of another question instead of the question's own.
        barrier: waits for all processes.
        skip_bad_images: a question whose image cannot be read gets an empty answer instead of ending the run.

    Returns:
        Number of questions of this process whose images could not be read.

    Raises:
        BadImageError: names file and row.
    """
    prompts = prompts_of(benchmark, style)
    known = predictions.read()
    barrier()  # nobody writes before everybody has read
    batches = batches_of(benchmark, prompts, batch_size)
    missing = [[q for q in batch if (q.language, q.index) not in known] for batch in batches]
    mine = [batch for batch in missing if batch][process::processes]
    pictures = exchanged_pictures(benchmark) if control else None
    loader = DataLoader(Requests(benchmark, mine, prompts, pictures), batch_size=None, num_workers=workers)
    total, bad = sum(map(len, mine)), 0
    with (
        predictions.writer(process) as writer,
        tqdm(total=total, desc="control" if control else "asking", unit="question", disable=process > 0) as progress,
    ):
        for batch in loader:
            broken = [(question, why) for question, request, why in batch if request is None]
            if broken and not skip_bad_images:
                raise BadImageError(
                    f"{broken[0][1]} Answers so far are kept. Repair the file, or go on with --skip-bad-images, which "
                    "counts such questions as not answered."
                )
            bad += len(broken)
            asked = [(question, request) for question, request, _ in batch if request is not None]
            rows = [row_of(question, answer="", bad_image=why) for question, why in broken]
            if asked:
                requests = [request for _, request in asked]
                found = [row_of(q, answer=a) for (q, _), a in zip(asked, asker.answers(requests), strict=True)]
                for kind in ranked:
                    add_likelihoods(asker, [q for q, _ in asked], requests, kind, found)
                rows += found
            writer.write(rows)
            progress.update(len(batch))
    barrier()
    return bad


def row_of(question: Question, **values: Any) -> dict[str, Any]:
    return {"language": question.language, "index": question.index, **values}


def add_likelihoods(
    asker: Asker, questions: Sequence[Question], requests: Sequence[Request], kind: str, rows: Sequence[dict[str, Any]]
) -> None:
    candidates = [candidates_of(question, kind) for question in questions]
    found = asker.likelihoods(requests, [list(texts.values()) for texts in candidates])
    for row, texts, values in zip(rows, candidates, found, strict=True):
        row.setdefault("likelihoods", {})[kind] = dict(zip(texts, map(list, values), strict=True))


def candidates_of(question: Question, kind: str) -> dict[str, str]:
    """{letter: the letter or the option's text}, or {"yes", "no": the language's words}."""
    if question.options:
        return {letter: letter if kind == "letters" else text for letter, text in question.options.items()}
    words = wording_of(question.language)
    return {"yes": words["yes"], "no": words["no"]}


def batches_of(benchmark: Benchmark, prompts: Mapping[Key, str], batch_size: int) -> list[list[Question]]:
    """Questions of similar length together, so that little of a batch is padding; long ones first."""
    questions = [question for own in benchmark.sets.values() for question in own]
    questions.sort(key=lambda q: -len(prompts[q.language, q.index]))
    return [questions[start : start + batch_size] for start in range(0, len(questions), batch_size)]


def exchanged_pictures(benchmark: Benchmark, seed: int = 0) -> dict[str, tuple[str, Question]]:
    """
    For every picture the language and the question that hold another one: the same exchange in every language.

    Raises:
        ValueError: there is only one picture.
    """
    holders: dict[str, tuple[str, Question]] = {}
    for language, question, questions in everything(benchmark):
        holders.setdefault(questions.image_key(question), (language, question))
    keys = sorted(holders)
    if len(keys) < 2:
        raise ValueError("A control with other pictures needs at least two pictures.")
    random.Random(seed).shuffle(keys)
    # A cycle through a random order gives every picture to another one.
    return {key: holders[other] for key, other in zip(keys, [*keys[1:], keys[0]], strict=True)}


def everything(benchmark: Benchmark) -> Iterator[tuple[str, Question, QuestionSet]]:
    for language, questions in benchmark.sets.items():
        for question in questions:
            yield language, question, questions
