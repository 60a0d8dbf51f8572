import numpy as np
import pytest

from latentae.data import HeldOut, open_streams, streams
from tests.data.pictures import write_png, write_shards
from tests.data.test_table import image_table, own_cache  # noqa: F401
from tests.data.test_table_shards import write_tables
from tests.data.test_tar_index import own_cache as own_latentae_cache  # noqa: F401


def values(source) -> list[int]:
    return [int(source.load(index, 1)[0, 0, 0]) for index in range(len(source))]


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


def test_tables(tmp_path):
    write_tables(tmp_path, [3, 2])
    write_tables(tmp_path, [1], "test")
    opened = open_streams(str(tmp_path), notes=tmp_path)
    assert shard_values(opened.train, 1) == [3, 4]
    assert values(opened.validation) == [0]
    assert (tmp_path / "train_1_of_2").read_text() == "2"
    assert values(open_streams(str(tmp_path / "train-0.parquet")).validation) == [0]


def test_the_hub(tmp_path, monkeypatch):
    write_tables(tmp_path / "data", [3, 2])
    write_tables(tmp_path / "data", [1], "validation")
    asked = []

    def stream(name, dataset_config):
        asked.append((name, dataset_config))
        return stream_hub_dataset(str(tmp_path / "data"), None)

    stream_hub_dataset = streams.stream_hub_dataset
    monkeypatch.setattr(streams, "stream_hub_dataset", stream)
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
        with pytest.raises(ValueError, match=r"is not to be streamed: .* set streaming=false"):
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
