import io
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest

from latentae.data import BrokenImageError, TableSource
from latentae.data.folder import split_files
from latentae.data.table import TableShards
from latentae.data.table_cells import choose_image_column
from latentae.data.table_files import (
    TABLE_SUFFIXES,
    StreamedTable,
    count_table_images,
    open_table_files,
    prepare_hub_dataset,
    saved_splits,
    stream_hub_dataset,
    stream_table_files,
)
from tests.data.pictures import (
    entry_values,
    image_table,
    png_bytes,
    values,
    write_png,
    write_shards,
    write_tables,
)


def test_rows_are_decoded_by_our_decoder():
    source = TableSource(image_table([5, 6, 7]), "train")
    assert len(source) == 3
    assert source.name(2) == "train[2]"
    assert [int(source.load(index, 1)[0, 0, 0]) for index in range(3)] == [5, 6, 7]
    assert source.load(0, 4).shape == (8, 8, 4)


def test_plain_bytes_and_paths(tmp_path):
    as_bytes = datasets.Dataset.from_dict({"jpg": [png_bytes(9)], "caption": ["a"]})
    assert TableSource(as_bytes, "train").load(0, 3)[0, 0].tolist() == [9, 9, 9]
    as_paths = datasets.Dataset.from_dict({"img": [str(write_png(tmp_path / "a.png", 8))]})
    assert TableSource(as_paths, "train").load(0, 3)[0, 0].tolist() == [8, 8, 8]


def test_array_files_in_a_column():
    stored = np.arange(4 * 5 * 13, dtype=np.uint16).reshape(4, 5, 13)
    buffer = io.BytesIO()
    np.save(buffer, stored)
    source = TableSource(datasets.Dataset.from_dict({"image": [buffer.getvalue()]}), "train")
    assert np.allclose(source.load(0, 13), stored / 65535)


