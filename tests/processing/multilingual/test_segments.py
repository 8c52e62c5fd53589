"""What is translated of a turn: realistic rows that stay English or do not, and that no character is lost."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructions_parrot import IMAGE_MARKER, load_instructions
from parrot_data.multilingual.segments import (
    LostPlaceholder,
    Piece,
    lost_numbers,
    mend,
    protect,
    reason_to_keep,
    restore,
    split_text,
    texts_to_translate,
    translate_turns,
)


INSTRUCTIONS = load_instructions()
FORMATS = INSTRUCTIONS["en"]["formats"]
SHORT, LETTER = FORMATS["short_answer"], FORMATS["option_letter"]


def row(*texts: str) -> list[dict[str, str]]:
    """Turns from question, answer, question, answer, ..."""
    return [{"question": question, "answer": answer} for question, answer in zip(texts[::2], texts[1::2], strict=True)]


KEPT = {
    "formula": [
        # GeoQA, with steps and with the option's letter alone
        row(
            "<image>\nAs shown in the figure, AB is parallel to CD, EF intersects AB at point E, angle 1 = 50.0, then "
            "angle 2 equals ()\nChoices:\nA. 50°\nB. 60°\nC. 65°\nD. 90°",
            "Because AB ∥ CD, ∠1 = 50°, therefore ∠BEF = 180° - ∠1 = 130°. Because EG bisects ∠BEF, therefore "
            "∠BEG = 65°, so ∠2 = 65°.\nAnswer:C",
        ),
        row(
            "<image>\nIn the figure, AB is the diameter of ⊙O and CD is a chord with CD ⊥ AB, angle BAC = 25.0, then "
            "the size of angle BOD is ()\nA. 12.5°\nB. 30°\nC. 40°\nD. 50°",
            "D",
        ),
        # GSM8K, TeX, plain arithmetic
        row(
            "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many "
            "clips did she sell altogether in April and May?",
            "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
        ),
        row("Simplify $\\frac{x^2-1}{x-1}$.", "It is $x+1$ for $x \\neq 1$."),
        row("Solve for x: 2x + 5 = 15", "x = 5"),
        row("<image>\n2 + 3 =", "5"),
    ],
    "code": [
        row(
            "Write a function that adds two numbers.",
            "```python\ndef add(first_number: float, second_number: float) -> float:\n    return first_number + second_number\n```",
        ),
        row(
            "import numpy as np\nx = np.arange(10)\nfor i in x:\n    print(i)\nWhat is wrong?",
            "```\nfor i in x.tolist():\n    print(i)\n```\nIs that it?",
        ),
        row("Explain:\n#include <stdio.h>\nint main(void) {\n  printf(\"Hello, world\");\n  return 0;\n}", "It prints."),
    ],
    "numbers": [
        row("<image>\n[0.1, 0.2, 0.5, 0.6]", "[0.3, 0.4, 0.6, 0.7]"),
        row("<image>\nA. 3\nB. 4\nC. 5", "B"),
        row("<image>\n?", "2,000.50"),
    ],
    "ocr": [
        # TextVQA as LLaVA-1.5 asks it
        row(
            f"<image>\nwhat is the brand of this camera?\nReference OCR token: ROLE, OF, NAVE, dakota, DIGITAL\n{SHORT}",
            "dakota",
        ),
        row(f"<image>\nWhat does the sign say?\n{SHORT}", "Stop"),
        row(f"<image>\nWhat does the small white text spell?\n{SHORT}", "copenhagen"),
        row(f"<image>\nWhat is written on the front of the bus?\n{SHORT}", "Not in service"),
        row(f"<image>\nwhat word is on the player's shirt?\n{SHORT}", "Tigers"),
        # DocVQA
        row(f"<image>\nWhat is written at the top of the letter?\n{SHORT}", "Confidential"),
        row("<image>\nPlease transcribe the text in the image.", "ITC Limited\nReport and Accounts 2013"),
        row("<image>\nRead out all the words on this label.", "Finest Scotch Whisky"),
        # OCR-VQA; among turns to be translated, one is enough
        row(
            f"<image>\nWho is the author of this book?\n{SHORT}", "Paul Auster",
            "What is the genre of this book?", "Literature & Fiction",
        ),
        row(f"<image>\nWhat color is the bus?\n{SHORT}", "red", "What is the title of this book?", "Moon Palace"),
    ],
}  # fmt: skip

TRANSLATED = [
    # LLaVA-1.5: VQAv2 with a number, GQA, A-OKVQA, Visual Genome, RefCOCO, TextCaps, instructions
    row(f"<image>\nHow many people are in the picture?\n{SHORT}", "2"),
    row(f"<image>\nIs the dog on the left side of the picture?\n{SHORT}", "no", "What color is it?", "brown"),
    row(
        f"<image>\nWhat is the man by the bags awaiting?\nA. skateboarder\nB. train\nC. delivery\nD. cab\n{LETTER}",
        "D",
    ),
    row("<image>\nPlease provide a short description for this region: [0.35, 0.2, 0.7, 0.61].", "Man in a red coat."),
    row(
        "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: man on the left.",
        "[0.06, 0.16, 0.39, 0.98]",
    ),
    row(
        "<image>\nProvide a one-sentence caption for the provided image.\nReference OCR token: STOP, ALL, WAY",
        "A red stop sign with an all way sign below it.",
    ),
    row(
        "<image>\nWhat is unusual about this image?",
        "The unusual part is that a man is ironing clothes on the roof of a moving taxi, at about 30 km/h.",
    ),
    # prices, numbers, dates and signs in sentences
    row("<image>\nIs the price $5 or $10?", "The bag costs $5 and the shoes cost $10, 20% less than in 2019."),
    row("<image>\nIs 25°C warm for a 3 × 4 m room?", "Yes. It was 18-20°C before 1/2/2020, and C++ is a language."),
    row("How do I write a good CV?", "Keep it short. Use `git` or https://example.org/?a=b&c=d if you like. " * 3),
    # ChartQA
    row(f"<image>\nWhat is the difference in value between Lamb and Corn?\n{SHORT}", "0.57"),
    row(f"<image>\nWhich country has the highest unemployment rate in 2015?\n{SHORT}", "Greece"),
    # DocVQA: only the question's words can say that an answer is read from the image
    row(f"<image>\nWhat is the date on the document?\n{SHORT}", "1/8/93"),
    # prose with code or a formula in it, and with the words of the patterns in another sense
    row(
        "How do I print in Python?",
        "Call the function print with the text in quotes, as in the following example:\n```python\nprint('hi')\n```\n"
        "The text then appears on the screen, and you can go on with the next statement of the program.",
    ),
    row(
        "What did Einstein discover?",
        "In 1905 he found that mass and energy are two forms of the same thing, which he wrote as E = mc^2. Nobody had "
        "expected that, and it took many years until experiments confirmed it for the nuclei of all elements.",
    ),
    row("Which book was written by Orwell?", "The best known ones are 1984 and Animal Farm."),
    row("<image>\nWhat is the man reading?\nAnswer briefly.", "A newspaper."),
    row("<image>\nWhat does the author say about love in this scene, as far as one can see?", "That it is a mystery."),
]


@pytest.mark.parametrize(("reason", "turns"), [(reason, turns) for reason, rows in KEPT.items() for turns in rows])
def test_rows_without_anything_to_translate_stay_english(reason, turns):
    assert reason_to_keep(turns) == reason


@pytest.mark.parametrize("turns", TRANSLATED)
def test_natural_language_is_translated(turns):
    assert reason_to_keep(turns) is None


def marked(text: str) -> str:
    """The pieces of a text in one line: [text], (format key), what is fixed as it is."""
    show = {"text": "[{0.text}]", "format": "({0.key})", "fixed": "{0.text}"}
    return "".join(show[piece.kind].format(piece) for piece in split_text(text, INSTRUCTIONS))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (f"<image>\nWhat is it? {SHORT}", "<image>\n[What is it?] (short_answer)"),
        (f"What is it?\nA. cat\n(B) dog\nC) 3\n{LETTER}", "[What is it?]\nA. [cat]\n(B) [dog]\nC) 3\n(option_letter)"),
        ("  - one apple \r\n12. two\n\n# Title", "  - [one apple] \r\n12. [two]\n\n# [Title]"),
        (f"{FORMATS['region']} [0.1, 0.2, 0.5, 0.6].", "(region) [0.1, 0.2, 0.5, 0.6]."),
        (f"{FORMATS['box']} man on the left.", "(box) [man on the left.]"),
        (f"{FORMATS['caption']}\n{FORMATS['ocr']} STOP, ALL WAY\n{SHORT}", "(caption)\n(ocr) STOP, ALL WAY\n(short_answer)"),
        ("Run this:\n```sh\nls -l\n\ncat file\n```\nThen stop.", "[Run this:]\n```sh\nls -l\n\ncat file\n```\n[Then stop.]"),
        ("```\nnever closed", "```\nnever closed"),
        ("So:\n$$\nE = mc^2\n\\text{which is known}\n$$\nDone", "[So:]\n$$\nE = mc^2\n\\text{which is known}\n$$\n[Done]"),
        ("2x + 5 = 15\n∠ABC = 50°\n\\frac{a}{b} \\leq sin(x)", "2x + 5 = 15\n∠ABC = 50°\n\\frac{a}{b} \\leq sin(x)"),
        ("Area = width + 2", "[Area = width + 2]"),
        ("https://example.org/a?b=c\nme@example.org", "https://example.org/a?b=c\nme@example.org"),
        ("See https://example.org.", "[See https://example.org.]"),
        ("A", "A"), ("B.", "B."), ("(c)", "(c)"), ("Answer: B", "[Answer: B]"), ("No", "[No]"),
        ("12.5%\n|---|:-:|\n🙂", "12.5%\n|---|:-:|\n🙂"),
        ("Compare <image> with <image>\n<image> and <image>", "[Compare <image> with] <image>\n<image> [and] <image>"),
        ("", ""),
    ],
)  # fmt: skip
def test_text_is_cut_into_what_is_translated_and_what_stays(text, pieces):
    assert marked(text) == pieces


@pytest.mark.parametrize(
    ("text", "protected"),
    [
        ("Call `f(x)` or $x^2$, not $5 or $10.", "Call <1> or <2>, not $5 or $10."),
        ("It is \\(a+b\\) at [0.1, 0.2, 0.3, 0.4].", "It is <1> at <2>."),
        ("See (https://en.wikipedia.org/wiki/Cat), mail a.b@c.org.", "See (<1>), mail <2>."),
        ("<ref>the man</ref><box>(1,2),(3,4)</box> in <image>", "<1>the man<2><3> in <4>"),
        ('A <b class="x">bold</b> <|im_end|> word, if 1 < 2 and a > b', "A <1>bold<2> <3> word, if 1 < 2 and a > b"),
        ("Write <1>, ＜2＞ and &lt;3&gt;", "Write <1>, <2> and <3>"),
        ("I paid $20, $30 and [sic] 1,000 (2,000)", "I paid $20, $30 and [sic] 1,000 (2,000)"),
    ],
)
def test_spans_in_a_sentence_are_protected(text, protected):
    assert protect(text)[0] == protected
    assert restore(*protect(text)) == text


@pytest.mark.parametrize("spelling", ["<1>", "< 1 >", "＜1＞", "《1》", "〈1〉", "«1»", "<１>", "<١>", "&lt;1&gt;"])
def test_translators_spellings_of_a_placeholder_are_read(spelling):
    assert restore(f"Ruf {spelling} auf.", ["`f`"]) == "Ruf `f` auf."


@pytest.mark.parametrize(
    ("translated", "message"),
    [
        ("Ruf <1> auf.", r"<2> \(`g`\) 0 times"),
        ("Ruf <1> und <1> und <2> auf.", r"<1> \(`f`\) 2 times"),
        ("Ruf <1>, <2> und <3> auf.", "<3>, which the source does not have"),
    ],
)
def test_lost_doubled_and_invented_placeholders_are_named(translated, message):
    with pytest.raises(LostPlaceholder, match=message):
        restore(translated, ["`f`", "`g`"])


TURNS = row(
    f"<image>\nWhat is `it`?\nA. cat\nB. dog\n{LETTER}", "B.",
    f"{FORMATS['ocr']} STOP\nIs it a cat? {SHORT}", "A cat",
    "cat", "A cat",
)  # fmt: skip


def test_row_is_rebuilt_from_translations_of_distinct_texts():
    german = {"What is <1>?": "Was ist < 1 >?", "cat": "Katze", "dog": "Hund", "Is it a cat?": "Ist es eine Katze?"}
    german["A cat"] = "Eine Katze"
    assert texts_to_translate(TURNS, INSTRUCTIONS) == list(german)
    formats = INSTRUCTIONS["de"]["formats"]
    assert translate_turns(TURNS, german, "de", INSTRUCTIONS) == row(
        f"<image>\nWas ist `it`?\nA. Katze\nB. Hund\n{formats['option_letter']}", "B.",
        f"{formats['ocr']} STOP\nIst es eine Katze? {formats['short_answer']}", "Eine Katze",
        "Katze", "Eine Katze",
    )  # fmt: skip


def test_cuts_that_are_remembered_are_those_of_the_same_wording():
    other = {**INSTRUCTIONS, "en": {**INSTRUCTIONS["en"], "formats": {"own": "Be brief."}}}
    text = f"Is it? Be brief. {SHORT}"
    for _ in range(2):
        for wording, key in ((INSTRUCTIONS, "short_answer"), (other, "own")):
            pieces = split_text(text, wording)
            assert [piece.key for piece in pieces if piece.kind == "format"] == [key]
            pieces.clear()  # is the caller's own


def test_what_is_missing_for_a_row_is_named():
    texts = {text: text for text in texts_to_translate(TURNS, INSTRUCTIONS)}
    with pytest.raises(ValueError, match="'fi' has no wording.*'option_letter'.*load_instructions"):
        translate_turns(TURNS, texts, "fi", INSTRUCTIONS)
    del texts["dog"]
    with pytest.raises(ValueError, match="No translation into 'de' of 'dog'"):
        translate_turns(TURNS, texts, "de", INSTRUCTIONS)


@pytest.mark.parametrize(
    ("source", "translation", "lost"),
    [
        ("It cost 1,000 in 2019.", "Es kostete 2019 1.000.", []),
        ("1,234,567.8 people", "1 234 567,8 человек", []),
        ("1,000 people", "١٬٠٠٠ شخص", []),
        ("1000 m and 0.5 kg", "１０００ m 和 0,5 kg", []),
        ("12 of 300 rooms, 3 of them new", "12 Zimmer, drei davon neu", ["300", "3"]),
        ("2 cats and 2 dogs", "Katzen und Hunde", ["2"]),
        ("a cat", "1 Katze", []),
    ],
)
def test_numbers_are_compared_by_their_digits(source, translation, lost):
    assert lost_numbers(source, translation) == lost


# Texts of the fragments that the patterns look at, in any order.
fragments = st.sampled_from(
    [
        IMAGE_MARKER, "\n", "\r\n", "\u2028", " ", "  ", "A.", "(B)", "C) ", "- ", "1. ", "cat", "Is it?", "I", "?", "12",
        "<", ">", "<1>", "< 2 >", "«3»", "&lt;", "&gt;", "1", "$", "$x$", "$$", "`", "`f`", "```", "```\n", "\\(", "\\)", "\\[", "\\]",
        "[0.1, 0.2]", "https://a.b/c", "a@b.c", "<ref>", "</ref>", "<box>", "</box>", "=", "∠", "\\begin{a}", "\\end{a}",
        *FORMATS.values(),
    ]
)  # fmt: skip
texts = st.one_of(st.lists(fragments, max_size=12).map("".join), st.text(st.characters(exclude_categories=["Cs"])))


@given(texts)
@example("A. ")
@example("<<`a`>1>")
def test_joining_pieces_gives_the_text_again(text):
    pieces = split_text(text, INSTRUCTIONS)
    assert "".join(piece.text for piece in pieces) == text
    assert all(isinstance(piece, Piece) and piece.text for piece in pieces)
    for piece in pieces:
        if piece.kind == "text":
            assert piece.text == piece.text.strip() and "\n" not in piece.text
            assert any(letter.isalpha() for letter in piece.text)
        assert (piece.key is not None) == (piece.kind == "format")


@given(texts)
def test_restoring_inverts_protecting(text):
    protected, spans = protect(text)
    assert restore(protected, spans) == text
    assert IMAGE_MARKER not in protected
    assert sum(span.count(IMAGE_MARKER) for span in spans) == text.count(IMAGE_MARKER)


@given(texts, texts)
@example("`a`", "<<9>1>")
@example("`a`", "<<9> 1 ><1>")
def test_any_translation_can_be_mended(text, translation):
    protected, spans = protect(text)
    assert mend(protected, protected) == (protected, True)
    restored = restore(mend(protected, translation)[0], spans)
    assert all(span in restored for span in spans)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.sampled_from(["en", "zh", "ar"]))
def test_identity_translation_loses_nothing(turns, language):
    turns = [{"question": question, "answer": answer} for question, answer in turns]
    identity = {text: text for text in texts_to_translate(turns, INSTRUCTIONS)}
    translated = translate_turns(turns, identity, language, INSTRUCTIONS)
    if language == "en":
        assert translated == turns
    for before, after in zip(turns, translated, strict=True):
        for part in ("question", "answer"):
            assert after[part].count(IMAGE_MARKER) == before[part].count(IMAGE_MARKER)
    reason_to_keep(turns)  # any row has an answer


@given(texts)
def test_text_loses_no_number_to_itself(text):
    assert lost_numbers(text, text) == []
