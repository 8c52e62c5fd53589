"""Translations: languages are recognised, what is wrong is found, statistics add up, and people's corrections arrive."""

import csv
import json
import random
import re
import string
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sacrebleu
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_data import DOG, TRANSLATIONS

from instructions_parrot import load_instructions
from parrot_data import languages
from parrot_data.languages import language_of, same_language
from parrot_data.multilingual import quality
from parrot_data.multilingual.quality import PROBLEMS, Check, QualitySettings, check
from parrot_data.multilingual.quality_report import LanguageStatistics, agreement, report, table
from parrot_data.multilingual.review import COLUMNS, ReviewEntry, apply_corrections, read_review, write_review


EMOJI = Path(__file__).parents[3] / "examples" / "emoji" / "data"
INSTRUCTIONS = load_instructions()
DEFAULT = QualitySettings()


def sentences() -> list[tuple[str, str]]:
    """(language, line) of our own wording in 13 languages, without what is filled in."""

    def lines(value):
        if isinstance(value, str):
            yield re.sub(r"\{\w+\}", "", value)
        else:
            for item in value.values() if isinstance(value, dict) else value:
                yield from lines(item)

    questions = yaml.safe_load((EMOJI / "questions.yaml").read_text(encoding="utf-8"))
    names = ("name", "in_english", "language", "separator")
    return [
        (language, line)
        for source in (INSTRUCTIONS, questions)
        for language, wording in source.items()
        for line in lines({key: value for key, value in wording.items() if key not in names})
        if len(line) >= 20
    ]


def test_languages_of_our_own_wording_are_recognised():
    of_all = [(language, language_of(line)) for language, line in sentences()]
    of_thirteen = [(language, language_of(line, list(INSTRUCTIONS))) for language, line in sentences()]
    assert len(of_all) > 300 and {language for language, _ in of_all} == set(INSTRUCTIONS)
    # Among all 139 languages, a short sentence may pass for a close relative's (Czech for Slovak).
    told = [pair for pair in of_all if pair[1]]
    assert len(told) > 0.98 * len(of_all)
    assert sum(same_language(*pair) for pair in told) > 0.97 * len(told)
    told = [pair for pair in of_thirteen if pair[1]]
    assert len(told) > 0.98 * len(of_thirteen)
    assert sum(same_language(*pair) for pair in told) > 0.995 * len(told)


def test_sentences_are_not_taken_for_another_language_than_expected():
    wrong = [
        (language, line)
        for language, line in sentences()
        if not same_language(language_of(line, expected=language) or language, language)
    ]
    assert len(wrong) < 0.01 * len(sentences())
    caught = sum(
        not same_language(found, "cs")
        for language, line in sentences()
        if language != "cs" and (found := language_of(line, expected="cs"))
    )
    assert caught > 0.9 * sum(language != "cs" for language, _ in sentences())


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_scripts_decide_where_they_can_and_codes_come_back_as_given(language):
    assert language_of(TRANSLATIONS[language]) == language
    assert (
        language_of(f"```python\nfor the_item in this_list: print(the_item)\n```\n{TRANSLATIONS[language]}")
        == language
    )
    assert language_of(TRANSLATIONS[language], ["en", f"{language}-XX"]) == f"{language}-XX"


@pytest.mark.parametrize(
    ("text", "candidates", "found"),
    [
        ("", None, None),
        ("2", None, None),
        ("[0.12, 0.33, 0.5, 0.7]", None, None),
        ("Nike", None, None),
        ("Yes", ["en", "de"], None),
        ("https://example.com/a/very/long/address/of/the/page", None, None),
        ("是", None, None),
        ("红色", None, "zh"),
        ("Да", None, None),  # Russian, Bulgarian, Serbian, ...
        ("Да", ["en", "ru"], "ru"),
        ("これは青いiPhoneです", None, "ja"),
        ("桌上放着一部iPhone和一台MacBook Pro", None, "zh"),
        ("고양이", ["en", "zh"], "ko"),  # in none of the candidates
        ("यह एक बड़ी लाल गाड़ी की तस्वीर है जो सड़क पर खड़ी है।", None, "hi"),
    ],
)  # fmt: skip
def test_short_texts_and_scripts(text, candidates, found):
    assert language_of(text, candidates) == found


