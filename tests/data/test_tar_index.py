import gzip
import os
import random
import tarfile

import numpy as np
import pytest

from latentae.data import BrokenImageError, tar_index
from latentae.data.tar_index import choose_images, open_tar, scan_tar
from tests.data.pictures import png_bytes, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))


def names(index) -> list[str]:
    return [index.name(position) for position in range(len(index))]


def test_places_of_images(tmp_path):
    members = {"./a/0.png": b"first", "a/0.txt": b"text", "a/ä.JPG": b"", f"{'long' * 60}.npy": b"x" * 700}
    path = write_tar(tmp_path / "a.tar", members | {".hidden.png": b"h", "a/._0.png": b"mac"})
    index = scan_tar(path)
    assert names(index) == ["a/0.png", "a/ä.JPG", f"{'long' * 60}.npy"]
    assert [index.read(position) for position in range(3)] == [b"first", b"", b"x" * 700]
    assert index.damage == ""
    few = index.select([2, 0])
    assert names(few) == [f"{'long' * 60}.npy", "a/0.png"]
    assert few.read(1) == b"first"


def test_links_and_folders_are_no_images(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("x.png", tarfile.DIRTYPE), ("y.png", tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname = "z.png"
            archive.addfile(entry)
    assert names(scan_tar(path)) == []


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
        index = scan_tar(cut)
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
        index = scan_tar(path)
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
    monkeypatch.setattr(tar_index, "scan_tar", lambda path: scanned.append(path) or scan_tar(path))
    path = write_tar(tmp_path / "a.tar", {"0.png": b"0", "1.jpg": b"1", "1.png": b"2"})
    for extension, expected in ((None, [b"0", b"1"]), ("png", [b"0", b"2"]), (None, [b"0", b"1"])):
        index = open_tar(path, extension)
        assert [index.read(position) for position in range(len(index))] == expected
    assert len(scanned) == 1
    write_tar(path, {"5.png": b"5"})
    os.utime(path, (1, 1))
    assert names(open_tar(path)) == ["5.png"]
    assert len(scanned) == 2


def test_a_damaged_index_is_made_anew(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": b"0"})
    open_tar(path)
    (stored,) = (tmp_path / "cache/shards").iterdir()
    for data in (b"", stored.read_bytes()[:100]):
        stored.write_bytes(data)
        assert names(open_tar(path)) == ["0.png"]
    damaged = write_tar(tmp_path / "b.tar", {"0.png": b"0"}).read_bytes()[:-10000] + b"x" * 600
    (tmp_path / "b.tar").write_bytes(damaged)
    assert open_tar(tmp_path / "b.tar").damage == open_tar(tmp_path / "b.tar").damage != ""


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "file"))
    assert names(open_tar(write_tar(tmp_path / "a.tar", {"0.png": b"0"}))) == ["0.png"]


def test_offsets_are_64_bits(tmp_path):
    index = scan_tar(write_tar(tmp_path / "a.tar", {"0.png": b"0"}))
    assert (index.offsets.dtype, index.sizes.dtype, index.ends.dtype) == (np.int64,) * 3


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "file"))
    path = write_tar(tmp_path / "a.tar", {"a.png": png_bytes(1)})
    with pytest.warns(UserWarning, match=r"cache .*file/shards cannot be written .*set LATENTAE_CACHE"):
        assert names(open_tar(path)) == ["a.png"]


def test_a_compressed_file_called_tar_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.png": png_bytes(1)})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(BrokenImageError, match=r"a\.tar is compressed, .* gunzip"):
        open_tar(path)


def test_a_picture_is_taken_rather_than_the_features_beside_it():
    assert choose_images(["0.npy", "0.png", "1.npy", "2.jpg", "2.npy"]) == [1, 2, 3]
    assert choose_images(["0.npy", "0.png"], "npy") == [0]
