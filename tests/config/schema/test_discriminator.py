import pytest
from pydantic import ValidationError

from latentae.config import AdamWConfig, PatchGANConfig, R1Config


def test_patchgan_defaults_are_the_published_ones() -> None:
    discriminator = PatchGANConfig(type="patchgan", optimizer=AdamWConfig(type="adamw", learning_rate=1e-4))
    assert (discriminator.base_channels, discriminator.num_layers, discriminator.norm) == (64, 3, "group")
    assert (discriminator.update_every, discriminator.augment, discriminator.r1) == (1, (), None)
    assert R1Config(weight=10).every == 16


def test_patchgan_needs_its_own_optimizer() -> None:
    with pytest.raises(ValidationError, match="optimizer"):
        PatchGANConfig.model_validate({"type": "patchgan"})
