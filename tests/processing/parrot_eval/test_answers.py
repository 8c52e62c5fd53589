"""Reading answers: the labelled answers of both halves, the issue's hard cases, and what holds for any answer at all."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_eval.answers import load_answer_words, parse_choice, parse_yes_no


HERE = Path(__file__).parent
LANGUAGES = "en zh pt ar tr ru cs de fr hr it ro es".split()
PETS = {"A": "dog", "B": "cat", "C": "horse", "D": "bird"}


def labelled(half):
    return [json.loads(line) for line in (HERE / f"answers_{half}.jsonl").read_text(encoding="utf-8").splitlines()]


def read(row):
    if row["kind"] == "choice":
        return parse_choice(row["answer"], row["options"], row["language"])
    return parse_yes_no(row["answer"], row["language"])


@pytest.mark.parametrize(
    ("half", "kind", "right", "false"),
    [
        ("development", "written", 0.99, 0.002),
        ("development", "model", 0.88, 0.1),
        ("held_out", "written", 0.97, 0.015),
        ("held_out", "model", 0.86, 0.12),
    ],
)
def test_labelled_answers(half, kind, right, false):
    """Shares of answers read as labelled, and of those read as something else. Only ids are shown, not the answers."""
    ids, missed, wrong = defaultdict(int), [], []
    for row in labelled(half):
        if ("-model-" in row["id"]) == (kind == "model"):
            ids[row["language"]] += 1
            found = read(row)
            if found != row["label"]:
                (missed if found is None else wrong).append(row["id"])
    count, fewest = sum(ids.values()), min(ids.values())
    assert list(ids) == LANGUAGES and (fewest >= 40 or kind == "model")
    assert len(missed) + len(wrong) <= (1 - right) * count, (missed, wrong)
    assert len(wrong) <= false * count, wrong


@pytest.mark.parametrize(
    ("answer", "language", "options", "expected"),
    [
        ("答案是B。", "zh", {"A": "狗", "B": "猫"}, "B"),
        ("选B", "zh", {"A": "狗", "B": "猫"}, "B"),
        ("（Ｂ）", "zh", {"A": "狗", "B": "猫"}, "B"),
        ("Ответ: В", "ru", {"A": "собака", "B": "кошка"}, "B"),
        ("الجواب: ب", "ar", {"A": "كلب", "B": "قطة"}, "B"),
        ("Cevap B'dir", "tr", {"A": "köpek", "B": "kedi"}, "B"),
        ("A resposta é gato", "pt", {"A": "cão", "B": "gato"}, "B"),
        ("Not A, but C.", "en", PETS, "C"),
        ("A. dog B. cat C. horse D. bird", "en", PETS, None),
        ("", "en", PETS, None),
        ("A or B", "en", PETS, None),
        ("I cannot tell.", "en", PETS, None),
    ],
)
def test_choices_of_the_kinds_that_english_rules_misread(answer, language, options, expected):
    assert parse_choice(answer, options, language) == expected


@pytest.mark.parametrize(
    ("answer", "language", "expected"),
    [
        ("Ano", "cs", True),
        ("Ne.", "cs", False),
        ("Ja, das stimmt.", "de", True),
        ("Nein", "de", False),
        ("是", "zh", True),
        ("否", "zh", False),
        ("Não", "pt", False),
        ("Evet, bir kedi var.", "tr", True),
        ("图中没有狗。", "zh", False),
        ("В комнате нет собаки.", "ru", False),
        ("", "en", None),
        ("yes and no", "en", None),
        ("It depends.", "en", None),
    ],
)
def test_yes_and_no(answer, language, expected):
    assert parse_yes_no(answer, language) is expected


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("form", ["{}", "{}.", "({})", "**{}**", " {}\n", "\\boxed{{{}}}"])
def test_a_bare_letter_is_that_option_in_every_language(language, form):
    options = {"A": "12", "B": "34", "C": "56", "D": "78"}
    assert [parse_choice(form.format(letter), options, language) for letter in options] == list(options)


def test_a_script_variant_is_read_as_its_language():
    options = {"A": "狗", "B": "貓"}
    assert parse_choice("答案是B。", options, "zh-Hant") == parse_choice("答案是B。", options, "zh") == "B"


TEXT = st.text(max_size=120)
OPTIONS = st.dictionaries(st.sampled_from("ABCDEF"), st.text(max_size=20), max_size=6)


@settings(max_examples=300, deadline=None)
@given(TEXT, OPTIONS, st.sampled_from(LANGUAGES))
def test_any_answer_is_read_as_an_option_that_there_is_or_none(answer, options, language):
    assert parse_choice(answer, options, language) in {*options, None}
    assert parse_yes_no(answer, language) in {True, False, None}


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=" .,;!?\n\t…-—()[]*0123456789", max_size=80), st.sampled_from(LANGUAGES))
def test_nothing_is_invented_from_punctuation_and_numbers(answer, language):
    assert parse_choice(answer, {"A": "red", "B": "blue"}, language) is None
    assert parse_yes_no(answer, language) is None


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(LANGUAGES), st.permutations(list(PETS)))
def test_an_answer_that_repeats_all_options_chooses_none(language, order):
    listing = "\n".join(f"{letter}. {PETS[letter]}" for letter in order)
    assert parse_choice(listing, PETS, language) is None


def test_long_answers_are_read_by_their_end():
    assert parse_choice("word " * 20_000 + "\nThe answer is C.", PETS, "en") == "C"


def test_further_languages_come_from_a_file(tmp_path):
    (tmp_path / "fi.yaml").write_text(
        "fi:\n  little: se, on\n  before_letter: 'on'\n  answer: vastaus\n  option: vaihtoehto\n  or: tai\n  right: oikein\n"
        "  wrong: väärin\n  therefore: siis\n  but: mutta\n  unsure: ehkä\n  'yes': kyllä\n  no_alone: ei\n  not: ei\n",
        encoding="utf-8",
    )
    words = load_answer_words(tmp_path / "fi.yaml")
    assert parse_choice("Vastaus on B.", {"A": "koira", "B": "kissa"}, "fi", words=words) == "B"
    assert parse_yes_no("Kyllä.", "fi", words=words) is True
    assert parse_yes_no("Ei.", "fi", words=words) is False


def test_a_language_without_words_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="No words to read answers in language 'fi'.*answers.yaml"):
        parse_choice("Vastaus on B.", PETS, "fi")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fi:\n  answr: vastaus\n", "has 'answr'"),
        ("fi:\n  answer: vastaus\n", "needs words under"),
        ("fi:\n  answer: [vastaus]\n", "needs a text"),
        ("no:\n  answer: svar\n", "Quote a code"),
    ],
)
def test_words_of_a_wrong_form_name_file_language_and_key(tmp_path, content, message):
    path = tmp_path / "words.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_answer_words(path)
    assert "words.yaml" in str(error.value)
