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


def test_images_of_ones_own():
    request = DataRequest(ListSource(3))
    assert len(request.open()[0]) == 3
    assert request.name == "a ListSource"
    with pytest.raises(ValueError, match="the source has no images"):
        DataRequest(ListSource(0)).open()
