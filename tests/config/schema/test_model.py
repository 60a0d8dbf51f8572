import pytest

from latentae.config import VQGANConfig, VQVAEConfig
from tests.config.example import VQVAE, config


@pytest.mark.parametrize(("widths", "factor"), [([32], 1), ([32, 32], 2), ([32, 32, 64, 64, 64], 16)])
def test_every_level_but_the_first_halves(widths: list[int], factor: int) -> None:
    assert config({"model.block_out_channels": widths}).model.downsampling_factor == factor


def test_class_chooses_the_model() -> None:
    assert type(config().model) is VQGANConfig
    assert type(config(VQVAE).model) is VQVAEConfig
    assert config().model.class_ == "VQGAN"
    assert config().model.model_dump(by_alias=True)["class"] == "VQGAN"