@pytest.mark.parametrize("shape", [(4, 5, 13), (13, 4, 5), (None, 5, 13)])
def test_a_column_of_arrays(shape, tmp_path):
    stored = np.random.default_rng(0).integers(0, 65536, (3, *(side or 4 for side in shape)), np.uint16)
    features = datasets.Features(
        {"bands": datasets.Array3D(shape, "uint16"), "label": datasets.Value("int64")}
    )
    dataset = datasets.Dataset.from_dict({"bands": list(stored), "label": [0, 1, 2]}, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    for each in (dataset, open_table_files([tmp_path / "a.parquet"])[0]):
        source = TableSource(each, "train")
        assert source.image_column == "bands"
        for index, array in enumerate(stored):
            expected = np.moveaxis(array, 0, 2) if shape[0] == 13 else array
            assert np.allclose(source.load(index, 13), expected / 65535, rtol=1e-6)
        with pytest.raises(BrokenImageError, match=r"^train\[1\]: an array .* is not an image of 3 channel"):
            source.load(1, 3)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_column_of_flat_arrays_with_a_gap(dtype):
    features = datasets.Features({"image": datasets.Array2D((2, 3), dtype)})
    dataset = datasets.Dataset.from_dict({"image": [[[0, 1, 0], [1, 0, 1]], None]}, features=features)
    source = TableSource(dataset, "train")
    assert source.load(0, 1)[..., 0].tolist() == [[0, 1, 0], [1, 0, 1]]
    with pytest.raises(BrokenImageError, match=r"^train\[1\]: the row has no image"):
        source.load(1, 1)


def test_a_usual_name_wins_over_a_column_of_arrays():
    features = {"mask": datasets.Array2D((1, 1), "uint8"), "image": datasets.Value("binary")}
    rows = {"mask": [[[1]]], "image": [png_bytes(1)]}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    assert choose_image_column(dataset.features) == "image"
    assert choose_image_column(dataset.remove_columns("image").features) == "mask"


def test_broken_rows_are_named():
    dataset = datasets.Dataset.from_dict({"image": [png_bytes(1), b"nonsense", None]})
    source = TableSource(dataset, "validation")
    with pytest.raises(BrokenImageError, match=r"^validation\[1\]: not an image"):
        source.load(1, 3)
    with pytest.raises(BrokenImageError, match=r"^validation\[2\]: the row has no image"):
        source.load(2, 3)


def test_a_column_of_numbers_and_an_empty_table_are_refused():
    with pytest.raises(ValueError, match=r"image_column 'image' holds Value\(.*int64.*\), no images"):
        TableSource(datasets.Dataset.from_dict({"image": [1]}), "train")
    with pytest.raises(ValueError, match="'train' has no rows"):
        TableSource(image_table([1]).select([]), "train")


def test_parquet_files(tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    image_table([1, 2]).to_parquet(first)
    image_table([3]).to_parquet(second)
    source = TableSource(open_table_files([first, second])[0], "train")
    assert [int(source.load(index, 3)[0, 0, 0]) for index in range(3)] == [1, 2, 3]


def test_parquet_written_by_another_program(tmp_path):
    table = pyarrow.table({"image": [{"bytes": png_bytes(4), "path": "x.png"}], "text": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = TableSource(open_table_files([tmp_path / "a.parquet"])[0], "train")
    assert source.load(0, 1)[0, 0].tolist() == [4]


def test_arrow_files_and_saved_datasets(tmp_path, caches):
    image_table([1, 2]).save_to_disk(tmp_path / "saved")
    files = sorted((tmp_path / "saved").glob("*.arrow"))
    for dataset in (open_table_files([*files, *files])[0], datasets.load_from_disk(str(tmp_path / "saved"))):
        assert TableSource(dataset, "train").load(1, 1)[0, 0].tolist() == [2]
    assert len(open_table_files([*files, *files])[0]) == 4
    assert not list(caches.glob("datasets/*"))  # mapped, not copied


def test_unreadable_files(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"no table")
        with pytest.raises(ValueError, match=rf"cannot read .*{name} \(1 file"):
            open_table_files([tmp_path / name])
    with pytest.raises(ValueError, match=r"mixes \.arrow and \.parquet"):
        open_table_files([tmp_path / "a.parquet", tmp_path / "a.arrow"])


def test_splits_of_table_files(tmp_path):
    names = [
        "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/val.parquet",
        "default/partial-test/0000.parquet", "latest.PARQUET", "notes.txt", "train/dev_test.arrow",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {
        split: [path.relative_to(tmp_path).as_posix() for path in files]
        for split, files in split_files(tmp_path, TABLE_SUFFIXES).items()
    }
    assert found == {
        "train": [names[0], names[1], names[4]],
        "validation": [names[2]],
        "test": [names[3], names[6]],
    }


def test_saved_splits(tmp_path):
    assert saved_splits(tmp_path) == {}
    image_table([1]).save_to_disk(tmp_path / "one")
    assert saved_splits(tmp_path / "one") == {"train": tmp_path / "one"}
    splits = datasets.DatasetDict({"training_a": image_table([1]), "val": image_table([2])})
    splits.save_to_disk(tmp_path / "many")
    assert saved_splits(tmp_path / "many") == {
        "training_a": tmp_path / "many/training_a",
        "val": tmp_path / "many/val",
    }


def test_hub_errors_are_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"'owner/nothing' is neither .*HF_HUB_OFFLINE.* give the path"
    ) as caught:
        prepare_hub_dataset("owner/nothing", None)
    assert "failed: ConnectionError: " in str(caught.value)
    with pytest.raises(ValueError, match="dataset_config 'large'"):
        prepare_hub_dataset("owner/nothing", "large")


def test_a_builder_is_prepared_and_opens_splits(tmp_path: Path):
    # `datasets` takes a folder in the place of a hub id, and does the same with it, short of the network.
    image_table([1, 2, 3, 4]).to_parquet(tmp_path / "repository/train.parquet")
    image_table([5]).to_parquet(tmp_path / "repository/test.parquet")
    builder = prepare_hub_dataset(str(tmp_path / "repository"), None)
    assert list(builder.info.splits) == ["train", "test"]
    source = TableSource(builder.as_dataset(split="train[50%:]"), "train[50%:]")
    assert np.array_equal([source.load(index, 1)[0, 0, 0] for index in range(len(source))], [3, 4])


def write_parquet(path: Path, values: list[int], kind=None, **columns: list) -> Path:
    images = pyarrow.array([png_bytes(value) for value in values], kind or pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({**columns, "image": images}), path)
    return path


def test_files_with_other_columns_keep_those_that_all_have(tmp_path):
    files = [
        write_parquet(tmp_path / "0.parquet", [], n=pyarrow.array([], pyarrow.null())),
        write_parquet(tmp_path / "1.parquet", [1, 2], n=[1, 2]),
        write_parquet(tmp_path / "2.parquet", [3], extra=["x"], n=[3]),
        write_parquet(tmp_path / "3.parquet", [4], pyarrow.large_binary(), n=[4]),
    ]
    table, chosen = open_table_files(files)
    source = TableSource(table, "train", files=chosen)
    assert values(source) == [1, 2, 3, 4]
    assert source.table.column_names == ["n", "image"]
    assert [source.key(index) for index in range(4)] == [
        "1.parquet[0]", "1.parquet[1]", "2.parquet[0]", "3.parquet[0]",
    ]  # fmt: skip
    streamed = stream_table_files(files, "train")
    shards = TableShards(streamed)
    found = [[int(image.load(1, None)[0, 0, 0]) for image in shards.read(s)] for s in range(len(shards))]
    assert found == [[1, 2], [3], [4]]
    pyarrow.parquet.write_table(pyarrow.table({"other": [1]}), tmp_path / "4.parquet")
    with pytest.raises(ValueError, match="no column in common"):
        open_table_files([*files, tmp_path / "4.parquet"])


def test_another_column_alone_copies_no_table(tmp_path, monkeypatch):
    files = [
        write_parquet(tmp_path / "0.parquet", [1]),
        write_parquet(tmp_path / "1.parquet", [2], extra=["x"]),
    ]
    monkeypatch.setattr(datasets.Dataset, "cast", None)
    assert values(TableSource(open_table_files(files)[0], "train")) == [1, 2]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file/cache"))
    image_table([1]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"cache of `datasets`, .*file/cache, .*set HF_DATASETS_CACHE"):
        open_table_files([tmp_path / "a.parquet"])
    with pytest.raises(ValueError, match=r"'owner/data': the cache of `datasets`, .*set HF_DATASETS_CACHE"):
        prepare_hub_dataset("owner/data", None)


def test_images_of_a_table_are_counted_by_the_type_of_its_column(tmp_path):
    assert count_table_images(write_parquet(tmp_path / "a.parquet", [1, 2])) == 2
    image_table([1, 2, 3]).save_to_disk(tmp_path / "saved")
    assert count_table_images(next((tmp_path / "saved").glob("*.arrow"))) == 3
    for name, rows in (("paths", {"image": ["a.png"]}), ("numbers", {"n": [1]})):
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
        assert count_table_images(tmp_path / f"{name}.parquet") == 0
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    assert count_table_images(tmp_path / "damaged.parquet") == 0


def test_arrow_files_with_other_columns_are_read_and_not_streamed(tmp_path):
    for name, rows in (("a", {"image": [png_bytes(1)]}), ("b", {"n": [2], "image": [png_bytes(2)]})):
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / name)
    files = sorted(tmp_path.glob("*/*.arrow"))
    assert values(TableSource(open_table_files(files)[0], "train")) == [1, 2]
    with pytest.raises(ValueError, match=r"different columns.*set streaming=false"):
        stream_table_files(files, "train")


def test_rows_in_order(tmp_path, caches):
    shards = TableShards(stream_table_files(write_tables(tmp_path, [5, 1, 3]), "train"))
    assert len(shards) == 3
    assert entry_values(shards.read(0)) == [0, 1, 2, 3, 4]
    assert [(entry.name, entry.row) for entry in shards.read(0, start=1, step=3)] == [
        ("train-0.parquet[1]", 1), ("train-0.parquet[4]", 4),
    ]  # fmt: skip
    assert entry_values(shards.read(2, start=2)) == [8]
    assert list(shards.read(2, start=3)) == []
    assert [shards.count(shard) for shard in range(3)] == [5, 1, 3]
    assert shards.typical_count() == 5
    assert not list(caches.rglob("*.arrow"))  # read in place
    assert entry_values(pickle.loads(pickle.dumps(shards)).read(1)) == [5]


def test_arrow_files(tmp_path):
    image_table([1, 2]).save_to_disk(tmp_path / "saved")
    files = sorted((tmp_path / "saved").glob("*.arrow"))
    assert entry_values(TableShards(stream_table_files(files, "train")).read(0)) == [1, 2]


def test_arrays(tmp_path):
    stored = np.arange(3 * 4 * 5 * 6, dtype=np.uint16).reshape(3, 4, 5, 6)
    features = datasets.Features({"bands": datasets.Array3D((4, 5, 6), "uint16")})
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"bands": list(stored)}, features=features).to_parquet(path)
    shards = TableShards(stream_table_files([path], "train"), value_range=(0, 720))
    for entry, array in zip(shards.read(0), stored, strict=True):
        assert np.allclose(entry.load(6, None), array / 720, rtol=1e-6)
    assert shards.count(0) == 3


def test_what_shards_hold_is_noted_and_not_read_again(tmp_path):
    paths, notes = write_tables(tmp_path, [4, 6]), tmp_path / "notes"

    def shards() -> TableShards:
        return TableShards(stream_table_files(paths, "train"), notes=notes)

    assert shards().count(1) == 6
    assert not notes.exists()  # whoever wants notes makes the folder
    notes.mkdir()
    list(shards().read(0, start=3))
    unread = shards()
    paths[0].unlink()
    shutil.copy(paths[1], paths[0])
    assert unread.count(0) == 4
    (note,) = notes.iterdir()
    note.write_text("")
    assert unread.count(0) == 4
    assert shards().count(0) == 6  # a note that was cut short is none


def test_names_and_numbers_of_the_hub(tmp_path):
    # `datasets` takes a folder in the place of a hub id, and does the same with it, short of the network.
    write_tables(tmp_path / "data", [3, 2])
    write_tables(tmp_path / "data", [1], "validation")
    tables = stream_hub_dataset(str(tmp_path / "data"), None)
    assert sorted(tables) == ["train", "validation"]
    shards = TableShards(tables["train"])
    assert [entry.name for entry in shards.read(1)] == ["train-1.parquet[0]", "train-1.parquet[1]"]
    known = StreamedTable(tables["train"].table, "train", num_rows=500)
    assert TableShards(known).typical_count() == 250
    assert [entry.name for entry in TableShards(known).read(1)] == ["train/1[0]", "train/1[1]"]


def test_other_formats_of_the_hub(tmp_path):
    write_shards(tmp_path / "tars", [3, 2])
    for value in range(3):
        write_png(tmp_path / f"images/{value}.png", value)
    tars = TableShards(stream_hub_dataset(str(tmp_path / "tars"), None)["train"])
    assert (entry_values(tars.read(0)), entry_values(tars.read(1)), tars.count(1)) == ([0, 1, 2], [3, 4], 2)
    images = TableShards(stream_hub_dataset(str(tmp_path / "images"), None)["train"])
    assert [value for shard in range(len(images)) for value in entry_values(images.read(shard))] == [0, 1, 2]


def test_hub_errors(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'owner/nothing' is neither .*HF_HUB_OFFLINE.* give the path"):
        stream_hub_dataset("owner/nothing", None)


class Breaking:
    """A table whose second row cannot be had."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.features, self.num_shards = datasets.Features({"image": datasets.Image()}), 1

    def select_columns(self, columns):
        return self

    def cast_column(self, column, feature):
        return self

    def with_format(self, name):
        return self

    def shard(self, num_shards, index):
        return self

    def iter(self, batch_size):
        yield next(image_table([7]).with_format("arrow").iter(1))
        raise self.error


def test_a_damaged_file_ends_in_an_image_that_cannot_be_decoded():
    for error, is_local in ((ValueError("Invalid page\nheader"), False), (OSError("corrupt"), True)):
        shards = TableShards(StreamedTable(Breaking(error), "train", ["a.parquet"], is_local=is_local))
        first, last = shards.read(0)
        assert entry_values([first]) == [7]
        with pytest.raises(
            BrokenImageError, match=r"^a\.parquet\[1\]: the rest of the file is damaged \(.*Error"
        ):
            last.load(3, None)
        assert shards.count(0) == 2
        assert list(shards.read(0, start=2)) == []


def test_a_stream_that_breaks_off_ends_the_run():
    for error, is_local in ((OSError("reset"), False), (OSError(5, "I/O"), True), (KeyError("x"), False)):
        shards = TableShards(StreamedTable(Breaking(error), "train", is_local=is_local))
        entries = shards.read(0)
        next(entries)
        with pytest.raises(BrokenImageError, match=r"^train/0\[1\]: the stream broke off \(.*Error"):
            next(entries)


def test_what_cannot_be_streamed(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no table")
    (tmp_path / "b.arrow").touch()
    with pytest.raises(ValueError, match=r"cannot read .*a\.parquet \(1 file"):
        stream_table_files([tmp_path / "a.parquet"], "train")
    with pytest.raises(ValueError, match=r"mixes \.arrow and \.parquet"):
        stream_table_files([tmp_path / "a.parquet", tmp_path / "b.arrow"], "train")
    path = tmp_path / "c.parquet"
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(path)
    with pytest.raises(ValueError, match="no image column; set image_column to one of x"):
        TableShards(stream_table_files([path], "train"))
    table = datasets.IterableDataset.from_generator(iter, gen_kwargs={"object": []})
    with pytest.raises(ValueError, match="'train' does not say what its columns hold"):
        TableShards(StreamedTable(table, "train"))
