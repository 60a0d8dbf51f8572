import json

import numpy as np
import pytest
from PIL import Image

from latentae.data import (
    CachedSource,
    CenterCrop,
    FolderSource,
    ImageDataset,
    ImageStream,
    TarShards,
    take_evenly,
)
from latentae.training.data_record import data_difference, record_data
from tests.data.pictures import write_tar
from tests.training.conftest import draw_images


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
