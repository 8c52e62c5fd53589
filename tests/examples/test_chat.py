"""The chat program: answers are the model's own, in every script, over turns and images; bad input is refused."""

import io
import os
import subprocess
import sys
from pathlib import Path

import chat
import pytest
import tiny_models
from stranger import run_as_stranger
from tiny_models import assistant, user
from transformers import StoppingCriteriaList


PROGRAM = Path(__file__).parents[2] / "examples" / "chat.py"
ARABIC, CHINESE, ENGLISH = "ماذا في الصورة؟", "图中是什么？", "What is in the picture?"


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """Folder of a tiny checkpoint with two pictures, and the model and processor in it."""
    folder = tmp_path_factory.mktemp("chat")
    model, processor = tiny()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for index in range(2):
        tiny_models.picture(index).save(folder / f"picture {index}.png")
    return folder, model, processor


def answer(checkpoint, *messages) -> str:
    """The greedy answer of at most 8 tokens to a conversation."""
    _, model, processor = checkpoint
    inputs = tiny_models.encode(processor, list(messages))
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def run(checkpoint, monkeypatch, typed: str, *options: str) -> int:
    """Exit status of the program for what is typed."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return chat.main(["--model", str(checkpoint[0] / "model"), "--max-new-tokens", "8", "--device", "cpu", *options])


def test_piped_questions_in_several_scripts_make_one_conversation(checkpoint):
    folder = checkpoint[0]
    typed = f"{ARABIC}\n\n{CHINESE}\n/image picture 1.png\n{ENGLISH}\n/image absent.png\n/reset\n{CHINESE}"  # no \n at the end
    done = subprocess.run(
        [sys.executable, PROGRAM, "--model", "model", "--image", "picture 0.png", "--max-new-tokens", "8", "--device", "cpu"],
        input=typed.encode(), capture_output=True, cwd=folder, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},  # a pipe whose locale knows no Arabic
    )  # fmt: skip
    first, second = tiny_models.picture(0), tiny_models.picture(1)
    messages = [user(ARABIC, first)]
    expected = []
    for following in (user(CHINESE), user(ENGLISH, second), None):
        expected.append(answer(checkpoint, *messages))
        messages += [assistant(expected[-1].strip()), following]
    expected.append(answer(checkpoint, user(CHINESE, first)))
    assert done.stdout.decode() == "".join(f"{text}\n" for text in expected), done.stderr.decode()
    assert "absent.png is not a file" in done.stderr.decode()
    assert done.returncode == 1  # one line could not be obeyed


@pytest.mark.parametrize("question", [ARABIC, CHINESE, ENGLISH])
def test_one_question_prints_its_answer_and_nothing_else(checkpoint, monkeypatch, capsys, question):
    image = checkpoint[0] / "picture 0.png"
    assert run(checkpoint, monkeypatch, "not read", "--image", str(image), "--question", question) == 0
    assert capsys.readouterr().out == answer(checkpoint, user(question, tiny_models.picture(0))) + "\n"


def test_several_images_text_alone_and_a_system_message(checkpoint, monkeypatch, capsys):
    first, second = (str(checkpoint[0] / f"picture {index}.png") for index in range(2))
    pictures = [tiny_models.picture(0), tiny_models.picture(1)]
    run(checkpoint, monkeypatch, "", "--image", first, "--image", second, "--question", ENGLISH)
    assert capsys.readouterr().out == answer(checkpoint, user(ENGLISH, *pictures)) + "\n"
    run(checkpoint, monkeypatch, "", "--question", ENGLISH)
    assert capsys.readouterr().out == answer(checkpoint, user(ENGLISH)) + "\n"
    run(checkpoint, monkeypatch, "", "--question", ENGLISH, "--system", "um gato")
    system = {"role": "system", "content": [{"type": "text", "text": "um gato"}]}
    assert capsys.readouterr().out == answer(checkpoint, system, user(ENGLISH)) + "\n"


def test_code_of_the_checkpoint_gives_the_same_answer_without_the_package(checkpoint, tmp_path):
    code = "import runpy; program = sys.argv[1]; del sys.argv[0]; runpy.run_path(program, run_name='__main__')"
    image = checkpoint[0] / "picture 0.png"
    options = ["--model", checkpoint[0] / "model", "--image", image, "--question", CHINESE, "--device", "cpu"]
    printed = run_as_stranger(
        code, PROGRAM, *options, "--max-new-tokens", 8, "--trust-remote-code", cache=tmp_path
    )  # fmt: skip
    expected = answer(checkpoint, user(CHINESE, tiny_models.picture(0))) + "\n"
    assert printed == io.StringIO(expected, newline=None).read()


def test_without_the_package_the_flag_is_asked_for(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "modeling_parrot", None)  # as if it were not installed
    assert run(checkpoint, monkeypatch, "", "--question", ENGLISH) == 1
    assert "--trust-remote-code" in capsys.readouterr().err


def test_end_of_input_quit_and_help(checkpoint, monkeypatch, capsys):
    assert run(checkpoint, monkeypatch, "") == 0
    assert capsys.readouterr().out == ""
    assert run(checkpoint, monkeypatch, f"/help\n/quit\n{ENGLISH}\n") == 0
    assert capsys.readouterr().out == chat.COMMANDS + "\n"


def test_unknown_command_and_a_question_with_a_slash(checkpoint, monkeypatch, capsys):
    assert run(checkpoint, monkeypatch, "/what\n /what\n/image\n") == 1
    printed = capsys.readouterr()
    assert printed.out == answer(checkpoint, user("/what")) + "\n"
    assert "no command /what" in printed.err and "/image needs a file" in printed.err


def write_bad_image(path: Path, kind: str) -> None:
    tiny_models.picture(size=(200, 200)).save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an image")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "is not a file"), ("folder", "is not a file"), ("empty", "is empty"),
        ("text", "is not an image"), ("truncated", "cannot be decoded"),
    ],
)  # fmt: skip
def test_bad_image_is_named_before_the_model_is_loaded(tmp_path, capsys, monkeypatch, kind, message):
    write_bad_image(tmp_path / "bad.png", kind)
    monkeypatch.setattr(chat, "load", lambda *arguments: pytest.fail("the model was loaded"))
    assert chat.main(["--model", "any", "--image", str(tmp_path / "bad.png")]) == 1
    error = capsys.readouterr().err
    assert message in error and "bad.png" in error and error.count("\n") == 1


def test_photos_are_turned_upright(tmp_path):
    photo = tiny_models.picture(size=(40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was held sideways
    photo.save(tmp_path / "photo.png", exif=exif)
    assert chat.open_image(str(tmp_path / "photo.png")).size == (20, 40)


def conversation(checkpoint, **generation) -> chat.Chat:
    _, model, processor = checkpoint
    return chat.Chat(
        model, processor, [tiny_models.picture(0)], None, {"do_sample": False, "max_new_tokens": 8, **generation}
    )


def test_what_does_not_fit_is_refused_and_the_conversation_stays(checkpoint):
    talk = conversation(checkpoint)
    talk.ask(ENGLISH)
    before = list(talk.messages)
    with pytest.raises(chat.ChatError, match="tokens, images included.*model's 512"):
        talk.ask("cat " * 600)
    assert talk.messages == before
    talk.ask(CHINESE)
    assert len(talk.messages) == 4


def test_an_image_token_in_the_text_is_refused_and_the_image_kept(checkpoint):
    talk = conversation(checkpoint)
    with pytest.raises(chat.ChatError, match="image"):
        talk.ask("what is <image> there")
    assert len(talk.pending) == 1 and talk.messages == []


def test_an_interrupted_answer_stays_in_the_conversation(checkpoint, capsys):
    def interrupt(input_ids, scores, **kwargs):
        calls.append(input_ids.shape[1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)

    calls: list[int] = []
    talk = conversation(checkpoint, stopping_criteria=StoppingCriteriaList([interrupt]))
    partial = talk.ask(ENGLISH)
    whole = answer(checkpoint, user(ENGLISH, tiny_models.picture(0)))
    assert 0 < len(partial) < len(whole.strip())
    assert talk.messages[-1] == assistant(partial)
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("options", [["--max-new-tokens", "0"], ["--temperature", "-1"], ["--dtype", "int3"]])
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        chat.main(["--model", "any", *options])
    assert options[0] in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named(capsys, tmp_path):
    assert chat.main(["--model", str(tmp_path / "absent"), "--question", ENGLISH]) == 1
    assert "absent cannot be loaded" in capsys.readouterr().err
