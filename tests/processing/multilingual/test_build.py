"""Building parallel texts: the same files however they are made, nothing lost or repeated, reviews that come back."""

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_models

from parrot_data import DataSource, ImageReader, Mixture, open_sources
from parrot_data.multilingual.calibration import apply_review, review_entries
from parrot_data.multilingual.parts import BuildSettings, PartBuilder
from parrot_data.multilingual.quality import QualitySettings
from parrot_data.multilingual.review import write_review
from parrot_data.multilingual.segments import texts_to_translate
from parrot_data.multilingual.shards import Shard, build, damaged_files, manifests, read_manifest, statistics
from parrot_data.multilingual.translators import TranslationError, translator_from
from parrot_data.sources import wording


ROOT = Path(__file__).parents[3]
LANGUAGES = ["cs", "zh"]
LENIENT = {"min_agreement": None, "min_round_trip": None, "length_ratio": None, "check_language": False}
LENIENT |= {"check_numbers": False, "untranslated_words": None}

DEMANDING = QualitySettings(**(LENIENT | {"untranslated_words": 3}))


def english(number):
    """LLaVA rows: naming, options with a response format, two turns, and rows that stay English."""
    rows = []
    for k in range(number):
        if k % 5 == 4:
            turns = [("<image>\nWhat is 12 + 7 * 3?", "12 + 7 * 3 = 33")]
        elif k % 5 == 3:
            question = f"<image>\nWhich animal number {k} is it?\nA. cat\nB. dog\n"
            turns = [(question + "Answer with the option's letter from the given choices directly.", "B")]
        elif k % 5 == 2:
            turns = [
                ("<image>\nIs this a dog?", f"Yes, dog {k}, at [0.1, 0.2, 0.5, 0.6]."),
                ("And the cat?", "It sleeps."),
            ]
        else:
            turns = [("<image>\nWhat is in the picture?", f"a dog and {k} cats")]
        conversations = [
            {"from": s, "value": t} for turn in turns for s, t in zip(("human", "gpt"), turn, strict=True)
        ]
        rows.append({"id": f"r{k}", "image": "0.png", "conversations": conversations})
    return rows


def all_texts(rows):
    turns = [
        {"question": row["conversations"][n]["value"], "answer": row["conversations"][n + 1]["value"]}
        for row in rows
        for n in range(0, len(row["conversations"]), 2)
    ]
    return texts_to_translate(turns, wording())


