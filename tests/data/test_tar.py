import pickle
from pathlib import Path

import numpy as np
import pytest

from latentae.data import BrokenImageError, ImageDataset, RandomCrop, TarShards, TarSource
from latentae.data.tar import shard_labels
from tests.data.pictures import png_bytes, write_shards, write_tar
from tests.data.test_tar_index import own_cache  # noqa: F401


def values(entries) -> list[int]:
    return [int(entry.load(1, None)[0, 0, 0]) for entry in entries]


def test_every_image_at_its_place(tmp_path):
    source = TarSource(write_shards(tmp_path, [3, 0, 2]))
    assert len(source) == 5
    assert [source.name(index) for index in range(5)] == [
        "train-000.tar/0000.png", "train-000.tar/0001.png", "train-000.tar/0002.png",
        "train-002.tar/0000.png", "train-002.tar/0001.png",
    ]  # fmt: skip
    for index in (4, 0, 3, 2, 1):
        assert source.load(index, 3)[0, 0].tolist() == [index] * 3
    assert pickle.loads(pickle.dumps(source)).load(4, 1)[0, 0, 0] == 4


def test_options_are_passed_on(tmp_path):
    array = tmp_path / "a.npy"
    np.save(array, np.full((2, 2), 30.0))
    path = write_tar(tmp_path / "a.tar", {"0.jpg": png_bytes(1), "0.npy": array.read_bytes()})
    (entry,) = TarShards([path], "npy", (20, 40)).read(0)
    for made in (TarSource([path], "npy", (20, 40)).load(0, 1), entry.load(1, None)):
        assert made.tolist() == [[[0.5]] * 2] * 2


def test_shards_are_read_in_order(tmp_path):
    shards = TarShards(write_shards(tmp_path, [5, 2]))
    assert len(shards) == 2
    assert (shards.count(0), shards.count(1), shards.typical_count()) == (5, 2, 5)
    assert values(shards.read(0)) == [0, 1, 2, 3, 4]
    assert values(shards.read(0, start=1, step=3)) == [1, 4]
    assert [(entry.name, entry.row) for entry in shards.read(1, start=1)] == [("train-001.tar/0001.png", 1)]
    assert list(shards.read(1, start=2)) == []


def test_a_damaged_shard_is_an_image_that_cannot_be_decoded(tmp_path):
    paths = write_shards(tmp_path, [4, 4])
    paths[0].write_bytes(paths[0].read_bytes()[: 2 * 2048 + 900])
    source, shards = TarSource(paths), TarShards(paths)
    assert (len(source), shards.count(0)) == (3 + 4, 3)
    message = r"^train-000\.tar: damaged after 2 image\(s\) \(.+\): fetch it again"
    with pytest.raises(BrokenImageError, match=message):
        source.load(2, 3)
    *sound, last = shards.read(0)
    assert values(sound) == [0, 1]
    with pytest.raises(BrokenImageError, match=message):
        last.load(3, None)
    sample = ImageDataset(source, RandomCrop(4), 3)[0, 2]
    assert sample["broken"].startswith("train-000.tar: damaged")
    assert source.load(3, 1)[0, 0, 0] == 4


def test_broken_members_are_named(tmp_path):
    members = {"0.png": b"", "1.jpg": b"<html>not a picture</html>", "2.png": png_bytes(2)[:50]}
    source = TarSource([write_tar(tmp_path / "a.tar", members)])
    for index, reason in enumerate((r"0\.png: it is empty", r"1\.jpg: not an image", r"2\.png: .*truncated")):
        with pytest.raises(BrokenImageError, match=rf"^a\.tar/{reason}"):
            source.load(index, 3)


def test_a_file_that_disappears(tmp_path):
    (path,) = write_shards(tmp_path, [2])
    source, entries = TarSource([path]), TarShards([path]).read(0)
    next(entries)
    path.unlink()
    for entry in (lambda: source.load(0, 3), lambda: next(entries).load(3, None)):
        with pytest.raises(BrokenImageError, match=r"png: FileNotFoundError: No such file"):
            entry()


def test_nothing_found(tmp_path):
    empty, damaged = write_tar(tmp_path / "a.tar", {"a.txt": b""}), tmp_path / "b.tar"
    damaged.touch()
    with pytest.raises(
        ValueError, match=r"no image in the tar file\(s\) .*a\.tar and 1 more; b\.tar is damaged"
    ):
        TarSource([empty, damaged])
    with pytest.raises(ValueError, match=r"no image called \*\.jpg in .*a\.tar$"):
        TarSource([empty], "jpg")


def test_labels_are_the_same_on_every_machine():
    here = [Path("data/a/0.tar"), Path("data/b/0.tar")]
    there = [Path("/mnt/x/data/a/0.tar"), Path("/mnt/x/data/b/0.tar")]
    assert shard_labels(here) == shard_labels(there) == ["a/0.tar", "b/0.tar"]
    assert shard_labels([Path("/mnt/x/0.tar")]) == ["0.tar"]
