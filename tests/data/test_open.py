from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from latentae.data import (
    BrokenImageError,
    DataSelection,
    HeldOut,
    describe_source,
    open_source,
    open_sources,
    open_streams,
)
from latentae.data.table_files import stream_hub_dataset
from tests.data.pictures import (
    image_table,
    names,
    png_bytes,
    values,
    write_png,
    write_shards,
    write_tables,
    write_tar,
)


def test_photos():
    assert len(open_source("photos")) == 11
    opened = open_sources("photos")
    assert (len(opened.train), len(opened.validation)) == (11, 36)
    assert names(open_source("photos", split="val")) == names(opened.validation)
    with pytest.raises(ValueError, match="split 'test' is not in 'photos'; there are: train, validation"):
        open_source("photos", split="test")


def test_a_selection_opens_what_it_names(tmp_path):
    selection = DataSelection("photos", split="val")
    assert names(selection.open()) == names(open_source("photos", split="val"))
    np.save(tmp_path / "a.npy", np.full((2, 2), 30, np.int16))
    rows = {"image": [b""], "bands": [(tmp_path / "a.npy").read_bytes()]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "val.parquet")
    chosen = DataSelection(str(tmp_path / "val.parquet"), "train", "bands", None, (20, 40)).open()
    assert chosen.load(0, 1).tolist() == [[[0.5]] * 2] * 2
    write_png(tmp_path / "images/a.png", 1)
    small = DataSelection(str(tmp_path / "images"), max_pixels=5).open()
    with pytest.raises(BrokenImageError, match="more than the limit of 5"):
        small.load(0, 1)


def test_a_flat_folder_holds_some_out(tmp_path):
    for value in range(40):
        write_png(tmp_path / f"{value:02}.png", value)
    assert values(open_source(str(tmp_path))) == list(range(40))
    opened = open_sources(str(tmp_path), holdout=0.2)
    assert sorted(values(opened.train) + values(opened.validation)) == list(range(40))
    assert 2 <= len(opened.validation) <= 16
    assert values(open_sources(str(tmp_path), holdout=0.2).validation) == values(opened.validation)
    with pytest.raises(ValueError, match=r"split 'validation' is not in .*; there are: train"):
        open_source(str(tmp_path), split="validation")


@pytest.mark.parametrize(
    ("folders", "validation"), [(["train", "val", "test"], 1), (["train", "test"], 1), (["test", "train"], 0)]
)
def test_split_subfolders(tmp_path, folders, validation):
    for value, folder in enumerate(folders):
        write_png(tmp_path / folder / "a.png", value)
    opened = open_sources(str(tmp_path))
    assert values(opened.train) == [folders.index("train")]
    assert values(opened.validation) == [validation]
    assert values(open_source(str(tmp_path), split="test")) == [folders.index("test")]


def test_training_on_the_test_split_does_not_validate_on_it(tmp_path):
    for value, folder in enumerate(["train", "test", "test"]):
        write_png(tmp_path / folder / f"{value}.png", value)
    opened = open_sources(str(tmp_path), split="test")
    assert sorted(values(opened.train) + values(opened.validation)) == [1, 2]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_png(tmp_path / "pictures/a.png", 3)
    assert values(open_source("~/pictures")) == [3]


def test_tables(tmp_path):
    image_table([1, 2]).to_parquet(tmp_path / "data/train-00000.parquet")
    image_table([3]).to_parquet(tmp_path / "data/validation-00000.parquet")
    write_png(tmp_path / ".hidden.png", 9)
    opened = open_sources(str(tmp_path), image_column="image")
    assert (values(opened.train), values(opened.validation)) == ([1, 2], [3])
    assert names(opened.validation) == ["validation[0]"]
    one_file = str(tmp_path / "data/validation-00000.parquet")
    assert values(open_source(one_file)) == [3]
    with pytest.raises(ValueError, match="only datasets of the hub can be sliced"):
        open_source(one_file, split="train[:1]")
    with pytest.raises(ValueError, match="image_column 'photo' is not there; columns: label, image"):
        open_source(one_file, image_column="photo")


