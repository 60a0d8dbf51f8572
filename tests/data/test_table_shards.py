import pickle
import shutil

import datasets
import numpy as np
import pytest

from latentae.data import BrokenImageError
from latentae.data.table_shards import StreamedTable, TableShards, stream_hub_dataset, stream_table_files
from tests.data.pictures import write_png, write_shards
from tests.data.test_table import image_table, own_cache  # noqa: F401


def write_tables(folder, counts: list[int], split: str = "train") -> list:
    """Parquet files of so many pictures each, whose values count on through all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, begin = [], 0
    for shard, count in enumerate(counts):
        paths.append(folder / f"{split}-{shard}.parquet")
        image_table(list(range(begin, begin + count))).to_parquet(paths[-1], batch_size=2)
        begin += count
    return paths


def values(entries) -> list[int]:
    return [int(entry.load(1, None)[0, 0, 0]) for entry in entries]


def test_rows_in_order(tmp_path):
    shards = TableShards(stream_table_files(write_tables(tmp_path, [5, 1, 3]), "train"))
    assert len(shards) == 3
    assert values(shards.read(0)) == [0, 1, 2, 3, 4]
    assert [(entry.name, entry.row) for entry in shards.read(0, start=1, step=3)] == [
        ("train-0.parquet[1]", 1), ("train-0.parquet[4]", 4),
    ]  # fmt: skip
    assert values(shards.read(2, start=2)) == [8]
    assert list(shards.read(2, start=3)) == []
    assert [shards.count(shard) for shard in range(3)] == [5, 1, 3]
    assert shards.typical_count() == 5
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # read in place
    assert values(pickle.loads(pickle.dumps(shards)).read(1)) == [5]


def test_arrow_files(tmp_path):
    image_table([1, 2]).save_to_disk(tmp_path / "saved")
    files = sorted((tmp_path / "saved").glob("*.arrow"))
    assert values(TableShards(stream_table_files(files, "train")).read(0)) == [1, 2]


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
    assert (values(tars.read(0)), values(tars.read(1)), tars.count(1)) == ([0, 1, 2], [3, 4], 2)
    images = TableShards(stream_hub_dataset(str(tmp_path / "images"), None)["train"])
    assert [value for shard in range(len(images)) for value in values(images.read(shard))] == [0, 1, 2]


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
        assert values([first]) == [7]
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
