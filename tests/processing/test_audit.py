"""What an instruction set speaks: every row is counted once, by its answers' language, and oddities are reported."""

import csv
import json
import re
import sys

import datasets
import pytest
from PIL import Image
from tiny_data import DOG, TRANSLATIONS

from parrot_data import DataSource
from parrot_data.audit import UNDECIDABLE, Audit, audit


BALL = "What colour is the ball that the dog has in its mouth?"
CZECH, GERMAN, CHINESE = TRANSLATIONS["cs"], TRANSLATIONS["de"], TRANSLATIONS["zh"]


def row(question: str, answer: str, images: int = 1, **columns) -> dict:
    pictures = {"image": [f"{k}.jpg" for k in range(images)]} if images else {}
    turns = [{"from": "human", "value": "<image>\n" * images + question}, {"from": "gpt", "value": answer}]
    return {"id": "a", "conversations": turns, **pictures, **columns}


def parallel(*languages: str, **columns) -> dict:
    sentences = {"en": DOG, **TRANSLATIONS}
    turns = {code: {"question": sentences[code], "answer": sentences[code]} for code in languages}
    texts = {code: [turn | {"question": f"<image>\n{turn['question']}"}, turn] for code, turn in turns.items()}
    return {"id": "p", "image": "1.jpg", "texts": texts, **columns}


@pytest.fixture
def audited(tmp_path):
    def run(*rows: dict, name: str = "rows.json", first: int | None = None, languages=None, **settings) -> Audit:
        path = tmp_path / name
        lines = [json.dumps(one, ensure_ascii=False) for one in rows]
        path.write_text("\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]", encoding="utf-8")
        return audit({"train": [DataSource(str(path), **settings)]}, max_rows=first, languages=languages)

    return run


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_row_counts_by_the_language_of_its_answer(language, audited):
    result = audited(row(BALL, TRANSLATIONS[language]))
    assert result.rows == {("train", "image-text", language): 1} and result.mixed == {"train": 1}
    assert result.languages("train") == {language: 1} and result.shares("train") == {language: 100}


@pytest.mark.parametrize("answer", ["Ja", "2", "A", "[0.12, 0.4, 0.5, 0.98]"])
def test_short_answers_count_by_their_question(answer, audited):
    assert audited(row(GERMAN, answer)).languages("train") == {"de": 1}
    assert audited(row("[0.1, 0.2]", answer)).languages("train") == {UNDECIDABLE: 1}


def test_modalities_and_turns_are_told_apart(audited):
    long = row(DOG, DOG)
    long["conversations"] = long["conversations"] + 2 * row(DOG, DOG, 0)["conversations"]
    result = audited(long, row(DOG, DOG, 2), row(CHINESE, CHINESE, 0), row(DOG, DOG, 0), name="rows.jsonl")
    assert result.rows == {
        ("train", "image-text", "en"): 1, ("train", "several images", "en"): 1,
        ("train", "text-only", "zh"): 1, ("train", "text-only", "en"): 1,
    }  # fmt: skip
    assert result.turns["train", "image-text", "en"] == 3 and result.turns.total() == 6
    assert result.shares("train") == {"en": 75, "zh": 25} and not result.mixed


def test_parallel_rows_count_once_in_each_language(audited):
    result = audited(parallel("en", "cs", "hr"), parallel("en", "de"), name="rows.jsonl")
    assert result.languages("train") == {"en": 2, "cs": 1, "de": 1, "hr": 1}
    assert result.turns.total() == 10 and not result.mixed and not result.mislabelled
    assert {modality for _, modality, _ in result.rows} == {"image-text"}
    kept = audited(parallel("en", "cs"), keep_languages=["cs"])
    assert kept.languages("train") == {"cs": 1}


def test_wrong_labels_are_reported_and_relatives_are_not(audited):
    croatian = TRANSLATIONS["hr"]
    rows = [row(CZECH, CZECH, language="de"), row(CZECH, CZECH, language="cs"), row(croatian, croatian, language="sr")]
    result = audited(*rows, row(DOG, CZECH, language="cs", task="bvqa"), row(CZECH, DOG, language="cs", task="bvqa"))
    assert result.mislabelled == {("train", "de", "cs"): 1} and result.mixed["train"] == 2
    assert result.languages("train") == {"cs": 3, "en": 1, "sr": 1}
    assert audited(rows[0], language="fr").mislabelled == {("train", "de", "cs"): 1}
    texts = parallel("en", "de")
    texts["texts"]["cs"] = texts["texts"]["de"]
    assert audited(texts).mislabelled == {("train", "cs", "de"): 1}


def test_pivot_answers_count_by_what_follows_the_english_question(audited):
    answer = f"English: {BALL}\n\n{CZECH}"
    assert audited(row(CZECH, answer, task="ep_vqa", language="cs")).rows == {("train", "image-text", "cs"): 1}