def test_standards_of_one_language_count_as_the_expected_one():
    sentence = TRANSLATIONS["hr"]
    assert [language_of(sentence, expected=code) for code in ("hr", "sr", "bs")] == ["hr", "sr", "bs"]
    assert same_language("hr", "sr") and same_language("zh-TW", "zh") and not same_language("hr", "sl")
    with pytest.raises(ValueError, match="cannot recognise.*xx.*de"):
        language_of(sentence, ["hr", "xx"])


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_good_translation_has_no_problem_and_bad_ones_have_theirs(language):
    good = TRANSLATIONS[language]
    result = check(DOG, good, language, DEFAULT, second=good, round_trip=DOG)
    assert result.problems == [] and result.language_found == language
    assert result.bleu == pytest.approx(100) and result.chrf == result.round_trip_chrf == 100
    other = "cs" if language != "cs" else "tr"

    def problems(translation, source=DOG, **more):
        return check(source, translation, language, DEFAULT, **more).problems

    assert problems(DOG)[:2] == ["untranslated", "language"]
    assert problems(TRANSLATIONS[other])[0] == "language"
    assert problems(good, second=INSTRUCTIONS[language]["caption"][0]) == ["agreement"]
    assert problems(good, round_trip="Give a short description of this region.") == ["round_trip"]
    assert problems(5 * good) == ["length"] and "length" in problems(good[: len(good) // 5])
    assert problems(" ") == ["empty"]
    assert problems(good, "<image>\n" + DOG) == ["image marker"]
    assert problems(good, DOG + " It was taken in 1987.") == ["numbers"]
    assert problems(good, DOG + " It has 2 eyes.") == []  # a word in many languages
    assert problems(f"<image>\n{good} 1987", f"<image>\n{DOG} 1987") == []


def test_unrelated_sentences_of_one_language_do_not_agree():
    scores = {
        language: [
            check(DOG, sentence, language, DEFAULT, second=other)
            for other in INSTRUCTIONS[language]["caption"] + INSTRUCTIONS[language]["pivot"]
        ]
        for language, sentence in TRANSLATIONS.items()
    }
    assert all("agreement" in result.problems for checks in scores.values() for result in checks)
    assert 10 < sum(result.chrf for result in scores["de"]) / len(scores["de"]) < 20


def test_names_boxes_and_short_answers_need_no_translation():
    for text in ("Eiffel Tower", "2", "[0.1, 0.25, 0.5, 0.9]", "B", "OK"):
        assert check(text, text, "cs", DEFAULT, second=text, round_trip=text).problems == []
    assert check("Yes", "Ano, rozhodně to tak je", "cs", DEFAULT).length_ratio is None
    assert check("", "", "cs", DEFAULT) == Check()


def test_real_names_in_thirteen_languages_are_rarely_suspicious():
    concepts = json.loads((EMOJI / "concepts.json").read_text(encoding="utf-8"))["concepts"]
    checks = [
        check(concept["names"]["en"], name, language, DEFAULT)
        for concept in concepts
        for language, name in concept["names"].items()
        if language != "en"
    ]
    assert len(checks) > 1000 and sum(bool(result.problems) for result in checks) < 0.01 * len(checks)


def test_settings_switch_checks_off_and_are_checked():
    nothing = {"min_agreement": None, "min_round_trip": None, "length_ratio": None, "untranslated_words": None}
    off = QualitySettings.from_mapping({**nothing, "check_language": False, "check_numbers": False})
    assert check(DOG + " 1987", DOG, "zh", off, second="x", round_trip="y").problems == []
    assert QualitySettings.from_mapping(None) == DEFAULT
    own = QualitySettings.from_mapping({"length_ratio": [0.1, 9], "length_factor": {"th": 1.1}, "min_agreement": 60})
    assert own.length_factor == {"zh": 3.0, "ja": 1.8, "ko": 1.8, "th": 1.1}
    assert "length" not in check(DOG, 5 * TRANSLATIONS["de"], "de", own).problems


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"min_chrf": 3}, "'min_chrf'.*min_agreement"),
        ({"min_agreement": 300}, "min_agreement.*0 to 100.*300"),
        ({"min_agreement": "high"}, "min_agreement.*'high'"),
        ({"length_ratio": [2, 1]}, "length_ratio.*smaller first"),
        ({"length_ratio": 2}, "length_ratio.*two numbers"),
        ({"check_language": "yes"}, "check_language.*true or false"),
        ({"length_factor": {"zh": "3"}}, "length_factor"),
        ({"untranslated_words": True}, "untranslated_words"),
        (["min_agreement"], "names with values"),
    ],
)
def test_bad_settings_are_refused_by_name(mapping, message):
    with pytest.raises(ValueError, match=message):
        QualitySettings.from_mapping(mapping)


