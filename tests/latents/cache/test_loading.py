import numpy as np
import pytest
import torch

from latentae.data.seeding import REPLACEMENT, generator
from latentae.latents.cache.loading import CacheImages, batch_loader, batch_sizes
from latentae.latents.cache.planning import ShardPlan
from tests.data.pictures import ListSource


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
    assert [batch_sizes(shard, 2) for shard in shards] == [[2, 1], [2]]
    assert torch.equal(torch.get_rng_state(), state)
