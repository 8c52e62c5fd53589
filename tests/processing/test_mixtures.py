"""Mixtures: shares that come out, rows that are not repeated or lost, the same for every number of processes."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_models
import yaml
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.state import PartialState
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from parrot_data import DataSource, ImageReader, Mixture, open_sources
from parrot_data.mixtures import apportion


PRESETS = Path(__file__).parents[2] / "configuration" / "mixtures"
LANGUAGES = ("en", "cs", "de")
EVEN = {"en": 0.5, "cs": 0.25, "de": 0.25}
TASKS = {"mvqa": 0.5, "ep_vqa": 0.25, "bvqa": 0.25}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def parallel_rows(number, languages=LANGUAGES):
    rows = []
    for k in range(number):
        turns = {
            name: [{"question": f"<image>\nfrage {k} {name}", "answer": f"wort {k} {name}"}] for name in languages
        }
        rows.append({"id": f"row{k}", "image": "0.png", "texts": turns})
    return rows


def write(folder, rows, name="parallel.jsonl"):
    folder.mkdir(exist_ok=True)
    tiny_models.picture(0).save(folder / "0.png")
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path):
    """40 rows in three parallel languages."""
    return write(tmp_path / "data", parallel_rows(40))


def mixture(path, **changes):
    settings = {"sources": {"all": DataSource(str(path))}, "languages": EVEN, "tasks": TASKS} | changes
    return Mixture(**settings)


def opened(what, seed=0):
    return open_sources(what, seed, ImageReader())


def kinds(rows):
    return Counter((row["language"], row["task"]) for row in rows)


def ids(dataset):
    return [dataset.stored_row(k)["id"] for k in range(len(dataset))]


@given(
    total=st.integers(0, 10_000),
    parts=st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any),
)
def test_apportioning_is_exact_in_sum_and_within_one_row_of_each_share(total, parts):
    shares = {k: part / sum(parts) for k, part in enumerate(parts)}
    counts = apportion(total, shares)
    assert sum(counts.values()) == total
    assert all(abs(counts[k] - total * share) < 1 + 1e-9 * total for k, share in shares.items())


def test_parallel_rows_without_a_mixture_give_every_format(path):
    dataset = opened([DataSource(str(path))])
    assert kinds(dataset) == {("en", "mvqa"): 40} | {
        (language, task): 40 for language in ("cs", "de") for task in ("mvqa", "ep_vqa", "bvqa")
    }
    assert len(set(ids(dataset))) == len(dataset)
    assert dataset.counts() == kinds(dataset)
    few = opened([DataSource(str(path), keep_languages=["cs"], keep_tasks=["bvqa"], max_rows=7)])
    assert kinds(few) == {("cs", "bvqa"): 7}
    pivot = opened([DataSource(str(path), keep_tasks=["ep_vqa"])]).stored_row(0)
    assert pivot["messages"][1]["content"][0]["text"] == "English: frage 0 en\n\nwort 0 cs"
    assert Path(pivot["images"][0]["path"]).is_file()


def test_parquet_and_jsonl_give_the_same_rows(path, tmp_path):
    rows = [
        {**row, "images": [{"bytes": None, "path": str(path.parent / row.pop("image"))}]} for row in parallel_rows(40)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    first, second = opened(mixture(path)), opened(mixture(tmp_path / "rows.parquet"))
    assert [first.stored_row(k) for k in range(len(first))] == [second.stored_row(k) for k in range(len(second))]
    assert np.array_equal(first.needed, second.needed)


def test_shares_come_out_and_no_row_comes_twice(path):
    dataset = opened(mixture(path))
    # English has 40 rows for half of the epoch, which bounds it: 80 rows.
    assert dataset.counts() == {
        ("en", "mvqa"): 40,
        ("cs", "mvqa"): 10, ("cs", "ep_vqa"): 5, ("cs", "bvqa"): 5,
        ("de", "mvqa"): 10, ("de", "ep_vqa"): 5, ("de", "bvqa"): 5,
    }  # fmt: skip
    assert kinds(dataset) == dataset.counts()
    assert len(set(ids(dataset))) == 80


def test_longer_epochs_repeat_a_row_only_when_all_have_come(path):
    dataset = opened(mixture(path, rows=300))
    assert len(dataset) == 300
    times = Counter(name for name in ids(dataset) if name.endswith("-en"))
    assert len(times) == 40 and set(times.values()) == {3, 4}


def test_the_seed_decides(path):
    assert ids(opened(mixture(path), 1)) == ids(opened(mixture(path), 1))
    assert ids(opened(mixture(path), 1)) != ids(opened(mixture(path), 2))


@pytest.mark.parametrize("ratio", [0.4, 0.7, 1.0, 1.5])
def test_the_ratio_of_figure_6(path, ratio):
    dataset = opened(mixture(path, languages={"en": 0.2, "cs": 0.6, "de": 0.2}, non_english_ratio=ratio, rows=1000))
    by_language = Counter(dataset.languages.tolist())
    assert (by_language["cs"] + by_language["de"]) / by_language["en"] == pytest.approx(ratio, abs=0.01)
    assert by_language["cs"] / by_language["de"] == pytest.approx(3, abs=0.05)


def test_the_papers_mixtures():
    def preset(name):
        content = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
        return Mixture(sources={"x": DataSource("x.parquet")}, **content)

    first, second, parrot = (preset(name) for name in ("lrm_llava_stage1", "lrm_llava_stage2", "parrot_stage2"))
    ten = {"en", "cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh"}
    for lrm in (first, second):
        assert set(lrm.languages) == ten and lrm.languages["en"] == pytest.approx(0.5, abs=0.005)
        assert all(lrm.languages[name] == pytest.approx(0.056, abs=0.0005) for name in ten - {"en"})
    assert set(first.tasks) == {"mvqa"} and set(second.tasks) == {"mvqa", "ep_vqa", "bvqa"}
    thousands = {"en": 665, "zh": 71, "pt": 14, "ar": 12, "tr": 17, "ru": 14}
    counts = apportion(793_000, parrot.languages)
    assert {name: round(count / 1000) for name, count in counts.items()} == thousands


def test_sources_form_one_pool_or_have_weights(tmp_path):
    english = write(tmp_path / "a", parallel_rows(30, ("en",)))
    both = write(tmp_path / "b", parallel_rows(10))
    sources = {"a": DataSource(str(english)), "b": DataSource(str(both))}
    pool = opened(Mixture(sources, EVEN, rows=40))
    # The 20 English rows come from both in proportion to what they have; the others from the one that has them.
    assert Counter(map(tuple, zip(pool.index[:, 0].tolist(), pool.languages.tolist(), strict=True))) == {
        (0, "en"): 15, (1, "en"): 5, (1, "cs"): 10, (1, "de"): 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match="language 'cs', but there are none in a.*Its sources have: cs bvqa"):
        opened(Mixture(sources, EVEN, weights={"a": 0.5, "b": 0.5}))
    weighted = opened(Mixture(sources, {"en": 1.0}, weights={"a": 0.25, "b": 0.75}, rows=100))
    assert Counter(weighted.index[:, 0].tolist()) == {0: 25, 1: 75}


def test_conversations_take_part_with_their_columns(path, tmp_path):
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    rows = [{"id": f"t{k}", "conversations": talk, "language": "en", "task": "chat"} for k in range(20)]
    plain = write(tmp_path / "plain", rows)
    sources = {"parallel": DataSource(str(path)), "plain": DataSource(str(plain))}
    counts = opened(Mixture(sources, EVEN, TASKS, rows=60)).counts()
    assert counts["en", "chat"] + counts["en", "mvqa"] == 30 and counts["en", "chat"] == 10
    with pytest.raises(ValueError, match="cannot stand in one file"):
        opened([DataSource(str(write(tmp_path / "mixed", rows + parallel_rows(1))))])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"languages": {"en": 0.5, "cs": 0.3}}, "`languages` of the mixture: the shares sum to 0.8 instead of 1"),
        ({"tasks": {"mvqa": 1.2, "bvqa": -0.2}}, "the share of 'bvqa' is -0.2"),
        ({"languages": {"en": 0.5, False: 0.5}}, "Write 'no' in quotes"),
        ({"languages": {"en": "half"}}, "the share of 'en' is 'half'"),
        ({"languages": {}}, "`languages` of the mixture must give a share to each name"),
        ({"weights": {"all": 0.5, "others": 0.5}}, "name different things: others .*Sources: all"),
        ({"sources": {}}, "has no `sources`"),
        ({"non_english_ratio": 0}, "non_english_ratio=0 must be a number above 0"),
        ({"non_english_ratio": 1.0, "languages": {"en": 1}}, "`languages` name English and others"),
        ({"rows": 0.5}, "rows=0.5 of the mixture must be a whole number"),
    ],
)
def test_mistakes_are_named(path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        mixture(path, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"languages": {"en": 0.5, "hr": 0.5}}, "rows of language 'hr' and task 'mvqa', but there are none in all"),
        ({"tasks": {"caption": 1.0}}, "task 'caption', but there are none .*have: cs bvqa, cs ep_vqa"),
    ],
)
def test_what_the_sources_lack_is_named(path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        opened(mixture(path, **changes))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda texts: texts["cs"].append(texts["cs"][0]), r"row 3 \(id row3\).*1 turn\(s\) in 'en' but 2 in 'cs'"),
        (lambda texts: texts["cs"][0].update(question="bez obrázku"), "1 <image> in 'en' but 0 in 'cs'"),
        (lambda texts: texts["de"][0].update(answer=" "), "turn 0, 'de': the answer is empty"),
    ],
)
def test_rows_that_do_not_align_are_found_before_training(tmp_path, change, complaint):
    rows = parallel_rows(5)
    change(rows[3]["texts"])
    with pytest.raises(ValueError, match=complaint):
        opened([DataSource(str(write(tmp_path / "data", rows)))])


def test_a_language_without_wording_is_named(tmp_path):
    path = write(tmp_path / "data", parallel_rows(2, ("en", "fi")))
    with pytest.raises(ValueError, match="No instructions in language 'fi'"):
        opened([DataSource(str(path), keep_tasks=["ep_vqa"])])
    wording = tmp_path / "fi.yaml"
    lines = {
        "name": "Suomi",
        "in_english": "Finnish",
        "pivot": ["Käännä ensin."],
        "answer_in_english": ["Englanniksi."],
    }
    wording.write_text(yaml.safe_dump({"fi": lines}), encoding="utf-8")
    dataset = opened([DataSource(str(path), keep_tasks=["ep_vqa"], instructions=[str(wording)])])
    assert "Käännä ensin." in dataset.stored_row(0)["messages"][0]["content"][-1]["text"]


def global_batches(dataset, processes, rows_per_step=8, skip=0):
    """The ids of every step's rows over all processes, as the Trainer's loader gives them."""
    PartialState()
    loaders = []
    for index in range(processes):
        loader = DataLoader(dataset, rows_per_step // processes, shuffle=True, collate_fn=lambda rows: rows)
        options = {"num_processes": processes, "process_index": index, "use_seedable_sampler": True, "data_seed": 5}
        loaders.append(prepare_data_loader(loader, put_on_device=False, **options))
    if skip:
        loaders = [skip_first_batches(loader, skip) for loader in loaders]
    return [sorted(row["id"] for part in step for row in part) for step in zip(*loaders, strict=True)]


def test_every_number_of_processes_sees_the_same_steps_and_resumes_in_the_middle(path):
    dataset = opened(mixture(path))
    one = global_batches(dataset, 1)
    assert sorted(name for step in one for name in step) == sorted(ids(dataset))
    assert global_batches(dataset, 2) == one and global_batches(dataset, 4) == one
    assert global_batches(dataset, 2, skip=3) == one[3:]


def rows_of_an_epoch(open_data, processes, workers, length, size=4):
    """How often each row comes while all processes together load `length` rows, as the Trainer loads them."""
    PartialState()
    seen: Counter = Counter()
    for index in range(processes):
        dataset = open_data(processes * max(1, workers))
        shuffle = None if isinstance(dataset, datasets.IterableDataset) else True
        names = lambda rows: [row["id"] for row in rows]  # noqa: E731
        loader = DataLoader(dataset, size, shuffle=shuffle, num_workers=workers, collate_fn=names)
        options = {"num_processes": processes, "process_index": index, "use_seedable_sampler": True, "data_seed": 5}
        loader = prepare_data_loader(loader, put_on_device=False, dispatch_batches=False, **options)
        for batch in islice(iter(loader), length // processes // size):
            seen.update(batch)
    return seen


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
@pytest.mark.parametrize("kind", ["mixture", "table", "files", "file"])
def test_no_row_is_lost_or_repeated_in_an_epoch(path, tmp_path, monkeypatch, kind, processes, workers):
    """Of data of known length and of streams, whoever reads them."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # 5 s after each stream of Parquet
    length = 80
    if kind == "mixture":
        data = mixture(path)
    elif kind == "table":
        data = [DataSource(str(path), streaming=True, keep_languages=["cs", "en"], keep_tasks=["mvqa"])]
    else:
        images = [{"bytes": None, "path": str(path.parent / "0.png")}]
        turns = [{"from": "human", "value": "<image>\nfrage"}, {"from": "gpt", "value": "wort"}]
        rows = datasets.Dataset.from_list(
            [{"id": str(k), "images": images, "conversations": turns} for k in range(length)]
        )
        number = 4 if kind == "files" else 1
        for shard in range(number):
            rows.shard(number, shard).to_parquet(tmp_path / f"part-{shard}.parquet")
        data = [DataSource(str(tmp_path / "part-*.parquet"), streaming=True)]
    seen = rows_of_an_epoch(lambda readers: open_sources(data, 0, ImageReader(), readers), processes, workers, length)
    assert len(seen) == length and set(seen.values()) == {1}