def test_tables_win_over_arrays_and_more_pictures_over_tables(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "a.npy", np.full((4, 4), 7, np.uint8))
    assert values(open_source(str(data))) == [7]
    image_table([1, 2]).to_parquet(data / "train.parquet")
    assert values(open_source(str(data))) == [1, 2]
    # A picture beside a table that holds more of them illustrates it: neither is taken without a word.
    write_png(data / "card/b.png", 9)
    with pytest.raises(ValueError, match=r"holds 1 picture file.*1 parquet or arrow file") as caught:
        open_source(str(data))
    for name, expected in ((f"{data}/**/*.parquet", [1, 2]), (f"{data}/card", [9])):
        assert repr(name) in str(caught.value)
        assert values(open_source(name)) == expected
    write_png(data / "card/c.png", 10)  # as many: they may be those of the table
    assert values(open_source(str(data))) == [7, 9, 10]


def test_tables_that_hold_no_images_and_lists_of_images_are_no_rivals_of_pictures(tmp_path):
    write_png(tmp_path / "a.png", 9)
    rows = {"image": ["a.png"] * 3, "caption": ["x"] * 3}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "captions.parquet")
    datasets.Dataset.from_dict({"n": [1, 2, 3]}).to_parquet(tmp_path / "numbers.parquet")
    image_table([1, 2]).to_parquet(tmp_path / "metadata.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"no table")
    source = open_source(str(tmp_path))
    assert values(source) == [9]
    assert "left out 4 files (4 .parquet)" in describe_source(source)


def test_saved_datasets(tmp_path):
    splits = datasets.DatasetDict({"train": image_table([1, 2]), "val": image_table([3])})
    splits.save_to_disk(tmp_path / "many")
    opened = open_sources(str(tmp_path / "many"))
    assert (values(opened.train), values(opened.validation)) == ([1, 2], [3])
    assert values(open_source(str(tmp_path / "many"), split="validation")) == [3]


def test_hub(monkeypatch):
    tables = {"train": image_table([1, 2, 3]), "valid": image_table([4]), "test": image_table([5])}
    asked = []

    def prepare(name, dataset_config):
        asked.append((name, dataset_config))
        return SimpleNamespace(
            info=SimpleNamespace(splits=tables),
            as_dataset=lambda split: tables[split.partition("[")[0]].select(range(2 if "[" in split else 1)),
        )

    monkeypatch.setattr("latentae.data.open.prepare_hub_dataset", prepare)
    opened = open_sources("owner/data", split="train[:2]", dataset_config="small")
    assert asked == [("owner/data", "small")]
    assert (values(opened.train), values(opened.validation)) == ([1, 2], [4])
    assert names(opened.train) == ["train[:2][0]", "train[:2][1]"]
    assert values(open_source("owner/data", split="validation")) == [4]
    with pytest.raises(
        ValueError, match="split 'extra' is not in 'owner/data'; there are: train, valid, test"
    ):
        open_source("owner/data", split="extra")
    with pytest.raises(ValueError, match="columns: label, image"):
        open_source("owner/data", image_column="photo")


def test_what_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in (
        "data/gone",
        "./gone",
        "../gone",
        str(tmp_path / "gone"),
        "~/gone",
        "a/b/c",
        "a b",
        "c:\\data",
    ):
        with pytest.raises(ValueError, match="looks like a path and does not exist") as caught:
            open_source(name)
        assert repr(name) in str(caught.value)


def test_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="neither 'photos', nor a file or folder here"):
        open_source("owner/unknown")


def test_settings_that_do_not_apply_are_refused(tmp_path):
    write_png(tmp_path / "a.png", 1)
    for name in ("photos", str(tmp_path)):
        with pytest.raises(ValueError, match="image_column='image' is for tables and tar files"):
            open_source(name, image_column="image")
        with pytest.raises(ValueError, match="dataset_config='large' belongs to datasets of the hub"):
            open_source(name, dataset_config="large")
    with pytest.raises(ValueError, match="is one file; give a folder"):
        open_source(str(tmp_path / "a.png"))


def test_nothing_to_open(tmp_path):
    with pytest.raises(ValueError, match="name is empty"):
        open_source("")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no image in the folder .* found 1 of \.txt"):
        open_source(str(tmp_path))


