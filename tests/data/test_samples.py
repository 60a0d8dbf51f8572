from functools import partial

import numpy as np
import pytest

from latentae.data import BrokenImageError, RandomCrop
from latentae.data import samples as module
from latentae.data.samples import EncodedImage, make_sample
from tests.data.pictures import ListSource

SOURCE = ListSource(5, broken=(1, 2))


def candidates(*indices: int) -> list[EncodedImage]:
    return [EncodedImage(SOURCE.name(index), partial(SOURCE.load, index)) for index in indices]


def sample(*indices: int):
    rng = np.random.default_rng(0)
    return make_sample(
        candidates(*indices), RandomCrop(4), rng, channels=3, minimum_side=None, index=indices[0]
    )


def test_the_first_that_can_be_decoded():
    made = sample(1, 2, 4, 3)
    assert made["images"][2].add(1).mul(127.5).round().mean() == 4
    assert (made["index"], made["name"]) == (1, "picture4")
    assert made["broken"] == "picture1: it is broken\npicture2: it is broken"
    assert sample(3)["broken"] == ""


def test_none_can_be_decoded():
    with pytest.raises(
        BrokenImageError, match="2 images in a row cannot be decoded, the first being picture1"
    ):
        sample(1, 2)


def test_what_is_decoded_is_announced_before(monkeypatch):
    said = []
    monkeypatch.setattr(module, "announce", said.append)
    sample(1, 4, 3)
    assert said == ["picture1", "picture4"]
