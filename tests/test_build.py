import pytest
import torch

from latentae import VQGAN, VQVAE, build
from latentae.config import config_from_mapping, load_config
from latentae.losses.perceptual import LPIPS
from latentae.quantizers import EMAQuantizer, VectorQuantizer


@pytest.fixture(scope="module")
def quickstart():
    return load_config("vqgan", [])


def test_the_quickstarts_model(quickstart):
    model = build.build_autoencoder(quickstart.model, sample_size=64)
    assert type(model) is VQGAN
    assert model.downsampling_factor == quickstart.model.downsampling_factor == 4
    assert model.config.block_out_channels == tuple(quickstart.model.block_out_channels)
    assert model.quantize.num_codes == 1024
    assert model.quantize.revive_after == quickstart.model.quantizer.revive_after
    assert model(torch.zeros(1, 3, 64, 64)).indices.shape == (1, 16, 16)


@pytest.mark.parametrize(("kind", "expected"), [("vector", VectorQuantizer), ("ema", EMAQuantizer)])
def test_quantizers_get_their_arguments(kind, expected):
    config = load_config("vqgan", [f"model.quantizer.type={kind}", "model.quantizer.commitment_weight=0.5"])
    quantizer = build.build_autoencoder(config.model, 64).quantize
    assert type(quantizer) is expected
    assert quantizer.commitment_weight == 0.5


def test_attention_levels_mirror_in_the_decoder():
    config = load_config("vqgan", ["model.attention_levels=[false, false, true]"])
    model = build.build_autoencoder(config.model, 64)
    assert model.config.down_block_types[2] == "AttnDownEncoderBlock2D"
    assert model.config.up_block_types[0] == "AttnUpDecoderBlock2D"
    assert model(torch.zeros(1, 3, 16, 16)).sample.shape == (1, 3, 16, 16)


def test_losses_and_discriminator(quickstart, alexnet_trunk):
    objective = build.build_objective(quickstart.loss)
    assert isinstance(objective.perceptual, LPIPS)
    assert objective.perceptual_weight == quickstart.loss.perceptual.weight
    terms = build.build_adversarial_terms(quickstart.loss)
    assert (terms.weight, terms.start_step) == (
        quickstart.loss.adversarial.weight,
        quickstart.loss.adversarial.start_step,
    )
    discriminator = build.build_discriminator(quickstart)
    assert discriminator(torch.zeros(1, 3, 64, 64)).shape[1] == 1


def test_a_vq_vae_has_no_discriminator(quickstart):
    mapping = quickstart.model_dump(mode="json", by_alias=True)
    mapping["model"]["class"] = "VQVAE"
    mapping["loss"] |= {"adversarial": None, "perceptual": None}
    mapping["discriminator"] = None
    config = config_from_mapping(mapping)
    assert type(build.build_autoencoder(config.model, 64)) is VQVAE
    assert build.build_discriminator(config) is None
    assert build.build_objective(config.loss).perceptual is None


def test_datasets(quickstart):
    sources = build.build_sources(quickstart.data)
    train, validation = build.build_datasets(sources, quickstart.data, channels=3, seed=0)
    assert (len(train), len(validation)) == (9, 36)
    assert train[0, 0]["images"].shape == validation[0, 0]["images"].shape == (3, 64, 64)
    assert torch.equal(validation[0, 5]["images"], validation[3, 5]["images"])
