import pytest

from latentae.latents.cache.request import DataRequest
from tests.data.pictures import ListSource


def test_images_by_name_with_their_labels(classes):
    request = DataRequest(classes, limit=4)
    source, annotations = request.open()
    assert [source.name(index).split("/")[0] for index in range(4)] == ["cat", "cat", "dog", "dog"]
    assert annotations.labels.tolist() == [0, 0, 1, 1]
    assert annotations.label_names == ["cat", "dog"]
    assert annotations.captions(0) == "a cat on a mat"
    assert request.name == f"{classes} (train)"


def test_labels_can_be_left_out(classes):
    _, annotations = DataRequest(str(classes), annotations=False).open()
    assert (annotations.labels, annotations.captions) == (None, None)


def test_columns_beside_the_images_are_named_unless_wanted(classes):
    (classes / "metadata.csv").write_text("file_name,text\n")
    for path in classes.glob("*/*.png"):
        with (classes / "metadata.csv").open("a") as file:
            file.write(f"{path.relative_to(classes).as_posix()},a {path.parent.name}\n")
    for limit in (None, 4):
        request = DataRequest(classes, limit=limit)
        assert "metadata.csv: the column(s) text are not" in request.unread(request.open()[0])
    for changes in ({"caption_column": "text"}, {"annotations": False}):
        request = DataRequest(classes, **changes)
        assert request.unread(request.open()[0]) is None
    wanted = DataRequest(classes, caption_column="text").open()[1]
    assert (wanted.captions(0), wanted.captions(9)) == ("a cat", "a dog")
    source = request.open()[0]
    assert DataRequest(source).unread(source) is None  # whoever opened it knows what is beside it


def test_images_of_ones_own():
    request = DataRequest(ListSource(3))
    assert len(request.open()[0]) == 3
    assert request.name == "a ListSource"
    with pytest.raises(ValueError, match="the source has no images"):
        DataRequest(ListSource(0)).open()
