import numpy as np
import pytest
import torch

from latentae.data import BrokenImageError
from latentae.data.annotations import Annotations
from latentae.latents.cache.finishing import finish
from latentae.latents.cache.folder import read_index
from latentae.latents.cache.planning import plan_shards
from latentae.latents.cache.shard import write_shard
from tests.latents.cache.test_folder import SETTINGS

SHARDS = plan_shards([(8, 8)] * 3, 2)


def write(folder, number, images, skipped=()):
    tensors = {"indices": torch.arange(images)}
    if images:
        tensors |= {name: torch.zeros(images, 4, 2, 2) for name in ("mean", "std")}
    write_shard(folder / SHARDS[number].file, tensors, texts={"names": ["x"] * images}, skipped=list(skipped))


def finished(folder, annotations):
    return finish(folder, SETTINGS, SHARDS, annotations, encoded=2, seconds=1.0)


def test_the_index_lists_what_there_is(tmp_path):
    write(tmp_path, 0, 2)
    write(tmp_path, 1, 0, ["c: broken"])
    report = finished(tmp_path, Annotations(np.array([0, 4, 2])))
    assert (report.images, report.shards, report.skipped, report.encoded) == (2, 1, ["c: broken"], 2)
    assert report.bytes == (tmp_path / SHARDS[0].file).stat().st_size
    index = read_index(tmp_path)
    assert [(shard.images, shard.shape, shard.size) for shard in index.shards] == [(2, [4, 2, 2], [8, 8])]
    assert (index.posterior, index.num_classes, index.label_names, index.captions) == (True, 5, None, False)


def test_an_image_that_was_met_twice_is_counted_once(tmp_path):
    write(tmp_path, 0, 2, ["c: broken", "d: broken", "c: broken"])
    write(tmp_path, 1, 1, ["d: broken"])
    assert finished(tmp_path, Annotations()).skipped == ["c: broken", "d: broken"]
    assert read_index(tmp_path).skipped == ["c: broken", "d: broken"]


def test_classes_count_by_their_names(tmp_path):
    write(tmp_path, 0, 2)
    write(tmp_path, 1, 1)
    finished(tmp_path, Annotations(np.array([0, 1, 0]), ["a", "b", "c"]))
    assert read_index(tmp_path).num_classes == 3


def test_a_missing_shard_and_no_image_at_all(tmp_path):
    write(tmp_path, 0, 0, ["a: broken", "b: broken"])
    with pytest.raises(ValueError, match=rf"{SHARDS[1].file} is missing: .* the same output folder"):
        finished(tmp_path, Annotations())
    write(tmp_path, 1, 0, ["c: broken"])
    with pytest.raises(BrokenImageError, match="none of 3 images can be decoded, the first being a: broken"):
        finished(tmp_path, Annotations())
    assert not (tmp_path / "index.json").exists()
