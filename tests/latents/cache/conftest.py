import pytest

from latentae.latents.cache import encode_dataset
from tests.latents.conftest import make_kl


@pytest.fixture
def cache(classes, tmp_path):
    """A finished cache of ten images in shards of four, with both orientations, in float32."""
    encode_dataset(
        make_kl(), classes, tmp_path / "cache", shard_size=4, batch_size=4, flips=True, dtype="float32"
    )
    return tmp_path / "cache"
