import numpy as np
import pytest

from latentae.data import CachedSource, FolderSource, SubsetSource, take_evenly
from latentae.data.annotations import number_labels, read_annotations
from tests.data.pictures import ListSource, write_png


def folder(root, *names):
    for name in names:
        write_png(root / name, 5)
    return FolderSource(root)


def test_subfolders_are_classes_in_alphabetic_order(tmp_path):
    source = folder(tmp_path, "b/1.png", "a/x/1.png", "b/2.png", "c/1.png")
    said = read_annotations(source)
    assert said.labels.tolist() == [0, 1, 1, 2]
    assert said.label_names == ["a", "b", "c"]
    assert said.captions is None


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("a/1.png", "2.png"), ("a/1.png", "a/2.png")])
def test_no_classes(names, tmp_path):
    said = read_annotations(folder(tmp_path, *names))
    assert (said.labels, said.label_names) == (None, None)


def test_a_text_beside_an_image_is_its_caption(tmp_path):
    source = folder(tmp_path, "1.png", "2.png")
    (tmp_path / "2.txt").write_text(" two\n words ")
    said = read_annotations(source)
    assert [said.captions(index) for index in range(2)] == ["", "two words"]


def test_a_column_of_a_metadata_file_goes_before_text_files(tmp_path):
    source = folder(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a/1.txt").write_text("beside")
    (tmp_path / "metadata.csv").write_text("file_name,said\na/1.png,one\nb/1.png,two\n")
    said = read_annotations(SubsetSource(source, np.array([1, 0])), caption_column="said")
    assert [said.captions(index) for index in range(2)] == ["two", "one"]
    assert (said.labels.tolist(), said.label_names) == ([1, 0], ["a", "b"])
    assert read_annotations(source).captions(0) == "beside"


def test_a_part_keeps_the_numbers_of_the_whole(tmp_path):
    source = CachedSource(folder(tmp_path, "a/1.png", "b/1.png", "c/1.png", "c/2.png"))
    (tmp_path / "c/1.txt").write_text("c one")
    said = read_annotations(SubsetSource(source, np.array([3, 2])))
    assert said.labels.tolist() == [2, 2]
    assert said.label_names == ["a", "b", "c"]
    assert said.captions(1) == "c one"
    assert read_annotations(take_evenly(source, 2)).labels.tolist() == [0, 2]


def test_a_source_of_ones_own_says_nothing():
    assert read_annotations(ListSource(2)).labels is None
    with pytest.raises(ValueError, match="label_column='a' is for tables and tar files"):
        read_annotations(ListSource(2), label_column="a")
    with pytest.raises(ValueError, match="caption_column='a' is for tables, tar files and folders of images"):
        read_annotations(ListSource(2), caption_column="a")


def test_words_are_numbered_and_digits_are_numbers():
    labels, names = number_labels(["dog", "cat", "dog"], str)
    assert (labels.tolist(), names) == ([1, 0, 1], ["cat", "dog"])
    assert number_labels(["3", " 10\n"], str)[0].tolist() == [3, 10]
    assert number_labels([2, np.int64(0)], str)[0].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0, None], "image 1 has no label: give each image one"),
        ([0, -1], "image 1 has the label -1, and labels begin at 0"),
        ([0.5], "image 0 has the label 0.5, neither a whole number nor a word"),
    ],
)
def test_labels_that_are_none(values, says):
    with pytest.raises(ValueError, match=says):
        number_labels(values, lambda index: f"image {index}")
