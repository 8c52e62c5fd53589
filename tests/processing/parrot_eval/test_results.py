"""From kept answers to reports: scores, rates, the harness beside them, parts, and the papers' form of tables."""

import csv
import json

import pytest

from parrot_eval.benchmarks import Benchmark
from parrot_eval.questions import Question, QuestionSet
from parrot_eval.report import comparison, markdown, published, write_report
from parrot_eval.results import in_language, most_likely, results


SETTINGS = {
    "model": "models/mine", "model_fingerprint": "0123", "protocol": "choice", "prompts": "parrot", "prompt_fingerprint": "ab",
    "max_new_tokens": 9,
}  # fmt: skip
OPTIONS = {
    "en": {"A": "a grey cat", "B": "a dog", "C": "a fish", "D": "a bird"},
    "zh": {"A": "一只灰猫", "B": "一条狗", "C": "一条鱼", "D": "一只鸟"},
}


def question(index, language, answer="B", category="animals", **values):
    return Question(
        str(index), language, "?", answer, OPTIONS[language], category=category, group=str(index), **values
    )


def benchmark(count=4):
    sets = {
        language: QuestionSet(
            [question(n, language, category=("animals", "plants")[n % 2], split="dev") for n in range(count)],
            None,
            "m",
        )
        for language in OPTIONS
    }
    return Benchmark("mmmb", "MMMB", "choice", sets)


ANSWERS = {
    ("en", "0"): "B", ("en", "1"): "The answer is B.", ("en", "2"): "It is a grey cat.", ("en", "3"): "",
    ("zh", "0"): "答案是B。", ("zh", "1"): "选B", ("zh", "2"): "A", ("zh", "3"): "The animal in this picture is a big dog.",
}  # fmt: skip


def predictions(**more):
    return {key: {"answer": text, **more} for key, text in ANSWERS.items()}


@pytest.fixture(scope="module")
def found():
    return results(benchmark(), SETTINGS, predictions())


def test_scores_and_the_harness_beside_them(found):
    assert found.scores["en"]["accuracy"].value == 50 and found.scores["zh"]["accuracy"].value == 50
    assert found.kit["en"]["accuracy"].value == 50 and found.kit["zh"]["accuracy"].value == 0
    assert {(row["language"], row["index"]) for row in found.disagreements} == {("zh", "0"), ("zh", "1")}
    assert found.rates["zh"]["kit_differs"] == 50 and found.rates["en"]["kit_differs"] == 0


def test_rates_of_what_was_not_read_and_of_other_languages(found):
    assert found.rates["en"]["unread"] == 25 and found.rates["zh"]["unread"] == 25
    assert found.rates["zh"]["answers"] == 4
    assert found.rates["zh"]["other_language"] == 50  # of two that can be told
    assert found.rates["zh"]["language_told"] == 50


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", None), ("12", None), ("", None), ("一条狗", None),  # offered
        ("图片里是一条狗。", True), ("This is certainly a dog, I think.", False), ("Dies ist ein Hund auf einer Wiese.", False),
        ("taxi", None), ("en", None),
    ],
)  # fmt: skip
def test_the_language_of_an_answer_where_it_can_be_told(answer, expected):
    assert in_language(question(1, "zh"), answer) is expected


def test_names_in_a_shared_script_are_undecidable():
    assert in_language(question(1, "en"), "regalo") is None


def test_parts_are_scored_by_themselves_and_one_part_alone_is_not(found):
    assert set(found.parts) == {"category"}  # all are of one split
    assert found.parts["category"]["animals"]["en"]["accuracy"].value == 50
    assert found.parts["category"]["plants"]["zh"]["accuracy"].value == 50


def test_the_likeliest_option_in_all_and_per_token():
    likelihoods = {"A": [-4.0, 1], "B": [-5.0, 5], "C": [-6.0, 2], "D": [-9.0, 1]}
    assert most_likely(question(1, "en"), likelihoods, per_token=False) == "A"
    assert most_likely(question(1, "en"), likelihoods, per_token=True) == "B"
    yes_no = Question("1", "cs", "?", "Yes")
    assert most_likely(yes_no, {"yes": [-2.0, 1], "no": [-1.0, 1]}, per_token=False) is False
    ranked = results(benchmark(), SETTINGS, predictions(likelihoods={"texts": likelihoods}))
    assert ranked.likelihood["texts"]["en"]["accuracy"].value == 0
    assert ranked.likelihood["texts, per token"]["en"]["accuracy"].value == 100


def test_a_missing_answer_is_an_error():
    some = predictions()
    del some["zh", "2"]
    with pytest.raises(ValueError, match=r"1 of 8 questions have no answer, the first: \('zh', '2'\)"):
        results(benchmark(), SETTINGS, some)


def test_a_control_is_scored_with_the_questions_own_answers():
    control = {key: {"answer": "A"} for key in ANSWERS}
    found = results(benchmark(), SETTINGS, predictions(), control)
    assert found.control["mean"]["accuracy"].value == 0
    assert "accuracy, other pictures" in markdown(found)


def test_files_of_a_report_agree(found, tmp_path):
    paths = write_report(found, tmp_path)
    assert [path.name for path in paths] == ["report.md", "scores.csv", "scores.json"]
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(
        r for r in rows if (r["method"], r["part"], r["language"], r["measure"]) == ("answers", "", "mean", "accuracy")
    )
    assert float(row["value"]) == 50 and float(row["low"]) <= 50 <= float(row["high"])
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["scores"]["mean"]["accuracy"][0] == 50
    text = (tmp_path / "report.md").read_text()
    assert "| mean | 50.0 [" in text and "## By category" in text


def test_published_scores_are_marked_and_in_the_papers_form(found):
    text = comparison([found])
    assert "| model | en | zh | pt | ar | tr | ru |" in text
    assert "| **mine** (measured) | 50.00 | 50.00 |  |  |  |  |" in text
    assert "| PARROT (Qwen1.5-7B) (published) | 70.00 | 68.13 | 67.31 | 62.69 | 58.01 | 66.26 |" in text


def test_published_tables_are_whole():
    for entry in published():
        for models in entry["scores"].values():
            assert all(len(values) == len(entry["languages"]) for values in models.values())
    assert {name for entry in published() for name in entry["scores"]} == {
        "MMMB",
        "MMBench",
        "MME",
        "POPE",
        "SEED-Bench",
    }
