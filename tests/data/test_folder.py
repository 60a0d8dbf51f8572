from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentae.data import BrokenImageError, FolderSource
from latentae.data.folder import split_files, split_subfolders, walk_files
from tests.data.pictures import write_png


def test_lists_images_of_any_case_and_depth_in_order(tmp_path):
    for name in ("b.PNG", "a/z.jpeg", "a/y.JpG", "c.tif", "a/deep/er/x.webp", "A.bmp"):
        write_png(tmp_path / name, 1)
    for name in (".hidden.png", ".cache/x.png", "a/.git/x.png", "notes.txt", "png", "drawing.svg"):
        write_png(tmp_path / name, 1)
    source = FolderSource(tmp_path)
    names = [source.name(index) for index in range(len(source))]
    assert names == ["A.bmp", "a/deep/er/x.webp", "a/y.JpG", "a/z.jpeg", "b.PNG", "c.tif"]


def test_loads_what_the_name_says(tmp_path):
    for value in (30, 10, 20):
        write_png(tmp_path / f"{value}.png", value)
    source = FolderSource(str(tmp_path))
    assert [source.load(index, 1)[0, 0, 0] for index in range(3)] == [10, 20, 30]
    assert source.load(0, 4).shape == (8, 8, 4)


def test_arrays_are_images_too(tmp_path):
    np.save(tmp_path / "b.npy", np.full((5, 7, 9), 3, np.uint8))
    write_png(tmp_path / "a.png", 1)
    source = FolderSource(tmp_path)
    assert [source.name(index) for index in range(2)] == ["a.png", "b.npy"]
    assert source.load(1, 9).shape == (5, 7, 9)
    with pytest.raises(BrokenImageError, match=r"^a\.png: a PNG picture, not of 9 channels"):
        source.load(0, 9)


def test_passes_minimum_side_on(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    source = FolderSource(tmp_path)
    assert source.load(0, 3).shape == (64, 64, 3)
    assert source.load(0, 3, minimum_side=20).shape == (32, 32, 3)


def test_broken_files_are_called_by_their_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/empty.png").touch()
    with pytest.raises(BrokenImageError, match=r"^sub/empty\.png: "):
        FolderSource(tmp_path).load(0, 3)


def test_links_are_followed_and_loops_end(tmp_path):
    write_png(tmp_path / "elsewhere/a.png", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    assert list(walk_files(tmp_path / "data")) == ["linked/a.png"]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for name in ("a.txt", "b.TXT", "c.svg", "readme"):
        (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=r"\.jpg, .*\.png, .*found 2 of \.txt, 1 of \.svg, 1 of no suffix"
    ) as caught:
        FolderSource(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no file at all"):
        FolderSource(tmp_path / "empty")
    with pytest.raises(ValueError, match="gone is not a folder"):
        FolderSource(tmp_path / "gone")


@pytest.mark.parametrize(
    ("subfolders", "splits"),
    [
        (["train", "val"], {"train": "train", "validation": "val"}),
        (["Train", "valid", "test"], {"train": "Train", "validation": "valid", "test": "test"}),
        (["train", "validation", "devkit"], {"train": "train", "validation": "validation"}),
        (["train"], {"train": "train"}),
        (["val", ".cache"], {"validation": "val"}),
        (["bus", "car", "train"], {}),  # classes, one of which is a vehicle
        (["test", "cat"], {}),
        ([], {}),
    ],
)
def test_split_subfolders(tmp_path: Path, subfolders: list[str], splits: dict[str, str]):
    for name in subfolders:
        (tmp_path / name).mkdir()
    assert split_subfolders(tmp_path) == {split: tmp_path / name for split, name in splits.items()}


def test_two_folders_for_one_split_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="both the split 'validation': rename"):
        split_subfolders(tmp_path)


def test_the_value_range_is_passed_on(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 2), 30.0))
    assert FolderSource(tmp_path, (20, 40)).load(0, 1).tolist() == [[[0.5]] * 2] * 2
    with pytest.raises(BrokenImageError, match="set value_range"):
        FolderSource(tmp_path).load(0, 1)


def test_files_of_splits(tmp_path):
    names = ["shards/train-00.tar", "shards/val-00.tar", "test/0.tar", "a.txt", "x.tar"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = split_files(tmp_path, (".tar",))
    assert {split: [path.name for path in paths] for split, paths in found.items()} == {
        "train": ["train-00.tar", "x.tar"],
        "validation": ["val-00.tar"],
        "test": ["0.tar"],
    }
