"""Free answers rated by another model behind an OpenAI-compatible endpoint, relative to a reference answer (LLaVA-Bench)."""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parrot_data.multilingual.translators import digest
from parrot_eval.predictions import Key, Writer, read_lines
from parrot_eval.questions import Question


PROMPT = """\
You compare two answers to a question about an image. You cannot see the image; it is described under "Image". Rate each
answer from 1 (useless) to 10 (as good as can be) for how helpful, relevant, correct and detailed it is. The order of the
answers must not matter. Answers have to be in the language of the question. Write the two ratings as numbers on the first
line, that of the first answer first, with a space between them; then explain them in a few sentences.

Image:
{description}

Question:
{question}

First answer:
{reference}

Second answer:
{answer}
"""
NUMBERS = re.compile(r"\d+(?:\.\d+)?")


class JudgeError(RuntimeError):
    """The judge cannot be reached or refuses to work. What it rated before is kept."""


@dataclass(frozen=True)
class Judge:
    """
    Args:
        base_url: mostly ends with /v1.
        model: as the server calls it. Scores of different judges, or prompts, do not compare.
        api_key_env: the environment variable with the key. Local servers need none.
        concurrency: requests at a time.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    max_retries: int = 6
    timeout: float = 120

    @property
    def name(self) -> str:
        return f"{self.model} at {self.base_url} (prompt {digest(PROMPT.encode())})"

    def rate(
        self, questions: Mapping[Key, Question], answers: Mapping[Key, str], path: Path
    ) -> dict[Key, tuple[float, float]]:
        """
        Ratings (of the reference, of the model) by (language, index). Those in the file are not asked for again.

        A reply without two ratings is asked for once more; if there are none again, the question has no rating. None is
        ever made up.

        Raises:
            JudgeError: the endpoint fails; ratings so far are in the file.
            ImportError: openai is not installed.
        """
        try:
            import openai
        except ImportError as error:
            raise ImportError('A judge needs another package: pip install "modeling-parrot[translate]"') from error
        known = {
            (row["language"], row["index"]): row
            for row in (read_lines(path) if path.exists() else [])
            if row["judge"] == self.name and row["answer"] == answers.get((row["language"], row["index"]))
        }
        client = openai.OpenAI(
            base_url=self.base_url, api_key=os.environ.get(self.api_key_env) or "none",
            max_retries=self.max_retries, timeout=self.timeout,
        )  # fmt: skip

        def ask(key: Key) -> dict[str, Any]:
            question = questions[key]
            text = PROMPT.format(
                description=question.hint, question=question.question, reference=question.answer, answer=answers[key]
            )
            for temperature in (0.0, 0.7):
                reply = client.chat.completions.create(
                    model=self.model, temperature=temperature, messages=[{"role": "user", "content": text}]
                )
                review = (reply.choices[0].message.content or "") if reply.choices else ""
                if (ratings := parse_ratings(review)) is not None:
                    break
            return {
                "language": key[0], "index": key[1], "judge": self.name, "answer": answers[key], "ratings": ratings,
                "review": review,
            }  # fmt: skip

        missing = [key for key in questions if key not in known]
        with Writer(path) as writer, ThreadPoolExecutor(self.concurrency) as pool:
            waiting = {pool.submit(ask, key): key for key in missing}
            try:
                for done in as_completed(waiting):
                    row = done.result()
                    writer.write([row])
                    known[waiting[done]] = row
            except openai.OpenAIError as error:
                for other in waiting:
                    other.cancel()
                raise JudgeError(
                    f"The judge {self.model!r} at {self.base_url} failed: {error} {len(known)} of {len(questions)} answers "
                    "are rated and kept; start again to go on. Is the server running, and the key in "
                    f"{self.api_key_env}?"
                ) from error
        return {key: tuple(known[key]["ratings"]) for key in questions if known[key]["ratings"] is not None}


def parse_ratings(review: str) -> tuple[float, float] | None:
    """The two numbers from 1 to 10 on the first line that is not empty; None if it has another number of numbers."""
    first: Sequence[str] = [line for line in review.splitlines() if line.strip()][:1]
    values = [float(number) for line in first for number in NUMBERS.findall(re.sub(r"/\s*10\b", "", line))]
    return (values[0], values[1]) if len(values) == 2 and all(1 <= value <= 10 for value in values) else None
