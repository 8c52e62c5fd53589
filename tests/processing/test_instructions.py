"""LRM-LLaVA's formats: what a row becomes in each, that nothing is lost, and that a checkpoint alone can build them."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stranger import run_as_stranger

from instructions_parrot import (
    IMAGE_MARKER,
    TASKS,
    build_instruction,
    build_pivot,
    build_row,
    build_turns,
    load_instructions,
    one_paragraph,
    parse_pivot,
    split_formats,
)
from parrot_data import to_row


INSTRUCTIONS = load_instructions()
LANGUAGES = ["en", "zh", "pt", "ar", "tr", "ru", "cs", "de", "fr", "hr", "it", "ro", "es"]
OTHERS = LANGUAGES[1:]
ROW = {
    "id": "7",
    "image": "7.png",
    "texts": {
        "en": [{"question": "<image>\nWhat is this?\nA. cat\nB. dog", "answer": "B"}, {"question": "Why?", "answer": "It barks."}],
        "cs": [{"question": "<image>\nCo to je?\nA. kočka\nB. pes", "answer": "B"}, {"question": "Proč?", "answer": "Štěká."}],
    },
}  # fmt: skip

# Question and answer in each language.
GOLDEN = {
    language: {"question": f"<image>\n{question}", "answer": answer}
    for language, question, answer in [
        ("zh", "这是什么？", "一只狗。"), ("pt", "O que é isto?", "Um cão."), ("ar", "ما هذا؟", "كلب."),
        ("tr", "Bu ne?", "Bir köpek."), ("ru", "Что это?", "Собака."), ("cs", "Co to je?", "Pes."),
        ("de", "Was ist das?", "Ein Hund."), ("fr", "Qu’est-ce que c’est ?", "Un chien."), ("hr", "Što je ovo?", "Pas."),
        ("it", "Che cos’è?", "Un cane."), ("ro", "Ce este asta?", "Un câine."), ("es", "¿Qué es esto?", "Un perro."),
    ]
}  # fmt: skip

texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(
    lambda text: text.replace(IMAGE_MARKER, "").strip()
)


def test_both_papers_languages_are_worded():
    assert set(INSTRUCTIONS) == set(LANGUAGES)
    for language, lines in INSTRUCTIONS.items():
        own = [lines[key] for key in ("caption", "pivot", "answer_in_english", "answer_in") if key in lines]
        assert all(len(variants) >= 3 and len(set(variants)) == len(variants) for variants in own)
        assert lines["formats"].keys() == INSTRUCTIONS["en"]["formats"].keys(), language


@pytest.mark.parametrize("language", OTHERS)
def test_wording_is_in_its_own_script_and_not_shared(language):
    """A line pasted under the wrong language is found: no two languages have a line in common."""
    lines = {line for key in ("caption", "pivot", "answer_in_english") for line in INSTRUCTIONS[language][key]}
    for other in OTHERS:
        if other != language:
            assert not lines & {line for key in ("caption", "pivot") for line in INSTRUCTIONS[other][key]}
    script = {"zh": r"[一-鿿]", "ar": r"[؀-ۿ]", "ru": r"[Ѐ-ӿ]"}.get(language, r"[A-Za-zÀ-ɏ]")
    for line in lines:
        letters = [letter for letter in line if letter.isalpha()]
        assert sum(bool(re.match(script, letter)) for letter in letters) > 0.8 * len(letters), line


def test_monolingual_row_is_the_text_as_it_is():
    row = build_row("mvqa", ROW, "cs", INSTRUCTIONS)
    assert row["language"] == "cs" and row["task"] == "mvqa" and row["image"] == "7.png"
    assert [turn["value"] for turn in row["conversations"]] == [
        "<image>\nCo to je?\nA. kočka\nB. pes", "B", "Proč?", "Štěká."
    ]  # fmt: skip


def test_pivot_row_asks_for_the_english_question_first():
    turns = build_turns("ep_vqa", ROW["texts"], "cs", INSTRUCTIONS, row_id="7")
    question, instruction = turns[0]["question"].rsplit("\n", 1)
    assert question == ROW["texts"]["cs"][0]["question"] and instruction in INSTRUCTIONS["cs"]["pivot"]
    assert turns[0]["answer"] == "English: What is this?\nA. cat\nB. dog\n\nB"
    assert parse_pivot(turns[1]["answer"]) == ("Why?", "Štěká.")


@pytest.mark.parametrize(("answered", "asked"), [("cs", "en"), ("en", "cs")])
def test_bilingual_row_says_in_the_questions_language_how_to_answer(answered, asked):
    turns = build_turns("bvqa", ROW["texts"], "cs", INSTRUCTIONS, answer_language=answered, row_id="7")
    question, instruction = turns[1]["question"].rsplit("\n", 1)
    assert question == ROW["texts"][asked][1]["question"]
    assert turns[1]["answer"] == ROW["texts"][answered][1]["answer"]
    if asked == "en":
        assert instruction in [line.format(language="Czech") for line in INSTRUCTIONS["en"]["answer_in"]]
    else:
        assert instruction in INSTRUCTIONS["cs"]["answer_in_english"]


def test_every_format_in_every_language_is_as_reviewed():
    """`golden_instructions.json` was read through once; a change of wording or layout has to be read again."""
    golden = json.loads(Path(__file__).with_name("golden_instructions.json").read_text(encoding="utf-8"))
    assert golden == [
        {"task": task, "language": language, "answers": answered, **turn}
        for language in OTHERS
        for task, answered in (("mvqa", language), ("ep_vqa", language), ("bvqa", language), ("bvqa", "en"))
        for turn in build_turns(
            task,
            {"en": [{"question": "<image>\nWhat is this?", "answer": "A dog."}], language: [GOLDEN[language]]},
            language, INSTRUCTIONS, answer_language=answered, row_id="golden",
        )
    ]  # fmt: skip


def test_rows_take_all_lines_and_both_directions_and_always_the_same():
    seen, directions = set(), set()
    for number in range(200):
        row_id = f"row {number}"
        turns = build_turns("bvqa", ROW["texts"], "cs", INSTRUCTIONS, row_id=row_id)
        assert turns == build_turns("bvqa", ROW["texts"], "cs", INSTRUCTIONS, row_id=row_id)
        directions.add(turns[1]["answer"])
        seen.add(build_instruction("ep_vqa", "", "cs", INSTRUCTIONS, row_id=row_id).strip())
    assert directions == {"It barks.", "Štěká."} and seen == set(INSTRUCTIONS["cs"]["pivot"])


@given(st.lists(st.tuples(texts, texts, texts, texts), min_size=1, max_size=3), st.sampled_from(TASKS), st.text())
def test_no_content_is_lost_and_roles_alternate(turns, task, row_id):
    plain = [[text.replace(IMAGE_MARKER, "") for text in turn] for turn in turns]
    row = {
        "id": row_id,
        "image": "a.png",
        "texts": {
            "en": [{"question": ("<image>\n" * (k == 0)) + q, "answer": a} for k, (q, a, _, _) in enumerate(plain)],
            "hr": [{"question": ("<image>\n" * (k == 0)) + q, "answer": a} for k, (_, _, q, a) in enumerate(plain)],
        },
    }
    built = build_row(task, row, "hr", INSTRUCTIONS)
    checked = to_row(built, "row")  # roles alternate and markers fit images, or this raises
    assert len(checked["messages"]) == 2 * len(turns)
    values = [turn["value"] for turn in built["conversations"]]
    for k, (english_question, english_answer, question, answer) in enumerate(plain):
        asked, answered = values[2 * k], values[2 * k + 1]
        assert question in asked or (task == "bvqa" and english_question in asked)
        if task == "ep_vqa":
            assert parse_pivot(answered) == (one_paragraph(english_question), answer.strip())
        else:
            assert answered == answer or (task == "bvqa" and answered == english_answer)


@given(texts, texts)
def test_parsing_inverts_building(question, answer):
    assert parse_pivot(build_pivot(question, answer)) == (one_paragraph(question), answer.strip())


@given(st.lists(st.one_of(texts, st.sampled_from(list(INSTRUCTIONS["en"]["formats"].values())))))
def test_response_formats_are_found_and_nothing_else_is_touched(parts):
    prompts = INSTRUCTIONS["en"]["formats"]
    pieces = split_formats("\n".join(parts), INSTRUCTIONS)
    assert "".join(piece for _, piece in pieces) == "\n".join(parts)
    assert all(piece == prompts[key] for key, piece in pieces if key)
    found = [piece for key, piece in pieces if key]
    assert len(found) >= sum(part in prompts.values() for part in parts)


def test_answer_without_the_english_question_is_an_answer():
    assert parse_pivot(" To je pes.\n\nŠtěká. ") == (None, "To je pes.\n\nŠtěká.")
    assert parse_pivot("English: What is") == ("What is", "")


def test_own_language_is_added_by_a_file(tmp_path):
    lines = {
        "name": "Suomi",
        "in_english": "Finnish",
        "pivot": ["Käännä kysymys ensin englanniksi ja vastaa suomeksi."],
    }
    file = tmp_path / "fi.yaml"
    file.write_text(yaml.safe_dump({"fi": lines}), encoding="utf-8")
    with pytest.raises(ValueError, match="fi.yaml.*'fi'.*answer_in_english"):
        load_instructions(file)
    file.write_text(yaml.safe_dump({"fi": {**lines, "answer_in_english": ["Vastaa englanniksi."]}}), encoding="utf-8")
    assert build_instruction("bvqa", "Mikä?", "fi", load_instructions(file), answer_language="en") == (
        "Mikä?\nVastaa englanniksi."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("cs"), "no text in 'cs'.*en"),
        (lambda t: t["cs"].pop(), "2 turn.*'en'.*1 in 'cs'"),
        (lambda t: t["cs"][0].update(question="Co to je?"), "turn 0: 1 <image> in 'en' but 0 in 'cs'"),
        (lambda t: t["cs"][1].update(answer=" "), "turn 1, 'cs': the answer is empty"),
    ],
)
def test_texts_that_do_not_align_are_refused_by_row_and_turn(change, message):
    row = json.loads(json.dumps(ROW))
    change(row["texts"])
    with pytest.raises(ValueError, match=f"Row '7'.*{message}"):
        build_row("ep_vqa", row, "cs", INSTRUCTIONS)


@pytest.mark.parametrize(
    ("task", "language", "answer_language", "message"),
    [
        ("vqa", "cs", None, "mvqa, ep_vqa, bvqa"),
        ("ep_vqa", "en", None, "cannot be English"),
        ("bvqa", "cs", None, "one of them English"),
        ("bvqa", "cs", "de", "one of them English"),
        ("mvqa", "fi", None, "No instructions in language 'fi'.*load_instructions"),
    ],
)
def test_tasks_and_languages_that_do_not_exist_are_refused(task, language, answer_language, message):
    with pytest.raises(ValueError, match=message):
        build_instruction(task, "Co to je?", language, INSTRUCTIONS, answer_language=answer_language)


def test_checkpoint_alone_builds_and_parses(tiny, tmp_path):
    model, processor = tiny()
    processor.instructions = {**INSTRUCTIONS, "cs": {**INSTRUCTIONS["cs"], "pivot": ["Nejdřív anglicky!"]}}
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    code = """
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(processor.build_instruction("ep_vqa", "Co to je?", "cs"))
print(processor.build_instruction("bvqa", "What is it?", "en", answer_language="zh"))
print(processor.parse_pivot("English: What is it?\\n\\nPes."))
"""
    printed = run_as_stranger(code, tmp_path / "saved", cache=tmp_path)
    asked = processor.build_instruction("bvqa", "What is it?", "en", answer_language="zh")
    assert printed.splitlines() == [
        "Co to je?", "Nejdřív anglicky!", *asked.splitlines(), "('What is it?', 'Pes.')"
    ]  # fmt: skip
