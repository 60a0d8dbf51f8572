import numpy as np
import pytest

from latentae.latents.cache.options import CacheOptions
from latentae.latents.cache.planning import bucket_sizes, choose_buckets, plan, plan_shards, same_size
from tests.data.pictures import ListSource
from tests.latents.conftest import make_kl


def test_consecutive_images_of_one_size_share_a_shard():
    shards = plan_shards([(8, 8), (8, 4), (8, 8), (8, 8)], 2)
    assert [(shard.file, shard.size, list(shard.indices)) for shard in shards] == [
        ("latents_8x4_00000.safetensors", (8, 4), [1]),
        ("latents_8x8_00000.safetensors", (8, 8), [0, 2]),
        ("latents_8x8_00001.safetensors", (8, 8), [3]),
    ]


def test_buckets_have_about_as_many_pixels_as_the_square():
    buckets = bucket_sizes(64, 8)
    # Shorter sides in steps of 8: 32 goes with 4096 / 32 = 128, 40 with 102 → 96, 48 with 85 → 80, and 56
    # with 73 → 72.
    wide = [(32, 128), (40, 96), (48, 80), (56, 72)]
    assert buckets == sorted([*wide, *((width, height) for height, width in wide), (64, 64)])
    with pytest.raises(ValueError, match=r"image_size is 60, .* must be a multiple of 8"):
        bucket_sizes(60, 8)


def test_the_nearest_aspect_is_chosen_and_broken_images_go_with_most():
    native = np.array([[100, 100], [0, 0], [50, 90], [300, 100], [200, 198]])
    assert choose_buckets(native, bucket_sizes(64, 8)) == [(64, 64), (64, 64), (48, 80), (96, 40), (64, 64)]


def test_one_size_or_none():
    names = ["a", "b", "c"]
    assert same_size(np.array([[0, 0], [8, 6], [8, 6]]), names, None) == (8, 6)
    assert same_size(np.array([[8, 8], [0, 0], [8, 8]]), names, 8) == (8, 8)
    with pytest.raises(
        ValueError, match=r"c has 6x8 pixels and a has 8x6.*\(1 of 3 images differ\): use sizes="
    ):
        same_size(np.array([[8, 6], [8, 6], [6, 8]]), names, None)
    with pytest.raises(ValueError, match="a has 8x6 pixels and image_size is 8x8"):
        same_size(np.array([[8, 6], [8, 6], [6, 8]]), names, 8)
    with pytest.raises(ValueError, match="none of 1 images can be decoded"):
        same_size(np.array([[0, 0]]), names, None)


def test_plans_of_each_kind(tmp_path):
    def planned(**changes):
        options = CacheOptions(**{"image_size": 8, "shard_size": 3, **changes})
        return plan(ListSource(4), make_kl(), options, workers=0, folder=tmp_path)  # pictures of 12 x 12

    assert [shard.size for shard in planned()] == [(8, 8), (8, 8)]
    assert [shard.size for shard in planned(sizes="bucket")] == [(8, 8), (8, 8)]
    assert [shard.size for shard in planned(sizes="refuse", image_size=None)] == [(12, 12), (12, 12)]
    with pytest.raises(ValueError, match="has 12x12 pixels and image_size is 8x8"):
        planned(sizes="refuse")
