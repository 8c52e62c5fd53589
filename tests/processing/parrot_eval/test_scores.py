"""Scores: what counts as right, the benchmarks' own formulas, intervals, and means over languages."""

import numpy as np
import pytest

from parrot_eval.questions import Question
from parrot_eval.scores import PROTOCOLS, RESAMPLES, scores, tally


def choice(index, answer="A", language="en", group=None):
    options = {letter: f"option {letter}" for letter in "ABCD"}
    return Question(str(index), language, "?", answer, options, group=group or str(index))


def yes_no(index, answer, category="", group="", language="en"):
    return Question(str(index), language, "?", answer, category=category, group=group)


def score(questions, read, protocol, **languages):
    tallies = {"en": tally(questions, read, PROTOCOLS[protocol])} | languages
    return scores(tallies, PROTOCOLS[protocol])


def test_plain_choice_is_the_share_of_right_letters():
    found = score([choice(n) for n in range(4)], ["A", "B", None, "A"], "choice")
    assert found["en"]["accuracy"].value == 50.0
    assert list(found) == ["en"]  # no means of one language


def test_a_circle_counts_once_and_only_if_every_rotation_is_right():
    circles = [choice(n + k * 10**6, "ABCD"[k], group=str(n)) for n in range(3) for k in range(4)]
    right = [q.answer for q in circles]
    assert score(circles, right, "circular")["en"]["accuracy"].value == 100
    one_wrong = [*right[:-1], "A"]
    assert score(circles, one_wrong, "circular")["en"]["accuracy"].value == pytest.approx(200 / 3)
    # Always the same letter: right in a quarter of the rows, in no circle.
    assert score(circles, ["B"] * 12, "circular")["en"]["accuracy"].value == 0


def test_mme_adds_accuracy_and_accuracy_of_pictures():
    questions = [yes_no(f"{p}{n}", ("Yes", "No")[n], "color", str(p)) for p in range(2) for n in range(2)]
    questions += [yes_no(f"x{n}", ("Yes", "No")[n], "code_reasoning", "x") for n in range(2)]
    found = score(questions, [True, False, True, True, None, False], "mme")["en"]
    assert found["color acc"].value == 75 and found["color acc+"].value == 50
    assert found["perception"].value == 125 and found["cognition"].value == 50
    assert "posters acc" not in found


def test_pope_counts_what_cannot_be_read_as_no_but_not_as_right():
    read = [True, True, None, None, False]
    answers = ["Yes", "No", "Yes", "No", "No"]
    questions = [yes_no(n, answer, "random", str(n)) for n, answer in enumerate(answers)]
    found = score(questions, read, "pope")["en"]
    assert found["precision"].value == 50 and found["recall"].value == 50 and found["F1"].value == 50
    assert found["accuracy"].value == 40 and found["yes ratio"].value == 40


def test_pope_means_the_settings_and_a_question_may_be_in_several():
    questions = [yes_no(0, "Yes", "random,popular", "0"), yes_no(1, "No", "popular", "1")]
    found = score(questions, [True, True], "pope")["en"]
    assert found["random F1"].value == 100 and found["popular F1"].value == pytest.approx(200 / 3)
    assert found["mean F1"].value == pytest.approx((100 + 200 / 3) / 2)
    assert found["F1"].value == pytest.approx(80)  # all rows together, the first one twice
    assert "adversarial F1" not in found


def test_always_yes_gives_the_score_of_a_constant():
    questions = [yes_no(n, ("Yes", "No")[n % 2], "random", str(n)) for n in range(10)]
    found = score(questions, [True] * 10, "pope")["en"]
    assert (found["recall"].value, found["precision"].value, found["yes ratio"].value) == (100, 50, 100)


def test_intervals_hold_what_they_promise():
    """Of 200 draws of 50 questions with 70% right, about 95% of the intervals contain 70."""
    rng = np.random.default_rng(0)
    questions = [choice(n) for n in range(50)]
    inside = 0
    for _ in range(200):
        read = ["A" if hit else "B" for hit in rng.random(50) < 0.7]
        found = score(questions, read, "choice")["en"]["accuracy"]
        inside += found.low <= 70 <= found.high
    assert 180 <= inside <= 198


def test_means_over_languages_draw_the_same_questions_in_each():
    """Two languages with equal answers know no more than one: the interval of their mean must not shrink."""
    questions = [choice(n) for n in range(60)]
    read = ["A" if n % 3 else "B" for n in range(60)]
    one = tally(questions, read, PROTOCOLS["choice"])
    alike = scores({"en": one, "cs": one}, PROTOCOLS["choice"])
    width = alike["en"]["accuracy"].high - alike["en"]["accuracy"].low
    assert alike["mean"]["accuracy"].high - alike["mean"]["accuracy"].low == pytest.approx(width)
    # In each language other questions are right: their mean is certain.
    other = tally(questions, ["A" if not n % 3 else "B" for n in range(60)], PROTOCOLS["choice"])
    opposite = scores({"en": one, "cs": other}, PROTOCOLS["choice"])["mean"]["accuracy"]
    assert opposite == pytest.approx((50, 50, 50))


def test_means_leave_english_out_where_they_say_so():
    tallies = {
        language: tally(
            [choice(n, language=language) for n in range(4)], ["A"] * right + ["B"] * (4 - right), PROTOCOLS["choice"]
        )
        for language, right in {"en": 4, "zh": 2, "ru": 1}.items()
    }
    found = scores(tallies, PROTOCOLS["choice"])
    assert found["mean"]["accuracy"].value == pytest.approx(100 * 7 / 12)
    assert found["non-English"]["accuracy"].value == pytest.approx(37.5)


def test_the_same_seed_gives_the_same_interval():
    tallies = {"en": tally([choice(n) for n in range(20)], ["A", "B"] * 10, PROTOCOLS["choice"])}
    assert scores(tallies, PROTOCOLS["choice"], seed=3) == scores(tallies, PROTOCOLS["choice"], seed=3)
    assert RESAMPLES >= 1000
