from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentae.data import BrokenImageError, FolderSource
from latentae.data.folder import (
    divide_folder,
    open_images,
    split_files,
    split_subfolders,
    visible_subfolders,
    walk_files,
)
from latentae.data.locate import locate
from latentae.data.names import expand_pattern
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
    assert split_subfolders(visible_subfolders(tmp_path)) == {
        split: tmp_path / name for split, name in splits.items()
    }


def test_two_folders_for_one_split_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="both the split 'validation': rename"):
        split_subfolders(visible_subfolders(tmp_path))


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


def picture_names(source: FolderSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


@pytest.mark.parametrize(
    ("subfolders", "splits"),
    [
        (["train2017", "val2017"], {"train": "train2017", "validation": "val2017"}),
        (["DIV2K_train_HR", "DIV2K_valid_HR"], {"train": "DIV2K_train_HR", "validation": "DIV2K_valid_HR"}),
        (["training", "validation"], {"train": "training", "validation": "validation"}),
        (["train", "eval"], {"train": "train", "test": "eval"}),
        (["train", "dev"], {"train": "train", "validation": "dev"}),
        (["train2017", "val2017", "unlabeled2017"], {"train": "train2017", "validation": "val2017"}),
        (["Training", "testing", "cat"], {"train": "Training", "test": "testing"}),
        (["TrainImages", "ValImages", "cat"], {"train": "TrainImages", "validation": "ValImages"}),
        (["trainA", "testA"], {"train": "trainA", "test": "testA"}),
        (["VOCtrainval", "VOCtest"], {"train": "VOCtrainval", "test": "VOCtest"}),
        (["train", "holdout"], {"train": "train", "validation": "holdout"}),
        (["train_station", "test tube", "cat"], {}),  # classes: these are not called alike
        (["train2014", "train2017"], {}),  # one split in two folders
    ],
)
def test_folders_follow_the_words_in_their_names(tmp_path, subfolders, splits):
    for name in subfolders:
        write_png(tmp_path / name / "a.png", 1)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.json").touch()
    assert split_subfolders(visible_subfolders(tmp_path)) == {
        split: tmp_path / name for split, name in splits.items()
    }


@pytest.mark.parametrize(
    "names", [("train2014", "val2014", "train2017", "val2017"), ("trainA", "trainB", "testA", "testB")]
)
def test_several_folders_that_mean_one_split_are_refused(names, tmp_path):
    for name in names:
        write_png(tmp_path / name / "a.png", 1)
    with pytest.raises(ValueError, match="both the split 'train': rename") as caught:
        split_subfolders(visible_subfolders(tmp_path))
    # The remedy is a name that works.
    pattern = str(caught.value).split("'")[-2].replace("jpg", "png")
    assert [path.name for path in expand_pattern(pattern)] == ["a.png", "a.png"]


def test_point_clouds_are_no_images(tmp_path):
    write_png(tmp_path / "a.png", 1)
    (tmp_path / "a.pcd").write_bytes(b"# .PCD v.7 - Point Cloud Data")
    source = FolderSource(tmp_path)
    assert picture_names(source) == ["a.png"]
    assert source.left_out == {".pcd": 1}


def test_a_division_further_down_counts(tmp_path):
    for name in ("images/train2017", "images/val2017", "cats/train", "cats/val", "extra/deep", "cats/masks"):
        write_png(tmp_path / name / "a.png", 1)
    for name in ("labels/train2017", "labels/val2017"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").touch()
    division = divide_folder(tmp_path)
    assert division.folders == {
        "train": [tmp_path / name for name in ("cats/train", "images/train2017", "extra")],
        "validation": [tmp_path / name for name in ("cats/val", "images/val2017")],
    }
    assert division.unused == [tmp_path / "cats/masks"]
    source = open_images(division.folders["train"])
    assert picture_names(source) == ["cats/train/a.png", "extra/deep/a.png", "images/train2017/a.png"]


def test_a_folder_called_after_a_split_that_divides_nothing_is_told(tmp_path):
    for name in ("pictures", "val2017"):
        write_png(tmp_path / name / "a.png", 1)
    division = divide_folder(tmp_path)
    assert division.folders == {"train": [tmp_path]}
    assert division.undivided == [tmp_path / "val2017"]


def test_every_suffix_of_a_readable_format_counts_and_others_are_counted(tmp_path):
    for name in ("a.jpg", "b.JFIF", "c.jpe", "d.png", "e.svg", "f.svg", "g.tar.gz", "h"):
        write_png(tmp_path / name, 1)
    source = FolderSource(tmp_path)
    assert picture_names(source) == ["a.jpg", "b.JFIF", "c.jpe", "d.png"]
    assert source.left_out == {".svg": 2, ".tar.gz": 1, "no suffix": 1}
    assert "4 files (1 .jpg, 1 .jfif, 1 .jpe, 1 .png); left out 4 files (2 .svg, " in source.describe()


def test_arrays_called_like_a_picture_are_features_of_it(tmp_path):
    write_png(tmp_path / "images/a.png", 1)
    np.save(tmp_path / "images/a.npy", np.zeros(768, np.float32))
    np.save(tmp_path / "images/b.npy", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features/a.npy", np.zeros(768, np.float32))
    source = FolderSource(tmp_path)
    assert picture_names(source) == ["images/a.png", "images/b.npy"]
    assert source.left_out == {".npy": 2}
    named = FolderSource(tmp_path, parts=["images/a.npy", "images/a.png"])
    assert picture_names(named) == ["images/a.npy", "images/a.png"]


@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "seed: 0\noutput_dir: x\n", "samples/step_000003.png": ""},
        {"config.yaml": "output_dir: x\n", "checkpoints/step_000003/samples.png": ""},
        {"results.json": "{}", "report.html": "", "pictures/0.png": ""},
        {"results.json": "{}", "probe.html": "", "samples.png": ""},
        {"inspect.json": "{}", "inspect.html": "", "spectrum.png": ""},
    ],
)
def test_what_our_own_commands_wrote_is_no_image(tmp_path, files):
    write_png(tmp_path / "a.png", 1)
    for name, text in files.items():
        (tmp_path / "deep/out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "deep/out" / name).write_text(text)
    source = FolderSource(tmp_path)
    assert picture_names(source) == ["a.png"]
    assert source.outputs == ["deep/out"]
    assert "with the output of latentae: deep/out" in source.describe()
    with pytest.raises(ValueError, match="holds the output of latentae"):
        locate(str(tmp_path / "deep/out"))


def test_other_programs_may_write_a_config_beside_samples(tmp_path):
    write_png(tmp_path / "set/samples/a.png", 1)
    (tmp_path / "set/config.yaml").write_text("name: set\n")
    assert picture_names(FolderSource(tmp_path)) == ["set/samples/a.png"]