@pytest.fixture
def folder(tmp_path):
    """23 English rows and a file with a translation of each of their texts."""
    rows = english(23)
    tiny_models.picture(0).save(tmp_path / "0.png")
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    with open(tmp_path / "translations.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["en", *LANGUAGES])
        writer.writerows([text, f"{text} česky", f"中文 {text}"] for text in all_texts(rows))
    return tmp_path


def settings(folder, **changes):
    options = {
        "source": DataSource(str(folder / "rows.json")),
        "languages": LANGUAGES,
        "translator": {"kind": "file", "path": str(folder / "translations.csv")},
        "quality": QualitySettings(**LENIENT),
        "rows_per_file": 4,
    }
    return BuildSettings(**(options | changes))


def builder(folder, **changes):
    return PartBuilder(settings(folder, **changes))


def rows_of(folder):
    return [row for path in sorted(Path(folder).glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def present(texts):
    return {language: turns for language, turns in texts.items() if turns}


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("part-*.parquet"))}


def test_rows_become_parallel_and_trainable(folder):
    made = build(builder(folder), folder / "out")
    assert made == {"rows": 23, "files": 6, "earlier": 0}
    rows = rows_of(folder / "out")
    assert [row["id"] for row in rows] == [f"r{k}-{k}" for k in range(23)]
    choice, formula, talk = rows[3], rows[4], rows[2]
    assert formula["kept"] == "formula" and set(present(formula["texts"])) == {"en"}
    wanted = f"<image>\nWhich animal number 3 is it? česky\nA. cat česky\nB. dog česky\n{wording()['cs']['formats']['option_letter']}"
    assert choice["texts"]["cs"] == [{"question": wanted, "answer": "B"}]
    assert [turn["answer"] for turn in talk["texts"]["zh"]] == [
        "中文 Yes, dog 2, at [0.1, 0.2, 0.5, 0.6].",
        "中文 It sleeps.",
    ]
    source = DataSource(str(folder / "out" / "part-*.parquet"), image_folder=str(folder))
    mixture = Mixture({"built": source}, {"en": 0.5, "cs": 0.25, "zh": 0.25}, {"mvqa": 0.5, "bvqa": 0.5}, rows=40)
    dataset = open_sources(mixture, 0, ImageReader())
    assert len(dataset) == 40 and all(len(row["images"]) == 1 for row in dataset)


def test_shards_and_processes_make_the_same_files(folder):
    build(builder(folder), folder / "one")
    for index in (3, 1, 2):
        build(builder(folder), folder / "three", Shard(index, 3), num_proc=2 if index == 1 else 1)
    assert files(folder / "one") == files(folder / "three")
    assert manifests(folder / "three")[1] == [] and damaged_files(folder / "three") == []
    merged, whole = statistics(folder / "three"), statistics(folder / "one")
    assert {name: found.rows for name, found in merged.items()} == {name: found.rows for name, found in whole.items()}
    assert merged["cs"].rows == 19  # without the four formulas


class Flaky:
    """Fails when it is asked for the third time."""

    name = "flaky"

    def __init__(self, calls=3):
        self.calls = calls

    def translate(self, texts, target, source="en"):
        self.calls -= 1
        if self.calls == 0:
            raise TranslationError("the endpoint is gone")
        return [f"{target} {text}" for text in texts]


def test_a_translator_that_fails_loses_nothing_that_is_finished(folder, monkeypatch):
    monkeypatch.setattr("parrot_data.multilingual.parts.translator_from", lambda entry: Flaky(calls=6))
    with pytest.raises(TranslationError, match="the endpoint is gone"):
        build(builder(folder), folder / "out")
    assert len(files(folder / "out")) == 2 and len(read_manifest(Shard(), folder / "out")) == 2
    before = files(folder / "out")
    monkeypatch.setattr("parrot_data.multilingual.parts.translator_from", lambda entry: Flaky(calls=-1))
    seen = []
    assert build(builder(folder), folder / "out", progress=seen.append) == {"rows": 23, "files": 6, "earlier": 2}
    assert sum(seen) == 23 and before.items() <= files(folder / "out").items()
    assert [row["id"] for row in rows_of(folder / "out")] == [f"r{k}-{k}" for k in range(23)]
    assert build(builder(folder), folder / "out")["earlier"] == 6


def test_a_manifest_that_a_kill_cut_off_is_read(folder):
    build(builder(folder), folder / "out")
    whole = files(folder / "out")
    manifest = Shard().manifest(folder / "out")
    manifest.write_bytes(manifest.read_bytes()[:-20])
    (folder / "out" / "part-000001.parquet").unlink()
    assert build(builder(folder), folder / "out")["earlier"] == 4
    assert files(folder / "out") == whole and damaged_files(folder / "out") == []
    assert len(read_manifest(Shard(), folder / "out")) == 6


def test_a_killed_program_goes_on(folder):
    (folder / "rows.json").write_text(json.dumps(english(150)), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    entry = {"source": {"path": str(folder / "rows.json")}, "languages": LANGUAGES, "output": str(folder / "out")}
    entry |= {"translator": {"kind": "file", "path": str(folder / "translations.csv")}, "quality": LENIENT}
    recipe.write_text(json.dumps(entry | {"rows_per_file": 1}), encoding="utf-8")
    command = [sys.executable, str(ROOT / "examples" / "build_multilingual.py"), "build", str(recipe)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(files(folder / "out")) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert 3 <= len(files(folder / "out")) < 150
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "150 rows in 150 files" in done.stdout
    assert [row["id"] for row in rows_of(folder / "out")] == [f"r{k}-{k}" for k in range(150)]
    assert damaged_files(folder / "out") == []


def test_other_settings_are_refused(folder):
    build(builder(folder), folder / "out")
    before = files(folder / "out")
    with pytest.raises(ValueError, match=r"is from other settings \(languages\)"):
        build(builder(folder, languages=["cs"]), folder / "out")
    with pytest.raises(ValueError, match="begun in another number of shards"):
        build(builder(folder), folder / "out", Shard(1, 2))
    (folder / "rows.json").write_text(json.dumps(english(24)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other settings \(source_bytes\)"):
        build(builder(folder), folder / "out")
    assert files(folder / "out") == before


def test_disjoint_subsets_use_every_row_once(folder):
    (folder / "rows.json").write_text(json.dumps(english(400)), encoding="utf-8")

    class Echo(Flaky):
        calls = -1

        def __init__(self):
            pass

    def languages(**changes):
        own = builder(folder, subsets="disjoint", **changes)
        own.translator = Echo()
        rows, _, _ = own.build(list(enumerate(english(400))))
        assert all(len(present(row["texts"])) == 1 for row in rows)
        return [next(iter(present(row["texts"]))) for row in rows if row["kept"] is None]

    even = Counter(languages())
    assert set(even) == {"cs", "zh"} and abs(even["cs"] - 160) < 40
    weighted = Counter(languages(shares={"en": 0.5, "zh": 0.4, "cs": 0.1}))
    assert abs(weighted["en"] - 160) < 40 and abs(weighted["cs"] - 32) < 20
    assert languages() == languages()


def test_lost_placeholders_and_suspicious_translations_wait_for_a_review(folder):
    class Careless(Flaky):
        def translate(self, texts, target, source="en"):
            return [text.replace("<1>", "").upper() + (" <2>" if "dog 7" in text else "") for text in texts]

    own = builder(folder, quality=QualitySettings(**(LENIENT | {"untranslated_words": 2})))
    own.translator = Careless()
    rows, entries, counts = own.build(list(enumerate(english(10))))
    assert {entry.id for entry in entries if "placeholders" in entry.problems} == {"r2-2", "r7-7"}
    pending = rows[2]["pending"]["cs"][0]["answer"]
    assert "[0.1, 0.2, 0.5, 0.6]" in pending and present(rows[2]["texts"]).keys() == {"en"}
    assert counts["pending"]["cs"] == 6  # not the formulas, and not the options, whose response format is Czech
    assert own.build(list(enumerate(english(10))))[1] == entries


def test_what_a_translator_cannot_do_waits_or_stops_the_build(folder):
    class Refusing(Flaky):
        def translate(self, texts, target, source="en"):
            able = {text: f"{target} {text}" for text in texts if "sleeps" not in text}
            raise TranslationError("refused", [text for text in texts if text not in able], able)

    own = builder(folder)
    own.translator = Refusing()
    rows, entries, counts = own.build(list(enumerate(english(10))))
    assert {(entry.id, entry.part, *entry.problems) for entry in entries} == {
        ("r2-2", "answer", "untranslated"), ("r7-7", "answer", "untranslated")
    }  # fmt: skip
    assert rows[2]["pending"]["cs"][1]["answer"] == "It sleeps." and "cs" not in rows[2]["texts"]
    assert rows[0]["texts"]["cs"] and counts["statistics"]["cs"]["problems"] == {"untranslated": 2}
    strict = builder(folder, on_untranslated="error")
    strict.translator = Refusing()
    with pytest.raises(TranslationError, match="refused"):
        strict.build(list(enumerate(english(10))))


def test_too_few_lines_stop_the_build(folder):
    class Short(Flaky):
        def translate(self, texts, target, source="en"):
            return list(texts)[:-1]

    own = builder(folder)
    own.translator = Short()
    with pytest.raises(TranslationError, match=r"\d+ translation\(s\) came back for \d+ text"):
        own.build(list(enumerate(english(10))))


def reviewed(folder, correct):
    """Writes the review of `folder` and fills its column with `correct(entry)`."""
    path = folder / "review.jsonl"
    write_review(path, review_entries(folder / "out"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["correction"] = correct(line)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def suspicious(folder, monkeypatch):
    """A build whose translations all come back in English."""
    echo = Flaky(calls=-1)
    echo.translate = lambda texts, target, source="en": list(texts)
    monkeypatch.setattr("parrot_data.multilingual.parts.translator_from", lambda entry: echo)
    build(builder(folder, quality=DEMANDING), folder / "out")
    return folder


def test_corrections_come_back(suspicious):
    # Options have their response format in Czech, so they do not come back as they were.
    assert [row["id"] for row in rows_of(suspicious / "out") if row["texts"]["cs"]] == [
        "r3-3",
        "r8-8",
        "r13-13",
        "r18-18",
    ]

    def correct(entry):
        if entry["language"] == "zh" or entry["id"] == "r5-5":
            return ""
        if entry["id"] == "r6-6":
            return "-"
        return "ok" if entry["part"] == "answer" else f"{entry['translation']} opraveno"

    path = reviewed(suspicious, correct)
    first = apply_review(suspicious / "out", path)
    rows = {row["id"]: row for row in rows_of(suspicious / "out")}
    assert rows["r0-0"]["texts"]["cs"][0] == {
        "question": "<image>\nWhat is in the picture? opraveno", "answer": "a dog and 0 cats"
    }  # fmt: skip
    assert rows["r0-0"]["pending"]["zh"] and not rows["r0-0"]["texts"]["zh"]
    assert rows["r5-5"]["pending"]["cs"] and not rows["r6-6"]["pending"]["cs"] and not rows["r6-6"]["texts"]["cs"]
    assert first == {"accepted": 13, "dropped": 1, "waiting": 16}
    assert damaged_files(suspicious / "out") == []
    again = files(suspicious / "out")
    assert apply_review(suspicious / "out", path) == {"accepted": 0, "dropped": 0, "waiting": 16}
    assert files(suspicious / "out") == again
    # What was reviewed is not built anew.
    again_built = build(builder(suspicious, quality=DEMANDING), suspicious / "out")
    assert again_built["earlier"] == 6 and files(suspicious / "out") == again


def test_a_review_that_a_kill_interrupted_is_applied_again(suspicious):
    path = reviewed(suspicious, lambda entry: "ok")
    before = files(suspicious / "out")
    apply_review(suspicious / "out", path)
    after = files(suspicious / "out")
    # The manifest is told before the file is put in its place: a kill in between leaves the old file.
    (suspicious / "out" / "part-000000.parquet").write_bytes(before["part-000000.parquet"])
    assert damaged_files(suspicious / "out") == ["part-000000.parquet"]
    apply_review(suspicious / "out", path)
    assert files(suspicious / "out") == after and damaged_files(suspicious / "out") == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda line: line.update(id="r99-99"), "there is no row 'r99-99'"),
        (lambda line: line.update(turn=7), "no such text to correct"),
        (lambda line: line.update(correction="bez obrázku"), "must have as many <image>"),
    ],
)
def test_bad_reviews_change_nothing(suspicious, change, complaint):
    path = reviewed(suspicious, lambda entry: "ok")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change([line for line in lines if line["part"] == "question"][-2])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    before = files(suspicious / "out")
    with pytest.raises(ValueError, match=complaint):
        apply_review(suspicious / "out", path)
    assert files(suspicious / "out") == before


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"languages": []}, "name each language to translate into once"),
        ({"languages": ["cs", "en"]}, "English not"),
        ({"languages": ["cs", "fi"]}, "No instructions in language fi"),
        ({"subsets": "some"}, "must be parallel or disjoint"),
        ({"shares": {"cs": 1.0}}, "`shares` belong to disjoint subsets"),
        ({"subsets": "disjoint", "shares": {"cs": 0.4, "de": 0.6}}, "languages among en, cs, zh"),
        ({"checked": 3}, "checked=3 must be 0 to 1"),
    ],
)
def test_mistakes_in_settings_are_named(folder, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        settings(folder, **changes)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "x", "conversations": [{"from": "human", "value": "hi"}]}, "does not end with an answer"),
        ({"id": "x", "image": "0.png", "conversations": english(1)[0]["conversations"][1:]}, "expected the user"),
        (
            {
                "id": "x",
                "image": "0.png",
                "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
            },
            "0 <image> in the text but 1 image",
        ),
        ({"id": "x", "texts": {"en": [], "cs": []}}, "has parallel texts already"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]},
            "parallel texts have no system message",
        ),
    ],
)
def test_bad_rows_are_named(folder, row, complaint):
    (folder / "rows.json").write_text(json.dumps([*english(2), row]), encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        build(builder(folder), folder / "out")


def test_rows_of_other_languages_are_taken_as_they_are(folder):
    rows = english(3)
    rows[1] |= {"language": "zh"}
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    build(builder(folder), folder / "out")
    made = rows_of(folder / "out")
    assert set(present(made[1]["texts"])) == {"zh"} and set(present(made[0]["texts"])) == {"en", "cs", "zh"}
    rows[1] |= {"language": "hr"}
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match="is in 'hr', which is neither English nor one of the languages cs, zh"):
        build(builder(folder), folder / "other")
    only_english = DataSource(str(folder / "rows.json"), keep_languages=["en"])
    build(builder(folder, source=only_english), folder / "third")
    assert [row["id"] for row in rows_of(folder / "third")] == ["r0-0", "r2-2"]


def test_the_second_translator_and_the_way_back_are_measured(folder):
    class Other(Flaky):
        def translate(self, texts, target, source="en"):
            if target == "en":
                return [text.removesuffix(" česky").removeprefix("中文 ") for text in texts]
            return [f"{text} jinak" for text in texts]

    own = PartBuilder(
        settings(folder, round_trip=True, second_translator={"kind": "file", "path": str(folder / "translations.csv")})
    )
    own.second = Other()
    _, _, counts = own.build(list(enumerate(english(23))))
    found = counts["statistics"]["cs"]
    assert found["pairs"] > 0 and found["round_trips"] == found["pairs"]
    assert found["round_trip_sum"] / found["round_trips"] == pytest.approx(100)
    assert 0 < found["chrf_sum"] / found["pairs"] < 100
    half = PartBuilder(
        settings(folder, checked=0.5, second_translator={"kind": "file", "path": str(folder / "translations.csv")})
    )
    _, _, fewer = half.build(list(enumerate(english(23))))
    assert 0 < fewer["statistics"]["cs"]["pairs"] < found["pairs"]


def test_translator_from_a_recipe_is_what_the_build_uses(folder):
    assert builder(folder).translator.name == translator_from(settings(folder).translator).name
