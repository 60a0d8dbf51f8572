import gzip
import os
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from latentae.data import BrokenImageError, ImageDataset, RandomCrop, TarShards, TarSource, tar
from latentae.data.names import shard_labels
from latentae.data.tar import choose_images, open_other_members, open_tar, scan_tar
from tests.data.pictures import entry_values, png_bytes, write_shards, write_tar


def test_places_of_images(tmp_path):
    members = {"./a/0.png": b"first", "a/0.txt": b"text", "a/ä.JPG": b"", f"{'long' * 60}.npy": b"x" * 700}
    path = write_tar(tmp_path / "a.tar", members | {".hidden.png": b"h", "a/._0.png": b"mac"})
    index, _ = scan_tar(path)
    assert index.all_names() == ["a/0.png", "a/ä.JPG", f"{'long' * 60}.npy"]
    assert [index.read(position) for position in range(3)] == [b"first", b"", b"x" * 700]
    assert index.damage == ""
    few = index.select([2, 0])
    assert few.all_names() == [f"{'long' * 60}.npy", "a/0.png"]
    assert few.read(1) == b"first"


def test_links_and_folders_are_no_images(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("x.png", tarfile.DIRTYPE), ("y.png", tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname = "z.png"
            archive.addfile(entry)
    assert scan_tar(path)[0].all_names() == []


def test_one_image_of_each_sample():
    members = ["1.depth.png", "1.jpg", "1.png", "a/1.jpg", "b.2021.jpg", "b.2022.jpg", "c.seg.png"]
    assert [members[position] for position in choose_images(members)] == [
        "1.jpg", "a/1.jpg", "b.2021.jpg", "b.2022.jpg", "c.seg.png",
    ]  # fmt: skip
    assert [members[position] for position in choose_images(members, "PNG")] == ["1.png"]
    assert choose_images(members, "depth.png") == [0]
    assert choose_images([]) == []


def test_a_cut_file_is_read_as_far_as_it_goes(tmp_path):
    members = {f"{number}.png": bytes([number]) * 700 for number in range(5)}
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    cut = tmp_path / "cut.tar"
    for length in range(0, 5 * 3 * 512, 100):
        cut.write_bytes(whole[:length])
        index, _ = scan_tar(cut)
        complete = max(0, (length - 512 - 700) // 1536 + 1)
        assert len(index) == complete
        assert [index.read(position) for position in range(complete)] == list(members.values())[:complete]
        # At a border between members nothing shows that there was more.
        assert bool(index.damage) == (length % 1536 != 0 or length == 0)


def test_random_damage_is_noticed(tmp_path):
    whole = write_tar(tmp_path / "a.tar", {f"{n}.png": b"x" * 10 for n in range(20)}).read_bytes()
    path, rng = tmp_path / "b.tar", random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        header = rng.randrange(20) * 1024
        data[header + rng.randrange(148)] ^= 1 + rng.randrange(255)  # before the checksum, and counted by it
        path.write_bytes(data)
        index, _ = scan_tar(path)
        assert len(index) == header // 1024
        assert index.damage


def test_no_tar_file_at_all(tmp_path):
    for data in (b"", b"no tar", bytes(10), png_bytes(1)):
        (tmp_path / "a.tar").write_bytes(data)
        index = open_tar(tmp_path / "a.tar")
        assert (len(index), bool(index.damage)) == (0, True)
    with pytest.raises(BrokenImageError, match=r"gone\.tar: FileNotFoundError: No such file"):
        open_tar(tmp_path / "gone.tar")


def test_the_index_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    scanned = []
    monkeypatch.setattr(tar, "scan_tar", lambda path: scanned.append(path) or scan_tar(path))
    path = write_tar(tmp_path / "a.tar", {"0.png": b"0", "1.jpg": b"1", "1.png": b"2"})
    for extension, expected in ((None, [b"0", b"1"]), ("png", [b"0", b"2"]), (None, [b"0", b"1"])):
        index = open_tar(path, extension)
        assert [index.read(position) for position in range(len(index))] == expected
    assert len(scanned) == 1
    write_tar(path, {"5.png": b"5"})
    os.utime(path, (1, 1))
    assert open_tar(path).all_names() == ["5.png"]
    assert len(scanned) == 2


def test_a_damaged_index_is_made_anew(tmp_path, caches):
    path = write_tar(tmp_path / "a.tar", {"0.png": b"0"})
    open_tar(path)
    (stored,) = (caches / "latentae/shards").iterdir()
    for data in (b"", stored.read_bytes()[:100]):
        stored.write_bytes(data)
        assert open_tar(path).all_names() == ["0.png"]
    damaged = write_tar(tmp_path / "b.tar", {"0.png": b"0"}).read_bytes()[:-10000] + b"x" * 600
    (tmp_path / "b.tar").write_bytes(damaged)
    assert open_tar(tmp_path / "b.tar").damage == open_tar(tmp_path / "b.tar").damage != ""


def test_offsets_are_64_bits(tmp_path):
    index, _ = scan_tar(write_tar(tmp_path / "a.tar", {"0.png": b"0"}))
    assert (index.offsets.dtype, index.sizes.dtype, index.ends.dtype) == (np.int64,) * 3


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "file"))
    path = write_tar(tmp_path / "a.tar", {"a.png": png_bytes(1)})
    with pytest.warns(UserWarning, match=r"cache .*file/shards cannot be written .*set LATENTAE_CACHE"):
        assert open_tar(path).all_names() == ["a.png"]


def test_a_compressed_file_called_tar_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.png": png_bytes(1)})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(BrokenImageError, match=r"a\.tar is compressed, .* gunzip"):
        open_tar(path)


def test_a_picture_is_taken_rather_than_the_features_beside_it():
    assert choose_images(["0.npy", "0.png", "1.npy", "2.jpg", "2.npy"]) == [1, 2, 3]
    assert choose_images(["0.npy", "0.png"], "npy") == [0]


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
    assert entry_values(shards.read(0)) == [0, 1, 2, 3, 4]
    assert entry_values(shards.read(0, start=1, step=3)) == [1, 4]
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
    assert entry_values(sound) == [0, 1]
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


def test_one_scan_finds_the_images_and_what_is_beside_them(tmp_path, monkeypatch):
    members = {"./a/0.txt": b"text", "a/0.png": b"0", "a/0.bin": bytes(2**20 + 1), ".b.png": b"hidden"}
    path = write_tar(tmp_path / "a.tar", members)
    assert open_tar(path).all_names() == ["a/0.png"]
    monkeypatch.setattr(tar, "scan_tar", None)  # from here on the cached index says it all
    others = open_other_members(path)
    assert others.all_names() == ["a/0.txt", ".b.png"]
    assert [others.read(position) for position in range(2)] == [b"text", b"hidden"]


def test_an_index_of_an_earlier_version_is_read_and_extended(tmp_path, caches):
    path = write_tar(tmp_path / "a.tar", {"0.txt": b"text", "0.png": b"0"})
    open_tar(path)
    (stored,) = (caches / "latentae/shards").iterdir()
    arrays = dict(np.load(stored))
    earlier = {key: arrays[key] for key in ("offsets", "sizes", "names", "ends", "damage")}
    np.savez(stored, **earlier | {"names": np.frombuffer(b"9.png", np.uint8)})
    assert open_tar(path).all_names() == ["9.png"]  # read, not made again
    assert open_other_members(path).all_names() == ["0.txt"]
    assert sorted(np.load(stored)) == sorted(arrays)
