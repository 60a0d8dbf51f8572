import numpy as np
import pytest

from latentae.latents.cache.planning import (
    CacheOptions,
    bucket_sizes,
    choose_buckets,
    default_shard_size,
    forget_sizes,
    measure_sizes,
    plan_cache,
    plan_shards,
    same_size,
)
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
        # The pictures have 12 x 12 pixels.
        return plan_cache(ListSource(4), make_kl(), options, workers=0, folder=tmp_path)

    assert [shard.size for shard in planned()] == [(8, 8), (8, 8)]
    assert [shard.size for shard in planned(sizes="bucket")] == [(8, 8), (8, 8)]
    assert [shard.size for shard in planned(sizes="refuse", image_size=None)] == [(12, 12), (12, 12)]
    with pytest.raises(ValueError, match="has 12x12 pixels and image_size is 8x8"):
        planned(sizes="refuse")


def test_sizes_are_measured_once(tmp_path):
    source = ListSource(3, broken=(1,))
    expected = np.array([[12, 12], [0, 0], [12, 12]])
    np.testing.assert_array_equal(measure_sizes(source, 3, workers=0, folder=tmp_path), expected)
    decoded = len(source.loaded)
    np.testing.assert_array_equal(measure_sizes(source, 3, workers=0, folder=tmp_path), expected)
    assert len(source.loaded) == decoded
    forget_sizes(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_other_images_or_a_damaged_file_are_measured_anew(tmp_path):
    measure_sizes(ListSource(3), 3, workers=0, folder=tmp_path)
    assert measure_sizes(ListSource(4), 3, workers=0, folder=tmp_path).shape == (4, 2)
    (tmp_path / "sizes.safetensors").write_bytes(b"short")
    assert measure_sizes(ListSource(4), 3, workers=0, folder=tmp_path).tolist() == [[12, 12]] * 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "int8"}, "dtype is 'int8', but must be one of float16, bfloat16, float32"),
        ({"sizes": "stretch"}, "sizes is 'stretch', but must be one of crop, bucket, refuse"),
        ({"broken": "ignore"}, "broken is 'ignore', but must be one of skip, replace, stop"),
        ({"precision": "float16"}, "precision is 'float16', but must be one of float32, bfloat16"),
        ({"image_size": 0}, "image_size is 0, but must be 1 or more"),
        ({"shard_size": 0}, "shard_size is 0, but must be 1 or more"),
        ({"seed": -1}, "seed is -1, but must be 0 or more"),
        ({"image_size": None, "sizes": "bucket"}, "image_size is needed where sizes is 'bucket'"),
        ({"latents": False}, "nothing to store"),
    ],
)
def test_a_mistake_is_named(changes, says):
    with pytest.raises(ValueError, match=says):
        CacheOptions(**{"image_size": 16, **changes})


def test_shards_grow_with_the_data_and_not_with_the_size_of_latents():
    model = make_kl()  # 4 channels, a latent for 2x2 pixels
    assert default_shard_size(10, 16, model) == 128
    assert default_shard_size(128 * 64, 16, model) == 128
    assert default_shard_size(128 * 64 + 1, 16, model) == 256
    assert default_shard_size(10**7, 16, model) == 1024
    # 1024 px: 2 * 4 * 512² values of 4 bytes are 8 MiB an image, and 32 of these are 256 MiB.
    assert default_shard_size(10**7, 1024, model) == 32
    assert default_shard_size(10**7, None, model) == 1024