def test_language_that_cannot_be_checked_is_not_passed_over():
    with pytest.raises(ValueError, match="'tlh'.*check_language: false"):
        check(DOG, "qajunpaQHeylIjmo'", "tlh", DEFAULT)


def test_missing_packages_say_what_to_install(monkeypatch, tmp_path):
    for module, forget, call in (
        ("py3langid.langid", languages._identifier, lambda: languages._probabilities(DOG)),
        ("sacrebleu.metrics", quality._metrics, lambda: check(DOG, DOG, "cs", DEFAULT, second=DOG)),
    ):
        check(DOG, DOG, "cs", DEFAULT)
        languages._probabilities.cache_clear()
        forget.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=re.escape('pip install "modeling-parrot[translate]"')):
                call()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape('pip install "modeling-parrot[plot]"')):
        report({"cs": LanguageStatistics()}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def some_checks(count: int, language: str = "de", seed: int = 0) -> list[list[Check]]:
    """Rows of two texts, whose second translation and round trip lack words."""
    generator = random.Random(seed)

    def damaged(text):
        return " ".join(word for word in text.split() if generator.random() > 0.2)

    pairs = [
        (DOG, TRANSLATIONS[language]),
        *zip(INSTRUCTIONS["en"]["caption"], INSTRUCTIONS[language]["caption"], strict=True),
    ]
    return [
        [check(a, b, language, DEFAULT, second=damaged(b), round_trip=damaged(a)) for a, b in generator.sample(pairs, 2)]
        for _ in range(count)
    ]  # fmt: skip


def gathered(rows) -> LanguageStatistics:
    statistics = LanguageStatistics()
    for checks in rows:
        statistics.add(checks)
    return statistics


@pytest.mark.parametrize(("language", "tokenizer"), [("de", "13a"), ("zh", "zh")])
def test_scores_are_those_of_the_whole_corpus(language, tokenizer):
    pairs = [
        (line, f"{line} {other}")
        for line, other in zip(*([iter(INSTRUCTIONS[language]["pivot"] * 2)] * 2), strict=True)
    ]
    statistics = gathered([check("x", line, language, DEFAULT, second=other)] for line, other in pairs)
    hypotheses, references = zip(*pairs, strict=True)
    scores = agreement({language: statistics, "it": LanguageStatistics()})
    assert scores[language]["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenizer).score, abs=0.05
    )
    sentence_chrf = [sacrebleu.sentence_chrf(line, [other]).score for line, other in pairs]
    assert scores[language]["chrf"] == pytest.approx(sum(sentence_chrf) / len(pairs), abs=0.05)
    assert scores[language]["pairs"] == len(pairs) and scores["mean"] == scores[language] and "it" not in scores


def test_statistics_of_parts_merge_to_those_of_the_whole():
    rows = some_checks(40)
    whole, parts = (
        gathered(rows),
        [gathered(rows[:7]), gathered(rows[7:30]), gathered(rows[30:]), LanguageStatistics()],
    )
    stored = [json.loads(json.dumps(part.to_json())) for part in parts]
    merged = LanguageStatistics()
    for part in stored:
        merged = merged.merge(LanguageStatistics.from_json(part))
    assert merged.summary() == whole.summary() and merged.rows == 40
    assert merged.bleu_counts == whole.bleu_counts and merged.problems == whole.problems
    assert len(json.dumps(gathered(rows * 20).to_json())) < 1.5 * len(json.dumps(gathered(rows).to_json()))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 100)), min_size=1, max_size=50))
