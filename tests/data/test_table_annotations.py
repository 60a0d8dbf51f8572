import datasets
import pytest

from latentae.data import TableSource
from latentae.data.annotations import read_annotations
from tests.data.pictures import png_bytes


def source(kinds, **columns):
    count = len(next(iter(columns.values())))
    rows = {"image": [{"bytes": png_bytes(value), "path": None} for value in range(count)], **columns}
    features = datasets.Features({"image": datasets.Image(), **kinds})
    return TableSource(datasets.Dataset.from_dict(rows, features=features), "train")


def text():
    return datasets.Value("string")


def test_a_class_label_and_a_caption():
    kinds = {"kind": datasets.ClassLabel(names=["cat", "dog"]), "text": text()}
    said = read_annotations(source(kinds, kind=[1, 0], text=["a  dog", None]))
    assert (said.labels.tolist(), said.label_names) == ([1, 0], ["cat", "dog"])
    assert [said.captions(index) for index in range(2)] == ["a dog", ""]


def test_numbers_and_words_called_label():
    whole = read_annotations(source({"label": datasets.Value("int32")}, label=[7, 2]))
    assert (whole.labels.tolist(), whole.label_names) == ([7, 2], None)
    words = read_annotations(source({"label": text()}, label=["b", "a"]))
    assert (words.labels.tolist(), words.label_names) == ([1, 0], ["a", "b"])


def test_of_several_captions_the_first():
    said = read_annotations(source({"captions": datasets.Sequence(text())}, captions=[["one", "two"], []]))
    assert [said.captions(index) for index in range(2)] == ["one", ""]


def test_columns_can_be_named():
    kinds = {"label": datasets.Value("int64"), "breed": text(), "said": text()}
    data = source(kinds, label=[0, 1], breed=["pug", "lab"], said=["x", "y"])
    said = read_annotations(data, label_column="breed", caption_column="said")
    assert (said.labels.tolist(), said.label_names, said.captions(1)) == ([1, 0], ["lab", "pug"], "y")
    with pytest.raises(
        ValueError, match="label_column 'race' is not there; columns: image, label, breed, said"
    ):
        read_annotations(data, label_column="race")


def test_no_labels_and_secret_ones():
    assert read_annotations(source({"other": datasets.Value("float32")}, other=[0.5])).labels is None
    secret = source({"label": datasets.ClassLabel(names=["a", "b"])}, label=[-1, -1])
    assert (read_annotations(secret).labels, read_annotations(secret).label_names) == (None, None)
