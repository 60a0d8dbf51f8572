import errno
import os

import pytest
import torch
from safetensors.torch import load_file

from latentae.data.annotations import Annotations
from latentae.files import FullDiskError
from latentae.latents.cache.loading import CacheImages
from latentae.latents.cache.options import CacheOptions
from latentae.latents.cache.planning import plan_shards
from latentae.latents.cache.work import CacheError, FailedElsewhereError, Work
from tests.data.pictures import ListSource
from tests.latents.conftest import make_kl

SHARDS = plan_shards([(8, 8)] * 5, 2)


def work(folder, *, undecodable=(), broken="skip", model=None, annotations=None, say=lambda text: None):
    options = CacheOptions(image_size=8, shard_size=2, broken=broken)
    images = CacheImages(ListSource(5, undecodable), 3, crop=True, broken=broken, seed=0)
    return Work(model or make_kl(), images, annotations or Annotations(), folder, options, say)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_every_shard_is_written_with_what_is_known_of_its_images(tmp_path):
    annotations = Annotations(torch.arange(5).numpy() * 10, None, lambda index: f"caption {index}")
    work(tmp_path, annotations=annotations).do(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == [shard.file for shard in SHARDS]
    last = load_file(tmp_path / SHARDS[2].file)
    assert (last["indices"].tolist(), last["labels"].tolist()) == ([4], [40])
    assert last["captions"].numpy().tobytes() == b"caption 4"
    assert last["mean"].shape == (1, 4, 4, 4)
    assert last["mean"].dtype == torch.float16


def test_the_size_of_batches_does_not_matter_but_for_rounding(tmp_path):
    for size in (1, 2):
        (tmp_path / str(size)).mkdir()
        work(tmp_path / str(size)).do(SHARDS, batch_size=size, workers=0)
    for shard in SHARDS:
        one, two = (load_file(tmp_path / name / shard.file) for name in ("1", "2"))
        torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3)


def test_broken_images_are_told_or_stop_the_work(tmp_path):
    said = []
    work(tmp_path, undecodable=(2, 3), say=said.append).do(SHARDS, batch_size=2, workers=0)
    assert [text for text in said if text.startswith("left out: ")] == said[:2]
    assert len(load_file(tmp_path / SHARDS[1].file)["indices"]) == 0
    assert said[-1].startswith("5 of 5 images encoded")
    with pytest.raises(CacheError, match="broken='skip' leaves such images out"):
        work(tmp_path, undecodable=(2,), broken="stop").do(SHARDS, batch_size=2, workers=0)


def test_a_full_disk_leaves_what_is_finished(tmp_path, monkeypatch):
    flush, count = os.fsync, [0]

    def fail_later(descriptor):
        count[0] += 1
        if count[0] > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    with pytest.raises(FullDiskError, match="no space left to write"):
        work(tmp_path).do(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == [shard.file for shard in SHARDS[:2]]


def test_latents_that_are_not_finite_are_not_written(tmp_path):
    model = make_kl()
    with torch.no_grad():
        model.quant_conv.bias[0] = float("nan")
    with pytest.raises(CacheError, match=r"the latents \(mean\) hold values that are not finite"):
        work(tmp_path, model=model).do(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == []


def test_ranks_share_the_shards_and_hear_of_failures(tmp_path, monkeypatch):
    monkeypatch.setattr("latentae.distributed.rank", lambda: 1)
    monkeypatch.setattr("latentae.distributed.world_size", lambda: 2)
    monkeypatch.setattr("latentae.distributed.all_reduce_sum", lambda tensor: tensor)
    work(tmp_path).do(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == [SHARDS[1].file]
    monkeypatch.setattr("latentae.distributed.all_reduce_sum", lambda tensor: tensor + 1)
    with pytest.raises(FailedElsewhereError, match="another process has failed"):
        work(tmp_path).do(SHARDS, batch_size=2, workers=0)
