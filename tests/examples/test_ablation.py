"""The ablation: what its conditions train on, that it does not repeat a run, and what its tables say."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import ablation  # noqa: E402
from train_recipe import mixture as read_mixture  # noqa: E402


SETTINGS = {
    "stage1_steps": 4, "stage2_steps": 10, "batch_size": 4, "learning_rate": 1e-3, "questions": 50, "per_language": 2
}  # fmt: skip


def shares(name):
    condition = ablation.CONDITIONS[name]
    entry = ablation.mixture(Path("data"), "x.jsonl", condition.languages, condition.tuned, condition.tasks)
    return read_mixture(entry)


def test_the_low_resource_setting():
    for name in ("all", "no_mvqa", "no_ep_vqa", "no_bvqa", "multilingual", "experts"):
        by_language = shares(name).languages
        assert all(share <= 0.04 + 1e-9 for language, share in by_language.items() if language != "en"), name
    assert set(shares("english").languages) == {"en"}
    assert set(shares("no_bvqa").tasks) == {"mvqa", "ep_vqa"}


def test_english_rows_are_as_many_where_others_are_added_to_them():
    def english_rows(name):
        return shares(name).languages["en"] * ablation.CONDITIONS[name].length

    assert english_rows("english_alone") == pytest.approx(english_rows("all"))
    assert english_rows("english_alone_six") == pytest.approx(english_rows("multilingual"))
    for name in ("ratio_0.4", "ratio_0.7", "ratio_1", "ratio_1.5"):
        assert english_rows(name) == pytest.approx(english_rows("all"))
        others = 1 - shares(name).languages["en"]
        assert others / shares(name).languages["en"] == pytest.approx(float(name.partition("_")[2]))


def scores(style_en, style_others, **changes):
    def measures(en, others):
        kinds = ("choice", "naming", "in_language")
        return {kind: {"en": en} | dict.fromkeys(set(ablation.LRM + ablation.SIX) - {"en"}, others) for kind in kinds}

    return {"settings": SETTINGS | changes, "style": measures(style_en, style_others), "concept": measures(0.0, 0.0)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scores").mkdir()
    for name, values in {"english": [(60, 40), (62, 42)], "all": [(61, 50), (61, 54)]}.items():
        for seed, pair in enumerate(values):
            (tmp_path / "scores" / f"{name}-{seed}.json").write_text(json.dumps(scores(*pair)))
    return tmp_path


def test_tables_give_mean_spread_and_paired_differences(folder):
    text = ablation.tables(folder, ["formats"])
    assert "| English data only, as many rows in all | 2 | 61.0 ± 1.4 / 41.0 ± 1.4 |" in text
    assert "| all formats | 2 | 61.0 ± 0.0 / 52.0 ± 2.8 |" in text
    assert "Difference to *all formats* with the same seed" in text
    assert "| English data only, as many rows in all | 0.0 ± 1.4 / -11.0 ± 1.4 |" in text
    ablation.draw(folder, ["formats"], folder / "plot.png")
    assert (folder / "plot.png").stat().st_size > 10_000


def test_tables_tell_whether_the_router_looks_at_the_language(folder):
    path, six = folder / "scores", dict.fromkeys(ablation.SIX, [0.5, 0.5, 0, 0, 0, 0])
    for name, weights in {"experts": six, "experts_top_2": six | {"en": [0, 0, 1, 0, 0, 0]}}.items():
        (path / f"{name}-0.json").write_text(json.dumps({**scores(1, 1), "router": weights}))
    text = ablation.tables(folder, ["expert_remedies"])
    assert f"| {ablation.CONDITIONS['experts'].label} | 0.0 | 2.0 |" in text
    # English is 5/6 away from the mean of six languages, the others 1/6.
    assert f"| {ablation.CONDITIONS['experts_top_2'].label} | 27.8 | 1.8 |" in text
    assert "The router" not in ablation.tables(folder, ["formats"])


def test_a_run_that_is_done_is_not_repeated_and_others_are_not_mixed_in(folder, monkeypatch):
    def train(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "train", train)
    ablation.run("all", 0, folder, Namespace(**SETTINGS))
    with pytest.raises(SystemExit, match="was made with other settings"):
        ablation.run("all", 0, folder, Namespace(**(SETTINGS | {"stage2_steps": 20})))


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, capsys):
    sizes = "--stage1-steps 2 --stage2-steps 3 --batch-size 4 --questions 60 --per-language 1 --seeds 0".split()
    arguments = ["ablation.py", "--output", str(tmp_path), "--studies", "experts", *sizes]
    monkeypatch.setattr(sys, "argv", arguments)
    ablation.main()
    assert "multilingual data and experts" in capsys.readouterr().out
    assert len(list((tmp_path / "scores").glob("*.json"))) == 4 and (tmp_path / "ablation.png").exists()
