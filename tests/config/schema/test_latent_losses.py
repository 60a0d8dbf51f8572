from typing import Any

import pytest

from latentae.config import ConfigError
from tests.config.example import config


def test_all_are_off() -> None:
    loss = config({}).loss
    assert (loss.equivariance, loss.latent_noise, loss.alignment, loss.spectral) == (None,) * 4


def test_the_papers_numbers_are_the_defaults() -> None:
    blocks = {"loss.equivariance": {}, "loss.alignment": {}, "loss.spectral": {}, "data.image_size": 256}
    loss = config(blocks).loss
    assert loss.equivariance is not None
    assert loss.equivariance.model_dump() == {
        "probability": 0.5,
        "min_scale": 0.25,
        "rotate": True,
        "low_resolution_probability": 0.25,
    }
    assert loss.alignment is not None
    assert loss.alignment.model_dump() == {
        "network": "facebook/dinov2-large",
        "precision": None,
        "weight": 0.1,
        "adaptive": True,
        "cosine_margin": 0.5,
        "similarity_margin": 0.25,
    }
    assert loss.spectral is not None
    assert loss.spectral.model_dump() == {"weight": 0.25, "factors": (2, 4)}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"loss.equivariance": {"probability": 0.0}}, "loss.equivariance.probability"),
        ({"loss.equivariance": {"min_scale": 1.5}}, "loss.equivariance.min_scale"),
        ({"loss.latent_noise": {}}, "loss.latent_noise.scale"),
        ({"loss.latent_noise": {"scale": 0.0}}, "loss.latent_noise.scale"),
        ({"loss.alignment": {"cosine_margin": 2.0}}, "loss.alignment.cosine_margin"),
        ({"loss.spectral": {"factors": []}}, "loss.spectral.factors"),
        ({"loss.spectral": {"factors": [1]}}, "loss.spectral.factors"),
    ],
)
def test_bad_numbers_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        config(changes)
