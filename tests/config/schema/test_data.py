import pytest
from pydantic import ValidationError

from latentae.config import DataConfig


def test_height_and_width() -> None:
    assert DataConfig(image_size=32).height_and_width == (32, 32)
    assert DataConfig(image_size=(32, 48)).height_and_width == (32, 48)


def test_defaults() -> None:
    data = DataConfig(image_size=32)
    assert (data.name, data.split, data.holdout, data.downscale, data.num_workers) == (
        "photos",
        "train",
        0.05,
        None,
        2,
    )
    assert (data.max_broken, data.check_images, data.cache_megabytes) == (100, 256, 1024)
    assert (data.streaming, data.shuffle_block, data.max_validation) == (False, 512, 2000)
    assert (data.resolutions, data.value_range) == (None, None)


def test_training_sizes() -> None:
    assert DataConfig(image_size=32).training_sizes == ((32, 32),)
    data = DataConfig(image_size=32, resolutions=[[32, 48], [48, 32]])
    assert data.training_sizes == ((32, 48), (48, 32))
    with pytest.raises(ValidationError):
        DataConfig(image_size=32, resolutions=[])


@pytest.mark.parametrize("holdout", [0, 0.51, -0.1])
def test_holdout_is_a_share_of_at_most_half(holdout: float) -> None:
    assert DataConfig(image_size=32, holdout=0.5).holdout == 0.5
    with pytest.raises(ValidationError):
        DataConfig(image_size=32, holdout=holdout)