@settings(max_examples=50)
def test_quantiles_are_as_exact_as_the_bins(measured):
    statistics = gathered([Check(chrf=c, bleu_counts=[1] * 10, length_ratio=ratio)] for c, ratio in measured)
    values = statistics.summary()
    assert values["chrf_quantiles"] == sorted(values["chrf_quantiles"])
    ordered = sorted(c for c, _ in measured)
    assert ordered[(len(ordered) - 1) // 2] - 2.1 <= values["chrf_quantiles"][2] <= ordered[len(ordered) // 2] + 2.1
    ratios = sorted(min(max(ratio, 1 / 16), 16) for _, ratio in measured)
    low, high = ratios[(len(ratios) - 1) // 2], ratios[len(ratios) // 2]
    assert 0.94 * low - 0.01 <= values["length_ratio"] <= 1.06 * high + 0.01


def test_report_is_complete_and_can_be_merged_again(tmp_path):
    per_language = {language: gathered(some_checks(30, language)) for language in ("zh", "de", "hr")}
    per_language["cs"] = gathered([[check(DOG, DOG, "cs", DEFAULT)], [check(DOG, TRANSLATIONS["cs"], "cs", DEFAULT)]])
    report(per_language, tmp_path)
    content = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    assert content["languages"]["cs"]["summary"]["flagged"] == 50 and content["agreement"]["mean"]["pairs"] == 180
    assert LanguageStatistics.from_json(content["languages"]["hr"]["statistics"]) == per_language["hr"]
    lines = (tmp_path / "quality.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["zh", "de", "hr", "cs"]
    assert "untranslated, %" in lines[0] and len({line.count("|") for line in lines}) == 1
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.width >= 1200 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    report({"cs": gathered([[Check(problems=list(PROBLEMS))]])}, tmp_path)  # neither second translation nor round trip
    assert table({"cs": LanguageStatistics()}).endswith("| cs | 0 | 0.0 |  |  |  |  |")
    with pytest.raises(ValueError, match="no language"):
        report({}, tmp_path)


ROW = {
    "id": "000017",
    "image": "17.png",
    "texts": {
        "en": [{"question": "<image>\nWhat is this?", "answer": "-5 °C"}, {"question": "Why?", "answer": "It snows."}],
        "cs": [{"question": "<image>\nCo je to?", "answer": "-5 °C"}, {"question": "Proc?", "answer": "Sněží."}],
        "de": [{"question": "<image>\nWas ist das?", "answer": "-5 °C"}, {"question": "Warum?", "answer": "Es schneit."}],
    },
}  # fmt: skip


def entry(language="cs", turn=0, part="answer", **values) -> ReviewEntry:
    text = ROW["texts"][language][turn][part] if language in ROW["texts"] and turn < 2 else ""
    return ReviewEntry(**{**vars(ReviewEntry("000017", language, turn, part, "", text)), **values})


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
entries = st.lists(
    st.builds(
        ReviewEntry, texts.filter(str.strip), st.sampled_from(["cs", "zh"]), st.integers(0, 9),
        st.sampled_from(["question", "answer"]), texts, texts, texts,
        st.lists(st.sampled_from(PROBLEMS), unique=True), texts,
    ),
    max_size=4,
)  # fmt: skip


@pytest.mark.parametrize("name", ["review.csv", "review.jsonl"])
def test_review_is_read_as_it_was_written(name, tmp_path_factory):
    @given(entries)
    @settings(max_examples=60, deadline=None)
    def there_and_back(written):
        path = tmp_path_factory.mktemp("review") / name
        assert write_review(path, written) == len(written)
        assert list(read_review(path)) == written
        assert [file.name for file in path.parent.iterdir()] == [name]

    there_and_back()


def test_spreadsheets_do_not_change_what_they_open(tmp_path):
    """Numbers and formulas are marked as text; what a European spreadsheet saves is read, notes and all."""
    path = tmp_path / "review.csv"
    written = [entry(source="=1+2", translation="+3"), entry(turn=1, problems=["length", "numbers"])]
    write_review(path, written)
    assert path.read_bytes().startswith("\ufeffid,".encode())
    cells = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    assert cells[1][0] == "'000017" and cells[1][4:6] == ["'=1+2", "'+3"]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";", quoting=csv.QUOTE_ALL)
        writer.writerows([[*cells[0], "note"], [*cells[1][:-1], "-5 °C"], [], [*cells[2], "why?"], [""] * 10])
    assert list(read_review(path, rows={"000017"})) == [replace(written[0], correction="-5 °C"), written[1]]


def test_corrections_are_not_overwritten(tmp_path):
    path = tmp_path / "review.csv"
    write_review(path, [entry()])
    write_review(path, [entry(turn=1)])
    write_review(path, [entry(correction="ok")])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="holds corrections"):
        write_review(path, [entry()])
    with pytest.raises(RuntimeError):
        write_review(tmp_path / "new.csv", (entry() if k < 3 else exec("raise RuntimeError") for k in range(9)))
    assert path.read_bytes() == before and not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt.*csv.*jsonl"),
        ("a.csv", "id,language,turn,part\n1,cs,0,answer\n", "line 2: no column source"),
        ("a.csv", ",".join(COLUMNS) + "\n1,cs,one,answer,a,b,c,d,e\n", "line 2: the turn.*'one'"),
        ("a.csv", ",".join(COLUMNS) + "\n1,cs,-1,answer,a,b,c,d,e\n", "line 2: the turn.*'-1'"),
        ("a.csv", ",".join(COLUMNS) + "\n1,cs,0,caption,a,b,c,d,e\n", "line 2: the part.*'caption'"),
        ("a.csv", ",".join(COLUMNS) + "\n17,cs,0,answer,a,b,c,d,e\n", "line 2: there is no row '17'"),
        ("a.csv", ",".join(COLUMNS).encode() + "\n1,cs,0,answer,a,\xe1,,,".encode("latin-1"), "CSV UTF-8"),
        ("a.jsonl", '{"id": "000017"', "line 1: not valid JSON"),
        ("a.jsonl", "[1]", "line 1: expected an object"),
        ("a.jsonl", '\n{"id": "000017"}', "line 2: no column language"),
    ],
)
def test_unreadable_reviews_are_refused_by_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        list(read_review(tmp_path / name, rows={"000017", "1"}))


