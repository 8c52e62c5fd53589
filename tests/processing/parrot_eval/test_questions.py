"""Reading benchmarks: VLMEvalKit's TSV files as they are, data sets, references between rows, and what is refused."""

import base64
import io

import datasets
import pytest
from PIL import Image
from tiny_data import write_tsv

from parrot_data.images import BadImageError
from parrot_eval.benchmarks import load_benchmark
from parrot_eval.prompts import prompt, yes_no_pairs
from parrot_eval.questions import CIRCLE, language_of_name, read_questions


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (24, 24), colour).save(file, "PNG")
    return file.getvalue()


def encoded(colour):
    return base64.b64encode(picture(colour)).decode()


def row(index=1, image=None, **values):
    return {
        "index": index, "image": image or encoded("red"), "question": "What colour does the picture have?", "hint": "",
        "A": "red", "B": "green", "C": "1.50", "D": "None", "answer": "A", "category": "color", "split": "dev",
    } | values  # fmt: skip


def circle(number, options=4, **values):
    names = ["red", "green", "blue", "black"][:options]
    rows = []
    for k in range(options):
        turned = names[-k:] + names[:-k]
        own = dict(zip("ABCD", [*turned, "", "", ""], strict=False))
        image = encoded("red") if k == 0 else str(number)
        rows.append(row(number + k * CIRCLE, image, **own, answer="ABCD"[k], **values))
    return rows


def test_every_cell_is_text_and_missing_options_are_left_out(tmp_path):
    path = write_tsv(tmp_path / "x_en.tsv", [row(), row(2, B="", question='A "quoted"\nquestion,\twith a tab')])
    questions = read_questions(path)["en"]
    assert questions[0].options == {"A": "red", "B": "green", "C": "1.50", "D": "None"}
    assert list(questions[1].options) == ["A", "C", "D"]
    assert questions[1].question == 'A "quoted"\nquestion,\twith a tab'
    assert questions[0].category == "color" and questions[0].split == "dev" and questions[0].target == "A"


def test_short_images_refer_to_other_rows(tmp_path):
    path = write_tsv(tmp_path / "x_en.tsv", [row(7, encoded("blue")), row(7 + CIRCLE, "7")])
    questions = read_questions(path)["en"]
    assert questions.images(questions[1])[0].getpixel((0, 0)) == (0, 0, 255)
    assert questions.image_key(questions[0]) == questions.image_key(questions[1])


def test_several_images_in_one_cell(tmp_path):
    path = write_tsv(tmp_path / "x_en.tsv", [row(image=f"['{encoded('red')}', '{encoded('blue')}']")])
    questions = read_questions(path)["en"]
    assert [image.getpixel((0, 0)) for image in questions.images(questions[0])] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("name", "language"),
    [("mmmb_zh.tsv", "zh"), ("MMBench_dev_cn.tsv", "zh"), ("a/pope-sp.tsv", "es"), ("MME.tsv", None)],
)
def test_the_language_stands_at_the_end_of_the_name(name, language):
    assert language_of_name(name) == language


def test_a_column_tells_the_language(tmp_path):
    rows = [row(1, language="en"), row(1, language="de", question="Welche Farbe hat das Bild, das hier zu sehen ist?")]
    found = read_questions(write_tsv(tmp_path / "both.tsv", rows))
    assert {language: len(questions) for language, questions in found.items()} == {"en": 1, "de": 1}


