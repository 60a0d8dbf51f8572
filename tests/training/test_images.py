from pathlib import Path

from latentae.training.images import open_images


def test_images_to_train_on_to_measure_on_and_to_show(tiny):
    said = []
    images = open_images(tiny(), gather=lambda names: names, say=said.append)
    size = images.training[0, 0]["images"].shape[-1]
    assert images.preview.shape == (min(8, len(images.validation)), 3, size, size)
    assert said == []


def test_broken_images_are_said(tiny):
    config = tiny()
    broken = next(Path(config.data.name).rglob("*.png"))
    broken.write_bytes(b"")
    said = []
    images = open_images(config, gather=lambda names: names, say=said.append)
    assert len(said) == 1
    assert broken.name in said[0]
    assert images.broken.known
