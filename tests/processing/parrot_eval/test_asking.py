"""A run over a benchmark: the same answers from any number of processes, nothing asked twice, bad images, controls."""

import base64

import pytest
from tiny_data import encoded, write_tsv

from parrot_data.images import BadImageError
from parrot_eval.asking import ask, exchanged_pictures, settings_of
from parrot_eval.benchmarks import load_benchmark
from parrot_eval.generation import Asker
from parrot_eval.predictions import Predictions


pytestmark = pytest.mark.usefixtures("one_thread")


def rows(question, count=5):
    return [
        {
            "index": n,
            "image": encoded(n),
            "question": question + "?" * n,
            "A": "a cat",
            "B": "a dog",
            "C": "a fish",
            "answer": "ABC"[n % 3],
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def asker(tiny):
    return Asker(*tiny(num_language_experts=2), max_new_tokens=5)


@pytest.fixture
def benchmark(tmp_path):
    files = [
        write_tsv(tmp_path / "m_en.tsv", rows("What is in the picture, a cat or a dog")),
        write_tsv(tmp_path / "m_ru.tsv", rows("Что на картинке")),
    ]
    return load_benchmark(files)


def answers(predictions):
    return {key: row["answer"] for key, row in predictions.read().items()}


def test_two_processes_answer_as_one_does(asker, benchmark, tmp_path):
    one = Predictions(tmp_path / "one", settings_of(benchmark, "parrot"))
    ask(benchmark, asker, one, batch_size=3)
    two = Predictions(tmp_path / "two", settings_of(benchmark, "parrot"))
    # Each process reads what is known before any of them writes; here they run one after the other.
    known = two.read
    two.read = lambda: {}
    for process in (1, 0):
        ask(benchmark, asker, two, batch_size=3, process=process, processes=2)
    two.read = known
    assert answers(one) == answers(two) and len(answers(one)) == 10


def test_an_interrupted_run_goes_on(asker, benchmark, tmp_path):
    predictions = Predictions(tmp_path / "run", settings_of(benchmark, "parrot"))

    class Interrupted(Asker):
        def answers(self, requests, **generation):
            if len(predictions.read()) >= 4:
                raise KeyboardInterrupt
            return super().answers(requests, **generation)

    with pytest.raises(KeyboardInterrupt):
        ask(benchmark, Interrupted(asker.model, asker.processor, 5), predictions, batch_size=2)
    before = answers(predictions)
    assert len(before) == 4
    counted = []

    class Counting(Asker):
        def answers(self, requests, **generation):
            counted.extend(requests)
            return super().answers(requests, **generation)

    ask(benchmark, Counting(asker.model, asker.processor, 5), predictions, batch_size=2)
    assert len(counted) == 6
    whole = Predictions(tmp_path / "whole", settings_of(benchmark, "parrot"))
    ask(benchmark, asker, whole, batch_size=2)
    assert answers(predictions) == answers(whole)


def test_a_bad_image_ends_the_run_unless_asked_otherwise(asker, tmp_path):
    content = rows("What is in the picture")
    content[3]["image"] = base64.b64encode(b"no image at all" * 9).decode()
    benchmark = load_benchmark([write_tsv(tmp_path / "m_en.tsv", content)])
    predictions = Predictions(tmp_path / "run", settings_of(benchmark, "parrot"))
    with pytest.raises(BadImageError, match=r"m_en.tsv, index 3: .* go on with --skip-bad-images"):
        ask(benchmark, asker, predictions, batch_size=1)
    before = len(predictions.read())
    assert ask(benchmark, asker, predictions, batch_size=1, skip_bad_images=True) == 1
    found = predictions.read()
    assert before < len(found) == 5
    assert found["en", "3"]["answer"] == "" and "index 3" in found["en", "3"]["bad_image"]

    control = Predictions(tmp_path / "control", settings_of(benchmark, "parrot"))
    assert ask(benchmark, asker, control, control=True, skip_bad_images=True) == 1
    (missed,) = [row for row in control.read().values() if row.get("bad_image")]
    assert missed["index"] != "3" and "index 3" in missed["bad_image"]  # another question was shown row 3's picture


def test_a_control_shows_every_question_another_picture_the_same_in_every_language(asker, benchmark, tmp_path):
    exchange = exchanged_pictures(benchmark)
    keys = {language: [questions.image_key(q) for q in questions] for language, questions in benchmark.sets.items()}
    assert keys["en"] == keys["ru"] and set(exchange) == set(keys["en"])
    shown = {key: benchmark.sets[language].image_key(question) for key, (language, question) in exchange.items()}
    assert all(key != other for key, other in shown.items()) and set(shown.values()) == set(keys["en"])
    own = Predictions(tmp_path / "own", settings_of(benchmark, "parrot"))
    ask(benchmark, asker, own)
    control = Predictions(tmp_path / "control", settings_of(benchmark, "parrot"))
    ask(benchmark, asker, control, control=True)
    assert answers(own) != answers(control)


def test_likelihoods_are_kept_beside_answers(asker, benchmark, tmp_path):
    predictions = Predictions(tmp_path / "run", settings_of(benchmark, "parrot"))
    ask(benchmark, asker, predictions, ranked=("letters", "texts"))
    for row in predictions.read().values():
        assert set(row["likelihoods"]["letters"]) == set("ABC") == set(row["likelihoods"]["texts"])
        assert row["likelihoods"]["letters"]["A"][1] == 1 < row["likelihoods"]["texts"]["A"][1]
        assert all(value[0] < 0 for value in row["likelihoods"]["texts"].values())


def test_prompts_and_questions_are_part_of_the_settings(benchmark, tmp_path):
    settings = settings_of(benchmark, "parrot")
    assert settings["prompt_fingerprint"] != settings_of(benchmark, "vlmevalkit")["prompt_fingerprint"]
    other = load_benchmark([write_tsv(tmp_path / "n_en.tsv", rows("What is this"))])
    assert settings["questions"] != settings_of(other, "parrot")["questions"]


def test_one_picture_alone_has_no_control(tmp_path):
    benchmark = load_benchmark([write_tsv(tmp_path / "m_en.tsv", rows("What is it", count=1))])
    with pytest.raises(ValueError, match="needs at least two pictures"):
        exchanged_pictures(benchmark)