def test_rows_that_training_refuses_are_counted_and_quoted(audited):
    broken = [{"id": "b", "conversations": []}, row(DOG, DOG, 1) | {"image": None}, {"id": "c"}, [1]]
    unequal = parallel("en", "cs")
    unequal["texts"]["cs"] = unequal["texts"]["cs"][:1]
    result = audited(row(DOG, DOG), *broken, unequal, *[{"id": "d"}] * 30)
    assert result.languages("train") == {"en": 1} and result.refused == {"train": 35}
    assert len(result.refusals["train"]) == 20 and re.search(r"row 1 .*'b'.*empty", result.refusals["train"][0])
    assert "rows that cannot be trained on: 35" in result.table()


def test_filters_and_limits_of_the_source_apply(audited):
    rows = [row(DOG, DOG, language="en"), row(CZECH, CZECH, language="cs")] * 5
    assert audited(*rows, keep_languages=["cs"]).languages("train") == {"cs": 5}
    assert audited(*rows, keep_languages=["cs"], max_rows=3).languages("train") == {"cs": 3}
    assert audited(*rows, keep_languages=["cs"], first=3).languages("train") == {"cs": 1}
    assert audited(*rows, first=4).languages("train") == {"cs": 2, "en": 2}
    assert audited(*rows, languages=["en", "zh", "ar"]).languages("train") == {"en": 10}


def test_stored_data_sets_are_read_like_files(tmp_path):
    rows = [row(DOG, DOG, language="en"), row(CZECH, CZECH, language="cs")]
    pixels = {"bytes": b"not an image, and nobody looks", "path": None}
    stored = datasets.Dataset.from_list([{**one, "image": pixels} for one in rows])
    stored = stored.cast_column("image", datasets.Image())
    stored.to_parquet(tmp_path / "rows.parquet")
    stored.save_to_disk(tmp_path / "saved")
    texts = datasets.Dataset.from_list([parallel("en", "cs"), parallel("en")])
    texts.to_parquet(tmp_path / "texts.parquet")
    result = audit(
        {
            "a": [DataSource(str(tmp_path / "rows.parquet"))],
            "b": [DataSource(str(tmp_path / "saved"), max_rows=1)],
            "c": [DataSource(str(tmp_path / "texts.parquet"))],
        }
    )
    assert result.languages("a") == {"cs": 1, "en": 1} and result.languages("b") == {"en": 1}
    assert result.languages("c") == {"en": 2, "cs": 1} and not result.refused
    with pytest.raises(FileNotFoundError, match="nowhere.parquet"):
        audit({"a": [DataSource(str(tmp_path / "nowhere.parquet"))]})


def test_everything_is_written_and_says_the_same(tmp_path):
    for name, rows in (
        ("pretrain", [row(DOG, DOG)] * 200),
        (
            "finetune",
            [row(DOG, DOG)] * 150 + [row(c, c, 0) for c in TRANSLATIONS.values()] + [row("1", "2"), row(DOG, CZECH)],
        ),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    result = audit({name: [DataSource(str(tmp_path / f"{name}.json"))] for name in ("pretrain", "finetune")})
    result.write(tmp_path / "audit")
    assert sum(result.shares("finetune").values()) == pytest.approx(100)

    content = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    with open(tmp_path / "audit" / "audit.csv", encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in line.items()} for line in content["counts"]] == lines
    assert lines[0] == {
        "stage": "pretrain", "language": "en", "image-text": "200", "several images": "0", "text-only": "0",
        "rows": "200", "share": "100.0", "turns": "200",
    }  # fmt: skip
    assert sum(int(line["rows"]) for line in lines) == result.rows.total() == 364
    assert content["stages"]["finetune"]["mixed"] == 1
    table = (tmp_path / "audit" / "audit.md").read_text(encoding="utf-8")
    assert table == result.table() + "\n" and len({len(line) for line in table.splitlines() if line[:1] == "|"}) == 1
    assert "pretrain: en 100.0% of 200 rows; languages below 1%: none." in table
    assert re.search(
        r"finetune: en 91.5%, cs 1.2% of 164 rows; languages below 1%: ar 0.61%, .*without words: 0.6%", table
    )
    with Image.open(tmp_path / "audit" / "audit.png") as picture:
        assert picture.width >= 1200 and len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_nothing_is_written_about_nothing(tmp_path, audited, monkeypatch):
    with pytest.raises(ValueError, match="No row was counted.*cannot be trained on: 1"):
        audited({"id": "a"}).write(tmp_path / "audit")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape('pip install "modeling-parrot[plot]"')):
        audited(row(DOG, DOG)).write(tmp_path / "audit")
    assert not (tmp_path / "audit").exists()
    with pytest.raises(ValueError, match="cannot recognise.*xx"):
        audited(row(DOG, DOG), languages=["xx"])
