"""Agreement with VLMEvalKit: its readings of single answers and its scores, as that program computed them.

`vlmevalkit_scores.json` says how it was made. `vlmevalkit_readings.json` is what its `can_infer` and `YOrN_Extraction`
(commit e8e78f0) read in the labelled answers: {id: reading}.
"""

import json
from pathlib import Path

import pytest

from parrot_eval.harness import kit_choice, kit_yes_no
from parrot_eval.questions import Question
from parrot_eval.scores import PROTOCOLS, scores, tally


HERE = Path(__file__).parent
SCORES = json.loads((HERE / "vlmevalkit_scores.json").read_text(encoding="utf-8"))
READINGS = json.loads((HERE / "vlmevalkit_readings.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("half", ["development", "held_out"])
def test_every_answer_is_read_as_the_kit_reads_it(half):
    differing = []
    for line in (HERE / f"answers_{half}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        wanted = READINGS[row["id"]]
        if wanted != "no Latin letters":  # the kit knows no other options
            found = kit_choice(row["answer"], row["options"]) if row["options"] else kit_yes_no(row["answer"])
            differing += [row["id"]] if found != wanted else []
    assert differing == []


def to_question(row):
    options = {letter: row[letter] for letter in "ABCD" if row.get(letter)}
    group = row.get("image_path") or str(row["index"] % 10**6)
    return Question(
        str(row["index"]), "en", row["question"], row["answer"], options,
        category=row["category"], l2_category=row.get("l2-category", ""), split=row.get("split", ""), group=group,
    )  # fmt: skip


def score(protocol, chosen=lambda row: True):
    rows = [row for row in SCORES[protocol]["rows"] if chosen(row)]
    questions = [to_question(row) for row in rows]
    read = [
        kit_choice(row["prediction"], q.options) if q.options else kit_yes_no(row["prediction"])
        for row, q in zip(rows, questions, strict=True)
    ]
    return scores({"en": tally(questions, read, PROTOCOLS[protocol])}, PROTOCOLS[protocol])["en"]


@pytest.mark.parametrize("protocol", ["choice", "circular"])
def test_choice_and_circular_scores_are_the_kits(protocol):
    for report in SCORES[protocol]["report"]:
        for column, value in report.items():
            if column != "split":
                names = {"Overall"}, {row["l2-category"] for row in SCORES[protocol]["rows"]}
                key = "l2-category" if column in names[1] else "category"
                found = score(
                    protocol,
                    lambda row, split=report["split"], key=key, column=column: (
                        row["split"] == split and (column == "Overall" or row[key] == column)
                    ),
                )
                assert found["accuracy"].value == pytest.approx(100 * value), (report["split"], column)


def test_mme_scores_are_the_kits():
    found = score("mme")
    report = SCORES["mme"]["report"][0]
    assert found["perception"].value == pytest.approx(report["perception"])
    assert found["cognition"].value == pytest.approx(report["reasoning"])
    for category in set(report) - {"perception", "reasoning"}:
        assert found[f"{category} acc"].value + found[f"{category} acc+"].value == pytest.approx(report[category])


def test_pope_scores_are_the_kits():
    found = score("pope")
    for report in SCORES["pope"]["report"]:
        setting = "" if report["split"] == "Overall" else f"{report['split']} "
        for ours, theirs in (("F1", "Overall"), ("accuracy", "acc"), ("precision", "precision"), ("recall", "recall")):
            assert found[f"{setting}{ours}"].value == pytest.approx(report[theirs]), (report["split"], ours)
