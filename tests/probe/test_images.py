import shutil

import pytest

from latentae.probe.images import open_images
from latentae.probe.request import ProbeRequest
from tests.probe.conftest import draw_images


def request_of(folder, **changes):
    return ProbeRequest(models=["a"], data=str(folder), out=folder / "out", image_size=32, **changes)


def test_the_validation_split_is_held_out(image_folder):
    images = open_images(request_of(image_folder, reference_images=10), 3)
    assert (len(images.training), len(images.held_out)) == (48, 12)
    assert len(images.reference.indices) == 10
    assert images.reference.prepare(0).shape == (3, 32, 32)


def test_some_are_held_out_where_there_is_no_such_split(tmp_path):
    draw_images(tmp_path / "flat", 60)
    images = open_images(request_of(tmp_path / "flat"), 3)
    names = [
        {source.name(index) for index in range(len(source))} for source in (images.training, images.held_out)
    ]
    assert len(names[0]) + len(names[1]) == 60
    assert names[0].isdisjoint(names[1])


def test_too_few(image_folder):
    with pytest.raises(ValueError, match="48 training images, fewer than a batch of 49"):
        open_images(request_of(image_folder, batch_size=49), 3)


def test_guidance_without_labels(image_folder, tmp_path):
    (tmp_path / "flat").mkdir()
    for number, file in enumerate((image_folder / "train").glob("*/*.png")):
        shutil.copy(file, tmp_path / f"flat/{number}.png")
    open_images(request_of(image_folder, guidance_scale=2.0), 3)
    for request in (
        request_of(tmp_path / "flat", guidance_scale=2.0),
        request_of(image_folder, guidance_scale=2.0, unconditional=True),
    ):
        with pytest.raises(ValueError, match="guidance_scale is 2, but there are no labels to be guided by"):
            open_images(request, 3)
