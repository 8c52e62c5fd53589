"""A judge behind an endpoint: its ratings, what is kept when it fails, and that no rating is ever made up."""

import pytest
from chat_server import says

from parrot_eval.judge import Judge, JudgeError, parse_ratings
from parrot_eval.predictions import read_lines
from parrot_eval.questions import Question
from parrot_eval.scores import PROTOCOLS, scores, tally


QUESTIONS = {
    ("en", str(n)): Question(str(n), "en", f"Question {n}?", f"Reference {n}.", hint=f"Image {n}.", category=category)
    for n, category in enumerate(("conv", "detail", "complex", "conv"))
}
ANSWERS = {key: f"Answer {key[1]}." for key in QUESTIONS}


@pytest.mark.parametrize(
    ("review", "ratings"),
    [
        ("8 7\nThe first ...", (8, 7)), ("8, 7", (8, 7)), ("8.5 6", (8.5, 6)), ("\n\n9   10\n", (9, 10)), ("8/10 7/10", (8, 7)),
        ("Ratings: 8 7", (8, 7)), ("第一个：8，第二个：9", (8, 9)), ("8", None), ("8 7 6", None), ("", None), ("11 3", None),
        ("Assistant 1: 8, Assistant 2: 7", None), ("I cannot rate these.\n8 7", None),
    ],
)  # fmt: skip
def test_ratings_are_two_numbers_on_the_first_line(review, ratings):
    assert parse_ratings(review) == ratings


def test_it_sees_description_question_and_both_answers(serve, tmp_path):
    server = serve(lambda text, _: says("5 4\nBecause."))
    rated = Judge(server.url, "judge").rate(QUESTIONS, ANSWERS, tmp_path / "ratings.jsonl")
    assert rated == dict.fromkeys(QUESTIONS, (5, 4))
    asked = sorted(request["messages"][0]["content"] for request in server.requests)
    assert all(part in asked[2] for part in ("Image 2.", "Question 2?", "Reference 2.", "Answer 2."))


def test_a_judge_that_fails_half_way_goes_on_where_it_was(serve, tmp_path):
    path = tmp_path / "ratings.jsonl"
    broken = serve(lambda text, _: (401, {}, "no key") if "Question 2" in text else says("5 4"))
    judge = Judge(broken.url, "judge", concurrency=1)
    with pytest.raises(JudgeError, match=r"failed: .*401.* 2 of 4 answers are rated and kept"):
        judge.rate(QUESTIONS, ANSWERS, path)
    assert len(list(read_lines(path))) == 2
    broken.behave = lambda text, _: says("6 6")
    broken.requests.clear()
    rated = judge.rate(QUESTIONS, ANSWERS, path)
    assert sorted(rated.values()) == [(5, 4), (5, 4), (6, 6), (6, 6)] and len(broken.requests) == 2


def test_a_judge_that_cannot_be_reached_says_so(tmp_path):
    with pytest.raises(JudgeError, match="0 of 4 answers are rated"):
        Judge("http://127.0.0.1:9/v1", "judge", max_retries=0).rate(QUESTIONS, ANSWERS, tmp_path / "ratings.jsonl")


def test_a_reply_without_ratings_is_asked_for_once_more_and_then_absent(serve, tmp_path):
    server = serve(lambda text, attempt: says("7 7" if "Question 1" in text and attempt == 2 else "Both are good."))
    rated = Judge(server.url, "judge").rate(QUESTIONS, ANSWERS, tmp_path / "ratings.jsonl")
    assert rated == {("en", "1"): (7, 7)}
    assert len(server.requests) == 8


def test_ratings_of_other_answers_or_judges_are_not_used_again(serve, tmp_path):
    server = serve(lambda text, _: says("5 5"))
    path = tmp_path / "ratings.jsonl"
    Judge(server.url, "judge").rate(QUESTIONS, ANSWERS, path)
    Judge(server.url, "judge").rate(QUESTIONS, ANSWERS | {("en", "0"): "Another answer."}, path)
    assert len(server.requests) == 5
    Judge(server.url, "other").rate(QUESTIONS, ANSWERS, path)
    assert len(server.requests) == 9


def test_the_relative_score_is_a_ratio_of_means_and_leaves_out_what_has_no_rating():
    read = [(8.0, 6.0), (4.0, 5.0), None, (10.0, 3.0)]
    questions = list(QUESTIONS.values())
    found = scores({"en": tally(questions, read, PROTOCOLS["judged"])}, PROTOCOLS["judged"])["en"]
    assert found["relative score"].value == pytest.approx(100 * 14 / 22)
    assert found["conv"].value == pytest.approx(100 * 9 / 18) and found["detail"].value == pytest.approx(125)
    assert "complex" not in found
