import errno
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentae.data.annotations import Annotations
from latentae.data.seeding import REPLACEMENT, generator
from latentae.files import FullDiskError
from latentae.latents.cache.planning import CacheOptions, ShardPlan, plan_shards
from latentae.latents.cache.work import (
    CacheError,
    CacheImages,
    FailedElsewhereError,
    ShardEncoder,
    batch_loader,
    check_codes,
    check_values,
    encode_batch,
)
from tests.data.pictures import ListSource
from tests.latents.conftest import draw_tensors, make_kl, make_vq

SHARDS = plan_shards([(8, 8)] * 5, 2)


def encoder(folder, *, undecodable=(), broken="skip", model=None, annotations=None, say=lambda text: None):
    options = CacheOptions(image_size=8, shard_size=2, broken=broken)
    images = CacheImages(ListSource(5, undecodable), 3, crop=True, broken=broken, seed=0)
    return ShardEncoder(model or make_kl(), images, annotations or Annotations(), folder, options, say)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_every_shard_is_written_with_what_is_known_of_its_images(tmp_path):
    annotations = Annotations(torch.arange(5).numpy() * 10, None, lambda index: f"caption {index}")
    encoder(tmp_path, annotations=annotations).encode(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == [shard.file for shard in SHARDS]
    last = load_file(tmp_path / SHARDS[2].file)
    assert (last["indices"].tolist(), last["labels"].tolist()) == ([4], [40])
    assert last["captions"].numpy().tobytes() == b"caption 4"
    assert last["mean"].shape == (1, 4, 4, 4)
    assert last["mean"].dtype == torch.float16


def test_the_size_of_batches_does_not_matter_but_for_rounding(tmp_path):
    for size in (1, 2):
        (tmp_path / str(size)).mkdir()
        encoder(tmp_path / str(size)).encode(SHARDS, batch_size=size, workers=0)
    for shard in SHARDS:
        one, two = (load_file(tmp_path / name / shard.file) for name in ("1", "2"))
        torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3)


def test_broken_images_are_told_or_stop_the_work(tmp_path):
    said = []
    encoder(tmp_path, undecodable=(2, 3), say=said.append).encode(SHARDS, batch_size=2, workers=0)
    assert [text for text in said if text.startswith("left out: ")] == said[:2]
    assert len(load_file(tmp_path / SHARDS[1].file)["indices"]) == 0
    assert said[-1].startswith("5 of 5 images encoded")
    with pytest.raises(CacheError, match="broken='skip' leaves such images out"):
        encoder(tmp_path, undecodable=(2,), broken="stop").encode(SHARDS, batch_size=2, workers=0)


