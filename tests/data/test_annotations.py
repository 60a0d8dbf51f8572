import json

import datasets
import numpy as np
import pytest

from latentae.data import CachedSource, FolderSource, SubsetSource, TableSource, TarSource, take_evenly
from latentae.data.annotations import number_labels, read_annotations
from latentae.data.tar import open_other_members
from tests.data.pictures import ListSource, png_bytes, write_png, write_tar


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


def table_source(kinds, **columns):
    count = len(next(iter(columns.values())))
    rows = {"image": [{"bytes": png_bytes(value), "path": None} for value in range(count)], **columns}
    features = datasets.Features({"image": datasets.Image(), **kinds})
    return TableSource(datasets.Dataset.from_dict(rows, features=features), "train")


def text():
    return datasets.Value("string")


def test_a_class_label_and_a_caption():
    kinds = {"kind": datasets.ClassLabel(names=["cat", "dog"]), "text": text()}
    said = read_annotations(table_source(kinds, kind=[1, 0], text=["a  dog", None]))
    assert (said.labels.tolist(), said.label_names) == ([1, 0], ["cat", "dog"])
    assert [said.captions(index) for index in range(2)] == ["a dog", ""]


def test_numbers_and_words_called_label():
    whole = read_annotations(table_source({"label": datasets.Value("int32")}, label=[7, 2]))
    assert (whole.labels.tolist(), whole.label_names) == ([7, 2], None)
    words = read_annotations(table_source({"label": text()}, label=["b", "a"]))
    assert (words.labels.tolist(), words.label_names) == ([1, 0], ["a", "b"])


def test_of_several_captions_the_first():
    said = read_annotations(
        table_source({"captions": datasets.Sequence(text())}, captions=[["one", "two"], []])
    )
    assert [said.captions(index) for index in range(2)] == ["one", ""]


def test_columns_can_be_named():
    kinds = {"label": datasets.Value("int64"), "breed": text(), "said": text()}
    data = table_source(kinds, label=[0, 1], breed=["pug", "lab"], said=["x", "y"])
    said = read_annotations(data, label_column="breed", caption_column="said")
    assert (said.labels.tolist(), said.label_names, said.captions(1)) == ([1, 0], ["lab", "pug"], "y")
    with pytest.raises(
        ValueError, match="label_column 'race' is not there; columns: image, label, breed, said"
    ):
        read_annotations(data, label_column="race")


def test_no_labels_and_secret_ones():
    assert read_annotations(table_source({"other": datasets.Value("float32")}, other=[0.5])).labels is None
    secret = table_source({"label": datasets.ClassLabel(names=["a", "b"])}, label=[-1, -1])
    assert (read_annotations(secret).labels, read_annotations(secret).label_names) == (None, None)


def tar_source(root, *samples):
    """A tar file for each list of samples, which give a member's bytes by its extension."""
    paths = []
    for number, group in enumerate(samples):
        members = {}
        for row, others in enumerate(group):
            members |= {f"./{row}.{name}": data for name, data in others.items()}
            members[f"./{row}.png"] = png_bytes(row)
        paths.append(write_tar(root / f"{number}.tar", members))
    return TarSource(paths)


def test_members_called_like_the_image(tmp_path):
    said = read_annotations(
        tar_source(tmp_path, [{"cls": b"3\n", "txt": b"a\nb"}, {"cls": b"0"}], [{"cls": b"1"}])
    )
    assert (said.labels.tolist(), said.label_names) == ([3, 0, 1], None)
    assert [said.captions(index) for index in range(3)] == ["a b", "", ""]


def test_fields_of_a_json(tmp_path):
    rows = [{"json": json.dumps({"label": word, "caption": f"a {word}"}).encode()} for word in ("dog", "cat")]
    said = read_annotations(tar_source(tmp_path, rows))
    assert (said.labels.tolist(), said.label_names) == ([1, 0], ["cat", "dog"])
    assert said.captions(0) == "a dog"


def test_what_is_asked_for(tmp_path):
    data = tar_source(tmp_path, [{"fine.cls": b"8", "cls": b"1", "json": b'{"alt": "hello"}'}])
    said = read_annotations(data, label_column="fine.cls", caption_column="alt")
    assert (said.labels.tolist(), said.captions(0)) == ([8], "hello")
    with pytest.raises(ValueError, match=r"caption_column 'no': no sample has a member \.no, nor that key"):
        read_annotations(data, caption_column="no")


def test_nothing_and_only_captions(tmp_path):
    said = read_annotations(tar_source(tmp_path / "a", [{}, {}]))
    assert (said.labels, said.captions) == (None, None)
    said = read_annotations(tar_source(tmp_path / "b", [{"txt": b"x"}]))
    assert (said.labels, said.captions(0)) == (None, "x")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"0\.tar/1\.png has no label"):
        read_annotations(tar_source(tmp_path / "a", [{"cls": b"1"}, {}]))
    with pytest.raises(ValueError, match=r"the \.json beside 0\.tar/0\.png cannot be read"):
        read_annotations(tar_source(tmp_path / "b", [{"json": b"{"}]))


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path):
    path = tar_source(tmp_path, [{"cls": b"1"}, {"cls": b"2"}]).indexes[0].path
    path.write_bytes(path.read_bytes()[: 5 * 512] + b"damaged" * 100)
    data = TarSource([path])
    assert open_other_members(path).all_names() == ["0.cls", "1.cls"]
    assert read_annotations(data).labels[0] == 1
