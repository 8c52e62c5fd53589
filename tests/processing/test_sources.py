"""Sources: formats, lazy images, mixing, filters, and bad files."""

import json
from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest
import tiny_data
import tiny_models
from torch.utils.data import DataLoader

from parrot_data import BadImageError, ConversationDataset, DataSource, ImageReader, open_sources
from parrot_data.images import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    datasets.disable_progress_bars()


@pytest.fixture
def data(tmp_path):
    """A JSON file of 12 rows and its images."""
    return tiny_data.write(tmp_path / "set")


def source(path, **options):
    return DataSource(str(path), **{"image_folder": str(path.parent / "images"), **options})


def opened(*sources, seed=0, on_bad_image="error"):
    return open_sources(sources, seed, ImageReader(on_bad_image))


def take_ids(dataset, number=None):
    return [row["id"] for row in (dataset if number is None else islice(iter(dataset), number))]


def as_data_set(path):
    """The rows of a JSON file as a data set with images inside, in chat format."""
    rows = []
    for row in ConversationDataset([source(path)], 0, ImageReader()):
        rows.append({**row, "images": list(row["images"])})
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "messages": datasets.List(
                {
                    "role": datasets.Value("string"),
                    "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
                }
            ),
            "images": datasets.List(datasets.Image()),
            "language": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_list([{key: row[key] for key in features} for row in rows], features=features)


def test_all_formats_hold_the_same_rows(data, tmp_path):
    expected = list(opened(source(data)))
    assert [row["id"] for row in expected] == [row["id"] for row in tiny_data.rows(12)]

    lines = data.with_suffix(".jsonl")
    lines.write_text("\n".join(json.dumps(row) for row in json.loads(data.read_text())) + "\n\n")
    data_set = as_data_set(data)
    data_set.to_parquet(str(tmp_path / "rows.parquet"))
    data_set.save_to_disk(str(tmp_path / "disk"))
    for number in range(2):
        data_set.shard(2, number).to_parquet(str(tmp_path / "folder" / f"train-{number}.parquet"))
    llava = data_set.select(range(3)).remove_columns("messages")
    llava = llava.map(lambda row, i: {"image": row["images"][0]}, with_indices=True, remove_columns="images")
    llava = llava.add_column("conversations", [tiny_data.rows(3)[i]["conversations"] for i in range(3)])
    llava.to_parquet(str(tmp_path / "llava.parquet"))

    for path, number in [
        (lines, 12),
        (tmp_path / "rows.parquet", 12),
        (tmp_path / "disk", 12),
        (tmp_path / "disk" / "data-00000-of-00001.arrow", 12),
        (tmp_path / "folder", 12),
        (tmp_path / "folder" / "*.parquet", 12),
        (tmp_path / "llava.parquet", 3),
    ]:
        for streaming in (False, True):
            got = opened(source(path, streaming=streaming, image_folder=str(data.parent / "images")))
            rows = {row["id"]: row for row in (islice(iter(got), number) if streaming else got)}
            assert len(rows) == number, (path, streaming)
            for row in expected[:number]:
                other = rows[row["id"]]
                assert {k: other[k] for k in ("language", "task")} == {k: row[k] for k in ("language", "task")}
                parts = [
                    [{k: v for k, v in p.items() if v is not None} for p in m["content"]] for m in other["messages"]
                ]
                assert parts == [m["content"] for m in row["messages"]]
                for image, original in zip(other["images"], row["images"], strict=True):
                    assert np.array_equal(np.asarray(image), np.asarray(original))


def test_opening_decodes_no_image(data, tmp_path, monkeypatch):
    as_data_set(data).to_parquet(str(tmp_path / "rows.parquet"))

    def decode(*arguments, **options):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Image, "open", decode)
    for path in (data, tmp_path / "rows.parquet"):
        dataset = opened(source(path, image_folder=str(data.parent / "images")))
        assert len(dataset) == 12
        with pytest.raises(AssertionError, match="decoded"):
            dataset[0]


def test_weights_without_streaming(data):
    twice = Counter(take_ids(opened(source(data, weight=2))))
    assert set(twice.values()) == {2} and len(twice) == 12
    quarter = take_ids(opened(source(data, weight=0.25)))
    assert len(set(quarter)) == 3
    assert quarter == take_ids(opened(source(data, weight=0.25)))
    assert any(quarter != take_ids(opened(source(data, weight=0.25), seed=seed)) for seed in range(1, 5))
    mixed = Counter(take_ids(opened(source(data, weight=1.5), source(data, weight=0.5))))
    assert sum(mixed.values()) == 24 and min(mixed.values()) >= 1
    with pytest.raises(ValueError, match="weight must be a number above 0"):
        source(data, weight=0)