def test_a_full_disk_leaves_what_is_finished(tmp_path, monkeypatch):
    flush, count = os.fsync, [0]

    def fail_later(descriptor):
        count[0] += 1
        if count[0] > 4:  # each shard flushes its file and the folder
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    with pytest.raises(FullDiskError, match="no space left to write"):
        encoder(tmp_path).encode(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == [shard.file for shard in SHARDS[:2]]


def test_latents_that_are_not_finite_are_not_written(tmp_path):
    model = make_kl()
    with torch.no_grad():
        model.quant_conv.bias[0] = float("nan")
    with pytest.raises(CacheError, match=r"the latents \(mean\) hold values that are not finite"):
        encoder(tmp_path, model=model).encode(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == []


def test_ranks_share_the_shards_and_hear_of_failures(tmp_path, monkeypatch):
    monkeypatch.setattr("latentae.distributed.rank", lambda: 1)
    monkeypatch.setattr("latentae.distributed.world_size", lambda: 2)
    monkeypatch.setattr("latentae.distributed.all_reduce_sum", lambda tensor: tensor)
    encoder(tmp_path).encode(SHARDS, batch_size=2, workers=0)
    assert names(tmp_path) == [SHARDS[1].file]
    monkeypatch.setattr("latentae.distributed.all_reduce_sum", lambda tensor: tensor + 1)
    with pytest.raises(FailedElsewhereError, match="another process has failed"):
        encoder(tmp_path).encode(SHARDS, batch_size=2, workers=0)


def images(undecodable=(), *, crop=True, broken="skip"):
    return CacheImages(ListSource(6, undecodable), 3, crop=crop, broken=broken, seed=5)


def test_images_are_cropped_or_taken_as_they_are():
    assert images()[(4, 6), [1]].images.shape == (1, 3, 4, 6)
    whole = images(crop=False)[(12, 12), [1, 3]]
    assert whole.images.shape == (2, 3, 12, 12)
    assert whole.images[1, 2].unique().tolist() == pytest.approx([3 / 127.5 - 1])
    assert (whole.indices, whole.broken) == ([1, 3], [])


def test_broken_images_are_left_out():
    batch = images((1, 4))[(4, 4), [0, 1, 2]]
    assert (len(batch.images), batch.indices, len(batch.broken)) == (2, [0, 2], 1)
    assert images((1, 4))[(4, 4), [1, 4]].images is None


def test_a_replacement_is_a_function_of_seed_and_index():
    drawn = generator(5, REPLACEMENT, 0, 1).integers(6, size=16)
    expected = int(drawn[np.flatnonzero(drawn != 1)[0]])
    batch = images((1,), broken="replace")[(4, 4), [1]]
    assert (batch.indices, len(batch.broken) > 0) == ([expected], True)
    assert batch.images[0, 2].unique().tolist() == pytest.approx([expected / 127.5 - 1])


def test_batches_of_shards_one_after_the_other():
    shards = [ShardPlan("a", (4, 4), [0, 1, 2]), ShardPlan("b", (8, 4), [3, 4])]
    state = torch.get_rng_state()
    loader = batch_loader(images(), shards, batch_size=2, workers=0, pin_memory=False)
    assert [(batch.indices, list(batch.images.shape[2:])) for batch in loader] == [
        ([0, 1], [4, 4]),
        ([2], [4, 4]),
        ([3, 4], [8, 4]),
    ]
    assert torch.equal(torch.get_rng_state(), state)


IMAGES = draw_tensors(3)


def options(**changes):
    return CacheOptions(**{"image_size": 16, "dtype": "float32", **changes})


def test_mean_and_deviation_of_a_posterior_and_of_the_mirrored_images():
    model = make_kl()
    stored = encode_batch(model, IMAGES, options(flips=True))
    with torch.no_grad():
        posterior, mirrored = (model.encode(x).latent_dist for x in (IMAGES, IMAGES.flip(-1)))
    assert set(stored) == {"mean", "std", "mean_flipped", "std_flipped"}
    assert torch.equal(stored["mean"], posterior.mean)
    assert torch.equal(stored["std"], posterior.std)
    assert torch.equal(stored["mean_flipped"], mirrored.mean)
    assert torch.equal(stored["std_flipped"], mirrored.std)


def test_continuous_latents_and_codes_of_a_vq_model():
    model = make_vq()
    stored = encode_batch(model, IMAGES, options(codes=True))
    with torch.no_grad():
        assert torch.equal(stored["mean"], model.encode(IMAGES).latents)
        assert torch.equal(stored["codes"].long(), model.encode_indices(IMAGES))
    assert set(stored) == {"mean", "codes"}
    assert stored["codes"].dtype == torch.int16
    assert set(encode_batch(model, IMAGES, options(codes=True, latents=False))) == {"codes"}


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_rounds_by_its_own_digits(dtype, largest):
    exact = encode_batch(make_kl(), IMAGES, options())["mean"]
    stored = encode_batch(make_kl(), IMAGES, options(dtype=dtype))["mean"]
    assert str(stored.dtype) == f"torch.{dtype}"
    relative = ((stored.double() - exact) / exact).abs().max()
    assert largest / 4 < relative <= largest


def test_the_encoder_can_run_in_bfloat16():
    exact, rough = (
        encode_batch(make_kl(), IMAGES, options(precision=name))["mean"] for name in ("float32", "bfloat16")
    )
    assert 1e-4 < (exact - rough).abs().max() < 0.5


def test_constant_images_are_nothing_special():
    stored = encode_batch(make_kl(), torch.zeros(2, 3, 16, 16), options())
    check_values(stored, "float32")
    assert torch.equal(stored["mean"][0], stored["mean"][1])


def test_codes_need_a_vq_model():
    with pytest.raises(ValueError, match="codes are of VQ models, and this is a KLVAE"):
        check_codes(make_kl(), options(codes=True))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"the latents \(std\) hold values that are not finite in float16"):
        check_values({"mean": torch.ones(1), "std": torch.tensor([1e9]).half()}, "float16")
