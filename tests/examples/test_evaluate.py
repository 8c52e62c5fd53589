"""`evaluate.py` as people call it: one command to a report, two processes, scoring again, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import says
from tiny_data import encoded, write_tsv


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import evaluate  # noqa: E402


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(tmp_path):
    def rows(question):
        return [
            {"index": n, "image": encoded(n), "question": question, "A": "a cat", "B": "a dog", "answer": "AB"[n % 2]}
            for n in range(5)
        ]

    return [
        write_tsv(tmp_path / "mmmb_en.tsv", rows("What is in the picture, a cat or a dog?")),
        write_tsv(tmp_path / "mmmb_ru.tsv", rows("Что на картинке, кошка или собака?")),
    ]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def options(checkpoint, files, output):
    return ["--model", checkpoint, "--benchmark", *files, "--like", "mmmb", "--max-new-tokens", 4, "--batch-size", 4,
            "--output", output]  # fmt: skip


def test_one_command_gives_a_report_and_scoring_needs_no_model(checkpoint, files, tmp_path, monkeypatch, capsys):
    arguments = [*options(checkpoint, files, tmp_path / "out"), "--control", "--rank", "letters", "texts"]
    run(monkeypatch, *arguments)
    folder = tmp_path / "out" / "mine" / "mmmb-choice"
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| language | accuracy | accuracy, VLMEvalKit | accuracy, other pictures |" in text
    assert "by texts, per token" in text and "PARROT (Qwen1.5-7B) (published)" in text
    stored = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    assert len(stored.splitlines()) == 10
    (folder / "report.md").unlink()
    monkeypatch.setattr(evaluate.Asker, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    run(monkeypatch, *arguments, "--score-only")
    assert (folder / "report.md").read_text(encoding="utf-8") == text


def test_two_processes_give_the_same_answers(checkpoint, files, tmp_path, monkeypatch):
    run(monkeypatch, *options(checkpoint, files, tmp_path / "one"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "examples/evaluate.py",
    ]
    done = subprocess.run(
        [*command, *map(str, options(checkpoint, files, tmp_path / "two"))],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        (tmp_path / name / "mine" / "mmmb-choice" / "predictions.jsonl").read_text(encoding="utf-8")
        for name in ("one", "two")
    )
    assert one == two
    assert len(list((tmp_path / "two" / "mine" / "mmmb-choice" / "answers").iterdir())) == 2
    assert done.stdout.count("Made: report.md") == 1


def test_other_prompts_do_not_mix_with_kept_answers(checkpoint, files, tmp_path, monkeypatch):
    arguments = options(checkpoint, files[:1], tmp_path / "out")
    run(monkeypatch, *arguments)
    with pytest.raises(SystemExit, match="holds answers of another run: prompts 'parrot' there, 'vlmevalkit' here"):
        run(monkeypatch, *arguments, "--prompts", "vlmevalkit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "nothing_en.tsv"], "nothing_en.tsv"),
        (["--benchmark", "mme", "--languages", "cs"], "MME has no published file in cs"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(arguments, message, checkpoint, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--model", checkpoint, *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_free_answers_are_kept_when_there_is_no_judge_and_rated_when_there_is(
    checkpoint, tmp_path, monkeypatch, capsys, serve
):
    rows = [
        {"index": n, "image": encoded(n), "question": "What is in the picture?", "gpt4_ans": "A cat.", "caption": "A cat.", "category": category}
        for n, category in enumerate(("conv", "detail", "complex"))
    ]  # fmt: skip
    file = write_tsv(tmp_path / "llava_en.tsv", rows)
    arguments = [*options(checkpoint, [file], tmp_path / "out"), "--like", "llava_bench"]
    with pytest.raises(SystemExit, match="no scores, free answers are rated by a judge"):
        run(monkeypatch, *arguments)
    folder = tmp_path / "out" / "mine" / "llava_bench-judged"
    assert "**No scores:" in (folder / "report.md").read_text() and (folder / "predictions.jsonl").exists()
    monkeypatch.setattr(evaluate.Asker, "from_pretrained", lambda *_, **__: pytest.fail("asked again"))
    judge = ["--judge-model", "j", "--score-only", "--judge-url"]
    with pytest.raises(SystemExit, match="no scores, The judge 'j' .* failed"):
        run(monkeypatch, *arguments, *judge, serve(lambda *_: (401, {}, "no key")).url)
    run(monkeypatch, *arguments, *judge, serve(lambda *_: says("8 6")).url)
    assert "| en | 75.0 [75.0, 75.0] |" in (folder / "report.md").read_text()
    assert json.loads((folder / "scores.json").read_text())["scores"]["en"]["conv"][0] == 75


def test_the_list_names_every_benchmark(monkeypatch, capsys):
    run(monkeypatch, "--list")
    listed = capsys.readouterr().out
    assert all(
        name in listed for name in ("mmmb", "mmbench", "mme", "pope", "seed", "scienceqa", "mmstar", "llava_bench")
    )
