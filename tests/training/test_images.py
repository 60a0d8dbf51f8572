from pathlib import Path

from latentae.training.folder import RunFolder
from latentae.training.images import open_images
from tests.data.pictures import write_shards


def test_images_to_train_on_to_measure_on_and_to_show(tiny):
    said = []
    images = open_images(tiny(), gather=lambda names: names, say=said.append)
    size = images.training[0, 0]["images"].shape[-1]
    assert images.preview.shape == (min(8, len(images.validation)), 3, size, size)
    (memory,) = said
    assert "data.cache_megabytes=1024" in memory


def test_broken_images_are_said(tiny):
    config = tiny()
    broken = next(Path(config.data.name).rglob("*.png"))
    broken.write_bytes(b"")
    said = []
    images = open_images(config, gather=lambda names: names, say=said.append)
    assert broken.name in said[0]
    assert images.broken.known


def test_what_the_start_line_says_of_them(tiny):
    config = tiny()
    images = open_images(config, gather=lambda names: names, say=str)
    assert (
        images.describe()
        == f"{len(images.training)} training images, {len(images.validation)} validation images"
    )
    names = {images.training.name(index) for index in range(len(images.training))}
    (Path(config.data.name) / sorted(names)[0]).write_bytes(b"")
    images = open_images(config, gather=lambda names: names, say=str)
    assert images.describe().startswith(f"{len(names)} training images (1 or more unreadable), ")


def test_a_stream(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "shards", [6, 6])
    config = tiny(f"data.name={tmp_path}/shards", "data.streaming=true", "data.holdout=0.5")
    images = open_images(config, gather=lambda names: names, say=str)
    assert images.describe() == "2 shards of training images, 6 validation images"
    assert not RunFolder(Path(config.output_dir)).root.exists()
