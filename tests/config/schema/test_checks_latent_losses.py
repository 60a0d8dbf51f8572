from typing import Any

import pytest

from latentae.config import ConfigError, config_warnings
from tests.config.example import REMOVED, config

KLVAE = {
    "model.class": "KLVAE",
    "model.quantizer": REMOVED,
    "loss.adversarial": None,
    "discriminator": None,
}
FROZEN = {**KLVAE, "freeze_encoder": True, "model.pretrained": "model", "data.image_size": 256}


def objections(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(changes)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", ["equivariance", "alignment", "spectral"])
def test_a_frozen_encoder_has_nothing_to_learn_from_it(name: str) -> None:
    assert objections({**FROZEN, f"loss.{name}": {}}) == [
        f"`loss.{name}` is set, and `freeze_encoder` is true: it is to change the latents, which then stay "
        f"as they are; use loss.{name}=null or freeze_encoder=false"
    ]


def test_a_decoder_alone_learns_to_bear_noise() -> None:
    assert config({**FROZEN, "loss.latent_noise": {"scale": 0.1}}).loss.latent_noise is not None


def test_nothing_to_transform() -> None:
    (objection,) = objections({"loss.equivariance": {"min_scale": 1.0, "rotate": False}})
    assert objection.startswith(
        "`loss.equivariance.min_scale` is 1 and `loss.equivariance.rotate` false, which leaves nothing"
    )
    assert config({"loss.equivariance": {"min_scale": 1.0}}).loss.equivariance is not None


def test_alignment_needs_rgb() -> None:
    (objection,) = objections({**KLVAE, "loss.alignment": {}, "model.in_channels": 4})
    assert objection == (
        "`loss.alignment` is set, and `model.in_channels` is 4; its networks see RGB images: use "
        "loss.alignment=null"
    )


def test_images_must_stay_large_enough_for_the_losses() -> None:
    """The example's discriminator has 3 halving layers and its trunk is VGG16."""
    sizes = {"data.image_size": 64, "loss.perceptual.trunk": "vgg"}
    (objection,) = objections({**sizes, "loss.equivariance": {}})
    assert objection == (
        "`loss.equivariance.min_scale` is 0.25, which makes images of 64 pixels as small as 16, and the "
        "other losses need 24; raise it or `data.image_size`"
    )
    assert config({**sizes, "loss.equivariance": {"min_scale": 0.375}}).loss.equivariance is not None
    assert config({**KLVAE, **sizes, "loss.equivariance": {}}).loss.equivariance is not None
    (objection,) = objections({**KLVAE, **sizes, "loss.spectral": {"factors": [2, 8]}})
    assert objection == (
        "`loss.spectral.factors` has 8, which makes images of 64 pixels as small as 8, and the perceptual "
        "loss needs 16; use smaller ones or raise `data.image_size`"
    )
    # The discriminator does not see them.
    assert config({**sizes, "loss.spectral": {"factors": [2, 4]}}).loss.spectral is not None


def test_more_than_there_are_latents_cannot_be_taken_together() -> None:
    without = {**KLVAE, "loss.perceptual": None, "data.image_size": 32}
    assert objections({**without, "loss.spectral": {"factors": [2, 16]}}) == [
        "`loss.spectral.factors` has 16, and images of 32 pixels have 8 latents along a side; use smaller "
        "ones or raise `data.image_size`"
    ]
    assert config({**without, "loss.spectral": {"factors": [8]}}).loss.spectral is not None


def test_the_smallest_of_several_sizes_counts() -> None:
    sizes = {
        "loss.perceptual.trunk": "vgg",
        "data.image_size": 128,
        "data.resolutions": [[128, 128], [64, 192]],
    }
    (objection,) = objections({**sizes, "loss.equivariance": {}})
    assert "images of 64 pixels as small as 16" in objection


def test_an_elbo_of_transformed_images_is_none() -> None:
    likelihood = {"loss.reconstruction": {"type": "laplace"}, "loss.kl": {}}
    changes = {**KLVAE, **likelihood, "loss.equivariance": {}, "data.image_size": 128}
    assert config_warnings(config(changes)) == [
        "`loss.equivariance` is set, and `loss.reconstruction.type` laplace: `elbo_nats` and "
        "`bits_per_dimension` in the log are also of transformed images, and no bound"
    ]
