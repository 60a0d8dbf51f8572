import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentae.data import (
    CachedSource,
    CenterCrop,
    FolderSource,
    ImageDataset,
    ImageStream,
    TarShards,
    take_evenly,
    validation_photos,
)
from latentae.training.images import (
    BrokenImages,
    TooManyBrokenImagesError,
    data_difference,
    load_whole_images,
    open_images,
    record_data,
)
from latentae.training.run_folder import RunFolder
from tests.data.pictures import shows_green, write_cutout, write_shards, write_tar
from tests.training.conftest import draw_images


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


def test_whole_images_are_the_photographs_that_windows_were_cut_from():
    windows = ImageDataset(CachedSource(take_evenly(validation_photos(), 5)), CenterCrop(64), channels=3)
    china, chelsea = load_whole_images(windows)
    assert (china.shape, chelsea.shape) == ((3, 342, 512), (3, 300, 451))
    unchanged = validation_photos().whole.load(1, 3)
    assert torch.equal(((chelsea + 1) * 127.5).round().byte().permute(1, 2, 0), torch.tensor(unchanged))
    assert china[:, :20].mean() > china[:, -20:].mean() + 0.5  # a bright sky above dark trees


def test_two_whole_images_of_a_folder_and_none_that_is_broken(tmp_path):
    draw_images(tmp_path, count=4, size=48)
    dataset = ImageDataset(FolderSource(tmp_path), CenterCrop(32), channels=3)
    shown = load_whole_images(dataset)
    assert [image.shape for image in shown] == [(3, 48, 48)] * 2
    for image, index in zip(shown, (0, 2), strict=True):
        pixels = torch.tensor(dataset.source.load(index, 3))
        assert torch.equal(((image + 1) * 127.5).round().byte().permute(1, 2, 0), pixels)
    (tmp_path / "002.png").write_bytes(b"")
    assert len(load_whole_images(dataset)) == 1
    only = ImageDataset(take_evenly(dataset.source, 1), CenterCrop(32), channels=3)
    assert len(load_whole_images(only)) == 1


def test_whole_arrays_shrink_by_their_alpha(tmp_path):
    write_cutout(tmp_path / "a.npy", side=700)
    dataset = ImageDataset(FolderSource(tmp_path), CenterCrop(32), channels=4)
    (image,) = load_whole_images(dataset, alpha=True)
    assert image.shape == (4, 512, 512)
    assert not shows_green(image)


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


def test_each_is_reported_once():
    broken = BrokenImages(limit=10, gather=list)
    assert broken.report() is None
    broken.add(["b.png: truncated", "", "a.png: empty"])
    assert broken.report() == "2 images cannot be read and are skipped:\n  a.png: empty\n  b.png: truncated"
    broken.add(["a.png: empty"])
    assert broken.report() is None


def test_those_of_other_ranks_count():
    broken = BrokenImages(limit=1, gather=lambda own: [*own, "from another rank"])
    broken.add(["mine"])
    with pytest.raises(TooManyBrokenImagesError, match=r"2 images .* data\.max_broken is 1"):
        broken.report()


def test_a_long_list_is_cut():
    broken = BrokenImages(limit=100, gather=list)
    broken.add([f"{number:02d}.png: empty" for number in range(12)])
    assert broken.report().endswith("04.png: empty\n  and 7 more")


def dataset(folder, count=100):
    return ImageDataset(take_evenly(FolderSource(folder), count), CenterCrop(32), channels=3)


@pytest.fixture
def record(tmp_path):
    draw_images(tmp_path / "a", 20)
    return json.loads(json.dumps(record_data(dataset(tmp_path / "a"), dataset(tmp_path / "a", 5))))


def test_the_same_images_elsewhere(tmp_path, record):
    assert [record[part]["images"] for part in ("training", "validation")] == [20, 5]
    draw_images(tmp_path / "b", 20)
    assert data_difference(record, record_data(dataset(tmp_path / "b"), dataset(tmp_path / "b", 5))) is None


def test_more_other_and_renamed_images(tmp_path, record):
    def difference(count=5):
        return data_difference(record, record_data(dataset(tmp_path / "a"), dataset(tmp_path / "a", count)))

    assert difference(6) == "validation had 5 images, and has 6 now"
    first = tmp_path / "a/000.png"
    pixels = np.asarray(Image.open(first))
    Image.fromarray(255 - pixels).save(first)
    assert difference() == "the training image 000.png is another one"
    first.write_bytes(b"broken")
    assert difference() is None  # it may be the same once it is repaired
    first.rename(tmp_path / "a/zzz.png")
    assert difference() == "the training images have other names, or another order"
    (tmp_path / "a/zzz.png").unlink()
    assert difference() == "training had 20 images, and has 19 now"


def test_nothing_is_put_into_the_cache(tmp_path):
    draw_images(tmp_path / "a")
    source = CachedSource(FolderSource(tmp_path / "a"))
    record_data(ImageDataset(source, CenterCrop(32), channels=3), dataset(tmp_path / "a"))
    assert source.used_bytes == 0


def test_a_stream_is_known_by_its_shards_and_first_images(tmp_path):
    draw_images(tmp_path / "a")
    pictures = {path.name: path.read_bytes() for path in sorted((tmp_path / "a").iterdir())}
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", pictures)

    def record(*shards):
        stream = ImageStream(TarShards([tmp_path / f"{s}.tar" for s in shards]), CenterCrop(32), channels=3)
        return record_data(stream, dataset(tmp_path / "a"))

    assert data_difference(record(0, 1), record(0, 1)) is None
    assert data_difference(record(0, 1), record(0, 1, 2)) == "training had 2 shards, and has 3 now"