def test_filters(data):
    assert set(opened(source(data, keep_languages=["zh"])).languages) == {"zh"}
    assert len(opened(source(data, max_rows=5))) == 5
    assert take_ids(opened(source(data, keep_languages=["zh"], max_rows=2))) == ["image-1", "text-3"]
    tagged = opened(source(data, task="MVQA", keep_tasks=["MVQA"]))
    assert {row["task"] for row in tagged} == {"MVQA"} and len(tagged) == 12
    with pytest.raises(ValueError, match="no rows are left.*keep_languages=\\['fr'\\]"):
        opened(source(data, keep_languages=["fr"]))
    streamed = take_ids(opened(source(data, keep_languages=["zh"], max_rows=2, streaming=True)), 4)
    assert set(streamed) == {"image-1", "text-3"}


def test_by_column(data):
    parts = opened(source(data)).by("language")
    assert {name: len(part) for name, part in parts.items()} == {"en": 6, "zh": 6}
    assert all(row["language"] == name for name, part in parts.items() for row in part)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        ("  \n\n", "is empty"),
        ("[]", "empty list"),
        ('[{"id": 1,', "line 1: not valid JSON"),
        (json.dumps(tiny_data.llava_row("0", "q", "a")) + '\n{"id": ', "line 2: not valid JSON"),
        ('[{"id": 1, "conversations": []}]', r"row 0 \(id '1'\).*empty"),
    ],
)
def test_bad_json_is_named(tmp_path, content, complaint):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        opened(DataSource(str(path)))
    assert str(path) in str(caught.value)


def test_bad_rows_are_found_on_opening(data, tmp_path):
    """Also in data sets whose rows are converted only when they are used, and without reading their images."""
    data_set = as_data_set(data)
    broken = data_set.map(lambda row: {**row, "images": row["images"][:0]} if row["id"] == "image-4" else row)
    broken.to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(ValueError, match=r"row 4 \(id 'image-4'\): 1 <image> in the text but 0"):
        opened(DataSource(str(tmp_path / "rows.parquet")))


def test_missing_files(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json does not exist"):
        opened(DataSource(str(tmp_path / "none.json")))
    with pytest.raises(FileNotFoundError, match="image_folder .* is not a folder"):
        opened(source(data, image_folder=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="No data"):
        opened()


def break_image(path, kind):
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        tiny_models.picture(1, (200, 200)).save(path)
        path.write_bytes(path.read_bytes()[:-3000])
    else:
        path.write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("truncated", "may be truncated"),
        ("no image", "is not an image"),
    ],
)
def test_bad_images(data, kind, complaint):
    path = data.parent / "images" / "4.png"
    break_image(path, kind)

    dataset = opened(source(data))
    assert dataset[5]["id"] == "image-5"
    with pytest.raises(BadImageError, match=complaint) as caught:
        dataset[4]
    assert "row 'image-4'" in str(caught.value) and str(path) in str(caught.value)
    assert "on_bad_image: skip" in str(caught.value)

    dataset = opened(source(data), on_bad_image="skip")
    ids = take_ids(dataset)
    assert len(ids) == 12 and ids[4] == "image-5" and "image-4" not in ids
    assert dataset.reader.skipped == 1

    stream = opened(source(data, streaming=True), on_bad_image="skip")
    assert "image-4" not in take_ids(stream, 22)
    with pytest.raises(BadImageError, match=complaint):
        take_ids(opened(source(data, streaming=True)), 22)


def test_skipped_rows_are_counted_over_workers(data):
    for number in (0, 4, 5):
        (data.parent / "images" / f"{number}.png").unlink()
    dataset = opened(source(data), on_bad_image="skip")
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=lambda rows: [row["id"] for row in rows])
    assert sorted(sum(loader, [])) == sorted(take_ids(dataset))
    assert dataset.reader.skipped == 2 * 4  # 4 is replaced by 6: rows 4 and 5 are tried for 4, and 5 again for 5


def test_no_readable_image_at_all_is_an_error(data):
    for path in (data.parent / "images").iterdir():
        path.unlink()
    only_images = source(data, keep_languages=["en"])
    with pytest.raises(ValueError, match="None of the 6 rows has readable images"):
        opened(only_images, on_bad_image="skip")[0]
    reader = ImageReader("skip", limit=50)
    with pytest.raises(BadImageError, match="50 rows in a row"):
        take_ids(open_sources([source(data, keep_languages=["en"], streaming=True)], 0, reader), 1)


def test_streams_mix_by_weight_and_start_again(data, tmp_path):
    other = tiny_data.write(tmp_path / "other", [tiny_data.llava_row("other", "q", "a")])
    mixture = [source(data, weight=3, streaming=True), source(other, weight=1)]
    ids = take_ids(opened(*mixture), 400)
    assert 0.18 < ids.count("other") / 400 < 0.32
    assert ids == take_ids(opened(*mixture), 400)
    assert ids != take_ids(opened(*mixture, seed=1), 400)

    one_pass = {row["id"] for row in tiny_data.rows(12)}
    ids = take_ids(opened(source(data, streaming=True)), 36)
    assert set(ids[:12]) == set(ids[12:24]) == set(ids[24:]) == one_pass