def test_data_sets_with_other_columns(tmp_path):
    table = datasets.Dataset.from_list(
        [
            {
                "id": 5,
                "q": "What colour is it?",
                "choices": ["red", "blue"],
                "label": 1,
                "picture": {"bytes": picture("blue"), "path": None},
            }
        ]
    ).cast_column("picture", datasets.Image())
    table.to_parquet(tmp_path / "data.parquet")
    columns = {"index": "id", "question": "q", "options": "choices", "answer": "label", "image": "picture"}
    questions = read_questions(str(tmp_path / "data.parquet"), "en", columns=columns)["en"]
    assert questions[0].options == {"A": "red", "B": "blue"} and questions[0].answer == "B"
    assert questions.images(questions[0])[0].getpixel((3, 3)) == (0, 0, 255)
    with pytest.raises(ValueError, match="has no column theirs"):
        read_questions(str(tmp_path / "data.parquet"), "en", columns={"index": "theirs"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"index": 1, "question": "?"}], "no column answer, image. It has: index, question"),
        ([row(1), row(1)], "1 indices stand in several rows of language 'en', the first: 1"),
        ([row(answer="E")], r"row 0 \(index 1\): its answer is 'E', but its options are A, B, C, D"),
        ([row(question="")], r"row 0 \(index 1\): it has no question"),
        (
            [row(n, question=f"Was ist auf dem Bild Nummer {n} zu sehen, das hier gezeigt wird?") for n in range(3)],
            "of 3 questions whose language can be told, 3 are not in 'en', most of these in 'de'",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_questions(write_tsv(tmp_path / "bad_en.tsv", rows))


def test_a_file_that_does_not_say_its_language_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not say its language"):
        read_questions(write_tsv(tmp_path / "questions.tsv", [row()]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("99", "its image is '99', which is neither an image in base64 nor the index of a row"),
        ("!" * 80, "not valid base64"),
        (base64.b64encode(picture("red")[:60]).decode(), "cannot be decoded|not an image"),
        ("2", "the row that it takes its image from has none itself"),
    ],
)
def test_bad_images_name_file_and_row(tmp_path, image, message):
    path = write_tsv(tmp_path / "x_en.tsv", [row(1, image), row(2, "1")])
    questions = read_questions(path)["en"]
    with pytest.raises(BadImageError, match=message) as error:
        questions.images(questions[0])
    assert "x_en.tsv, index 1" in str(error.value)


def test_circles_are_found_and_have_to_be_whole(tmp_path):
    path = write_tsv(tmp_path / "mmbench_en.tsv", circle(1) + circle(2, options=2))
    benchmark = load_benchmark([path])
    assert benchmark.protocol == "circular"
    assert [question.group for question in benchmark.sets["en"]] == ["1"] * 4 + ["2"] * 2
    path = write_tsv(tmp_path / "broken_en.tsv", circle(1)[:-1] + circle(2))
    with pytest.raises(ValueError, match=r"1 of 2 questions lack rotations: 1 \(3 of 4\)"):
        load_benchmark([path])
    assert load_benchmark([path], protocol="choice").protocol == "choice"


def test_yes_no_pairs_ask_for_the_right_option_and_one_wrong_one(tmp_path):
    files = [
        write_tsv(tmp_path / "m_en.tsv", [row(n) for n in range(40)]),
        write_tsv(tmp_path / "m_zh.tsv", [row(n, question="图片里的东西是什么颜色的？") for n in range(40)]),
    ]
    benchmark = load_benchmark(files, protocol="yes_no_pairs")
    first, second = benchmark.sets["zh"][:2]
    assert first.question == "图片里的东西是什么颜色的？\n候选答案： red\n这个候选答案正确吗？"
    assert (first.target, second.target, first.group, second.group) == (True, False, "0", "0")
    proposed = {
        language: [q.question.split("\n")[1].split()[-1] for q in questions]
        for language, questions in benchmark.sets.items()
    }
    assert proposed["en"] == proposed["zh"]  # the same wrong option in every language
    assert set(proposed["en"][1::2]) == {"green", "1.50", "None"}
    assert prompt(first).endswith("\n请回答“是”或“否”。")
    assert len(benchmark.sets["en"]) == 80


def test_prompts_have_the_layout_of_llava_in_the_language_of_the_question(tmp_path):
    path = write_tsv(
        tmp_path / "m_de.tsv", [row(hint="Die Farben sind kräftig.", question="Welche Farbe hat das Bild?")]
    )
    question = read_questions(path)["de"][0]
    assert prompt(question) == (
        "Die Farben sind kräftig.\nWelche Farbe hat das Bild?\nA. red\nB. green\nC. 1.50\nD. None\n"
        "Antworte direkt mit dem Buchstaben einer der gegebenen Möglichkeiten."
    )
    assert prompt(question, "vlmevalkit") == (
        "Hint: Die Farben sind kräftig.\nQuestion: Welche Farbe hat das Bild?\nOptions:\nA. red\nB. green\nC. 1.50\n"
        "D. None\nPlease select the correct answer from the options above. \n"
    )
    with pytest.raises(ValueError, match="Unknown prompts 'own'"):
        prompt(question, "own")


def test_a_benchmark_fits_its_protocol(tmp_path):
    path = write_tsv(tmp_path / "m_en.tsv", [row()])
    with pytest.raises(
        ValueError,
        match="protocol 'mme' scores questions whose answer is Yes or No, but this one's is 'A' with options",
    ):
        load_benchmark([path], protocol="mme")
    asked = {"index": 1, "image": encoded("red"), "question": "Is it red?", "answer": "Yes", "category": "colour"}
    path = write_tsv(tmp_path / "mme_en.tsv", [asked])
    with pytest.raises(ValueError, match="category 'colour' is none of MME's"):
        load_benchmark([path], like="mme")
    with pytest.raises(ValueError, match="There is no benchmark 'nmme'"):
        load_benchmark([path], like="nmme")
    with pytest.raises(ValueError, match=r"nothing in zh, only in en"):
        load_benchmark([path], ["en", "zh"])
    with pytest.raises(ValueError, match="MME has no published file in cs, only in en"):
        load_benchmark(["mme"], ["cs"])


def test_the_wrong_option_of_a_pair_needs_two_options(tmp_path):
    path = write_tsv(tmp_path / "m_en.tsv", [row(B="", C="", D="")])
    with pytest.raises(ValueError, match="Question 1 has no wrong option"):
        yes_no_pairs(read_questions(path)["en"])


def test_a_limit_keeps_whole_circles(tmp_path):
    path = write_tsv(tmp_path / "mmbench_en.tsv", circle(1) + circle(2) + circle(3))
    assert len(load_benchmark([path], limit=2).sets["en"]) == 8