def test_tar_files(tmp_path):
    write_shards(tmp_path / "shards", [3, 2])
    write_shards(tmp_path / "shards", [2], "val")
    opened = open_sources(str(tmp_path / "shards"))
    assert (values(opened.train), values(opened.validation)) == ([0, 1, 2, 3, 4], [0, 1])
    pattern = f"{tmp_path}/shards/train-{{000..001}}.tar"
    assert values(open_source(pattern)) == [0, 1, 2, 3, 4]
    held_out = open_sources(pattern, holdout=0.3)
    assert sorted(values(held_out.train) + values(held_out.validation)) == [0, 1, 2, 3, 4]
    assert values(open_source(pattern, image_column="png")) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"no image called \*\.jpg"):
        open_source(pattern, image_column="jpg")


def test_the_value_range_reaches_every_kind(tmp_path):
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays/a.npy", np.full((2, 2), 30, np.int16))
    rows = {"image": [(tmp_path / "arrays/a.npy").read_bytes()]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    for name in ("arrays", "a.parquet"):
        source = open_source(str(tmp_path / name), value_range=(20, 40))
        assert source.load(0, 1).tolist() == [[[0.5]] * 2] * 2
    with pytest.raises(ValueError, match="value_range="):
        open_source(str(tmp_path / "arrays"), value_range=(40, 20))


def test_more_shards_move_no_image_into_training(tmp_path):

    def write(folder: str, first: int) -> None:
        (tmp_path / "tables" / folder).mkdir(parents=True)
        image_table(list(range(first, first + 60))).to_parquet(tmp_path / f"tables/{folder}/{folder}.parquet")
        members = {f"{value:03}.png": png_bytes(value) for value in range(first, first + 60)}
        write_tar(tmp_path / f"tars/{folder}/{folder}.tar", members)
        for value in range(first, first + 60):
            write_png(tmp_path / f"images/{folder}/{value:03}.png", value)

    write("b", 100)
    kinds = ("tables", "tars", "images")
    before = {kind: open_sources(str(tmp_path / kind), holdout=0.2) for kind in kinds}
    write("a", 0)
    for kind in kinds:
        after = open_sources(str(tmp_path / kind), holdout=0.2)
        assert {v for v in values(after.validation) if v >= 100} == set(values(before[kind].validation))
        assert not set(values(after.train)) & set(values(before[kind].validation))


def test_what_is_trained_and_measured_on_is_described(tmp_path):
    for name in ("train2017/a.png", "val2017/a.png", "train2017/a.txt"):
        write_png(tmp_path / name, 1)
    first, second = open_sources(str(tmp_path)).description.splitlines()
    assert f"'train': {tmp_path}/train2017: 1 file (1 .png); left out 1 file (1 .txt)" in first
    assert f"'validation': {tmp_path}/val2017: 1 file (1 .png)" in second
    for value in range(19):
        write_png(tmp_path / f"flat/{value}.png", value)
    opened = open_sources(f"{tmp_path}/flat", holdout=0.2)
    assert f"{len(opened.validation)} of these 19 images, held out" in opened.description
    assert "11 built-in photographs" in open_sources("builtin:photos").description


def shard_values(shards, shard: int) -> list[int]:
    return [int(image.load(1, None)[0, 0, 0]) for image in shards.read(shard)]


def test_tar_files_with_a_split_to_measure_on(tmp_path):
    write_shards(tmp_path, [3, 2])
    write_shards(tmp_path, [4, 4], "val")
    opened = open_streams(str(tmp_path), max_validation=3)
    assert [shard_values(opened.train, shard) for shard in range(2)] == [[0, 1, 2], [3, 4]]
    assert opened.held_out == {}
    assert values(opened.validation) == [0, 4, 5]


def test_tar_files_by_a_pattern_hold_some_out(tmp_path):
    write_shards(tmp_path, [4, 4])
    pattern = f"{tmp_path}/train-{{000..001}}.tar"
    opened = open_streams(pattern, holdout=0.25)
    assert opened.held_out == {0: 1, 1: 1}
    assert values(opened.validation) == [0, 4]
    assert open_streams(pattern, holdout=0.25, max_validation=1).held_out == {0: 1}


def test_streamed_tables(tmp_path):
    write_tables(tmp_path, [3, 2])
    write_tables(tmp_path, [1], "test")
    opened = open_streams(str(tmp_path), notes=tmp_path)
    assert shard_values(opened.train, 1) == [3, 4]
    assert values(opened.validation) == [0]
    assert (tmp_path / "train_1_of_2").read_text() == "2"
    assert values(open_streams(str(tmp_path / "train-0.parquet")).validation) == [0]


def test_streamed_hub(tmp_path, monkeypatch):
    write_tables(tmp_path / "data", [3, 2])
    write_tables(tmp_path / "data", [1], "validation")
    asked = []

    def stream(name, dataset_config):
        asked.append((name, dataset_config))
        return stream_hub_dataset(str(tmp_path / "data"), None)

    monkeypatch.setattr("latentae.data.open.stream_hub_dataset", stream)
    opened = open_streams("owner/data", dataset_config="small")
    assert asked == [("owner/data", "small")]
    assert (shard_values(opened.train, 1), values(opened.validation)) == ([3, 4], [0])
    with pytest.raises(ValueError, match="a stream cannot be sliced"):
        open_streams("owner/data", split="train[:1]")
    with pytest.raises(ValueError, match="split 'x' is not in 'owner/data'; there are: train, validation"):
        open_streams("owner/data", split="x")


def test_options_are_passed_on(tmp_path):
    array = tmp_path / "a.npy"
    np.save(array, np.full((2, 2), 30, np.int16))
    rows = {"bands": [array.read_bytes()] * 4}
    image_table([1]).from_dict(rows).to_parquet(tmp_path / "a.parquet")
    opened = open_streams(str(tmp_path / "a.parquet"), image_column="bands", value_range=(20, 40))
    assert opened.validation.load(0, 1).tolist() == [[[0.5]] * 2] * 2
    with pytest.raises(ValueError, match="value_range="):
        open_streams(str(tmp_path / "a.parquet"), value_range=(1, 1))


def test_what_is_not_streamed(tmp_path):
    write_png(tmp_path / "a.png", 1)
    image_table([1, 2]).save_to_disk(tmp_path / "saved")
    for name in ("photos", str(tmp_path), str(tmp_path / "saved")):
        with pytest.raises(ValueError, match=r"cannot be streamed: .* set streaming=false"):
            open_streams(name)
    with pytest.raises(ValueError, match="dataset_config='x' belongs to datasets of the hub"):
        open_streams(str(tmp_path), dataset_config="x")


def test_shards_that_come_later_are_all_trained_on_and_none_held_out_before_is(tmp_path):
    write_shards(tmp_path / "b", [4, 4])
    first = open_streams(str(tmp_path / "b"), holdout=0.25)
    record = HeldOut.from_dict(first.record.to_dict())
    assert record.shards == {"train-000.tar": 1, "train-001.tar": 1}
    write_shards(tmp_path / "a", [4, 4], "new")  # comes before, and makes the shards' labels longer
    opened = open_streams(f"{tmp_path}/*/*.tar", holdout=0.25, before=record)
    assert opened.held_out == {2: 1, 3: 1}
    assert opened.record.shards == {"b/train-000.tar": 1, "b/train-001.tar": 1}
    assert open_streams(str(tmp_path / "b"), holdout=0.25, before=opened.record).held_out == {0: 1, 1: 1}
    assert "2 of these, held out (holdout=0.25)" in opened.description


def test_empty_first_shards(tmp_path):
    write_shards(tmp_path / "tars", [0, 4, 0, 4])
    write_tables(tmp_path / "tables", [0, 4, 4])
    opened = open_streams(str(tmp_path / "tars"), holdout=0.25)
    assert opened.held_out == {1: 1, 2: 1, 3: 1}
    assert len(opened.validation) == 2
    opened = open_streams(str(tmp_path / "tables"), holdout=0.25)
    assert (len(opened.train), opened.held_out) == (2, {0: 1, 1: 1})
    write_shards(tmp_path / "none", [0, 0])
    with pytest.raises(ValueError, match=r"0 image\(s\) are too few"):
        open_streams(str(tmp_path / "none"))
