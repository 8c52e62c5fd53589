"""Kept answers: nothing written is lost, nothing is asked twice, and answers to something else are refused."""

import json

import pytest

from parrot_eval.predictions import Predictions, model_fingerprint


SETTINGS = {"model": "m", "benchmark": "mmmb", "languages": ["en", "zh"]}
KEYS = [("en", "1"), ("en", "2"), ("zh", "1")]


def rows(*keys):
    return [{"language": language, "index": index, "answer": f"{language} {index}"} for language, index in keys]


def test_what_was_written_is_read_again_from_all_processes(tmp_path):
    kept = Predictions(tmp_path, SETTINGS)
    for process, keys in enumerate((KEYS[:2], KEYS[2:])):
        with kept.writer(process) as writer:
            writer.write(rows(*keys))
    again = Predictions(tmp_path, SETTINGS)
    assert {key: row["answer"] for key, row in again.read().items()} == {key: " ".join(key) for key in KEYS}
    path = again.finish(KEYS[::-1])
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == ["1", "2", "1"]


def test_a_line_that_was_cut_off_is_written_again(tmp_path):
    kept = Predictions(tmp_path, SETTINGS)
    with kept.writer(0) as writer:
        writer.write(rows(*KEYS[:2]))
    path = tmp_path / "answers" / "00000.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert list(kept.read()) == KEYS[:1]
    with kept.writer(0) as writer:
        writer.write(rows(*KEYS[1:]))
    assert list(kept.read()) == KEYS


def test_missing_answers_are_counted(tmp_path):
    kept = Predictions(tmp_path, SETTINGS)
    with kept.writer(0) as writer:
        writer.write(rows(KEYS[0]))
    with pytest.raises(ValueError, match="2 of 3 answers are missing"):
        kept.finish(KEYS)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_answers_of_another_model_or_benchmark_are_refused_and_kept(tmp_path):
    with Predictions(tmp_path, SETTINGS).writer(0) as writer:
        writer.write(rows(*KEYS))
    with pytest.raises(ValueError, match=r"holds answers of another run: model 'm' there, 'n' here\. Choose another"):
        Predictions(tmp_path, SETTINGS | {"model": "n"})
    with pytest.raises(ValueError, match="benchmark 'mmmb' there, 'mme' here"):
        Predictions(tmp_path, SETTINGS | {"benchmark": "mme"})
    assert len(Predictions(tmp_path, SETTINGS).read()) == 3


def test_a_checkpoint_with_other_weights_has_another_fingerprint(tmp_path):
    for name, byte in (("a", b"\1"), ("b", b"\2"), ("c", b"\1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"\0" * 5_000_000 + byte)
    a, b, c = (model_fingerprint(str(tmp_path / name)) for name in "abc")
    assert a == c != b
    assert model_fingerprint("nobody/nothing") == "unknown"