def test_files_that_cannot_be_shared_equally_are_named(tmp_path):
    turns = [{"from": "human", "value": "frage"}, {"from": "gpt", "value": "wort"}]
    for shard in range(3):
        rows = datasets.Dataset.from_list([{"id": str(shard), "conversations": turns}])
        rows.to_parquet(tmp_path / f"part-{shard}.parquet")
    source = DataSource(str(tmp_path / "part-*.parquet"), streaming=True)
    with pytest.warns(UserWarning, match="3 files are shared by 2 readers.*Write 2 files, or a multiple"):
        open_sources([source], 0, ImageReader(), 2)


def test_streams_keep_the_shares_and_count_what_was_read(path):
    reader = ImageReader()
    stream = open_sources(mixture(path, sources={"all": DataSource(str(path), streaming=True)}), 0, reader)
    rows = list(islice(iter(stream), 1200))
    found = kinds(rows)
    assert found["en", "mvqa"] / 1200 == pytest.approx(0.5, abs=0.05)
    assert found["cs", "mvqa"] / 1200 == pytest.approx(0.125, abs=0.03)
    assert found["de", "bvqa"] / 1200 == pytest.approx(0.0625, abs=0.025)
    assert reader.rows_read == {("en", None): found["en", "mvqa"]} | {
        cell: count for cell, count in found.items() if cell[0] != "en"
    }
    again = open_sources(mixture(path, sources={"all": DataSource(str(path), streaming=True)}), 0, ImageReader())
    assert [row["id"] for row in islice(iter(again), 50)] == [row["id"] for row in rows[:50]]
    sources = {name: DataSource(str(path), streaming=True) for name in "ab"}
    with pytest.raises(ValueError, match="several streams needs `weights`"):
        opened(mixture(path, sources=sources))


def test_json_lists_are_read_item_by_item(tmp_path):
    from parrot_data.sources import _json_list

    rows = [{"id": k, "text": 'a, [b] {c} "d" \\ é\n' * (k % 7)} for k in range(300)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    for block in (1, 7, 64, 1 << 20):
        with open(path, encoding="utf-8") as file:
            assert list(_json_list(file, path, block)) == rows
    for text, complaint in (
        ("[]", None),
        (" [ ] ", None),
        ('[{"a": 1},\n{"a": 2]', "line 2"),
        ('[{"a": 1}\n\n{"a": 2}]', "line 3: not valid JSON .Expecting ','"),
        ('[{"a": 1}] tail', "followed by 'tail'"),
        ('[{"a": 1},', "Was the file written completely"),
    ):
        path.write_text(text, encoding="utf-8")
        with open(path, encoding="utf-8") as file:
            if complaint is None:
                assert list(_json_list(file, path, 4)) == []
            else:
                with pytest.raises(ValueError, match=complaint):
                    list(_json_list(file, path, 4))