def test_corrections_replace_keep_or_drop():
    before = json.dumps(ROW)
    fixed = apply_corrections(ROW, [entry(turn=1, part="question", correction=" Proč? \n"), entry(correction="OK")])
    assert fixed["texts"]["cs"][1] == {"question": "Proč?", "answer": "Sněží."} and fixed["image"] == "17.png"
    assert fixed["texts"]["cs"][0] == ROW["texts"]["cs"][0] and fixed["texts"]["de"] == ROW["texts"]["de"]
    for undone in ("", " ", "-"):
        left = apply_corrections(ROW, [entry(correction="ok"), entry(turn=1, correction=undone)])
        assert list(left["texts"]) == ["en", "de"]
    assert apply_corrections(ROW, []) == ROW and json.dumps(ROW) == before


@given(st.text(string.printable))
def test_every_other_text_is_a_correction(text):
    fixed = apply_corrections(ROW, [entry(correction=text)])
    if text.strip() in ("", "-"):
        assert "cs" not in fixed["texts"]
    elif text.strip().lower() == "ok":
        assert fixed == ROW
    else:
        assert fixed["texts"]["cs"][0]["answer"] == text.strip().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("corrections", "message"),
    [
        ([entry(id="17", correction="ok")], "'cs'.*correction of row '17'"),
        ([entry("it", correction="ok")], "'it', turn 0.*no such text.*cs \\(2 turns\\)"),
        ([entry(turn=2, correction="ok")], "turn 2.*no such text"),
        ([replace(entry(), part="image")], "image.*no such text"),
        ([entry(correction="a"), entry(correction="b")], "two different corrections"),
        ([entry(part="question", correction="Co to je?")], "question: the correction must have as many <image>"),
    ],
)
def test_corrections_that_do_not_fit_are_refused(corrections, message):
    with pytest.raises(ValueError, match=f"Row '000017'.*{message}"):
        apply_corrections(ROW, corrections)
