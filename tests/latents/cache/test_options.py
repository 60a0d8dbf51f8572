import pytest

from latentae.latents.cache.options import CacheOptions, default_shard_size
from tests.latents.conftest import make_kl


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
