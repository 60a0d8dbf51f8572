"""Pipelines with a decoder that is not the encoder's mirror: narrower, tiny, or of larger images."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from latentae import TinyAutoencoder
from tests.models.test_flux2 import make_flux2, seen_by_a_denoiser
from tests.pipelines import test_flux2
from tests.pipelines.autoencoders import WIDTH, tiny
from tests.pipelines.cases import CASES, SIZE
from tests.pipelines.test_scaling import as_image

pytestmark = pytest.mark.usefixtures("no_gradients")

FLUX2 = "FLUX.2 Klein"
PIPELINES = ("StableDiffusion, text-to-image", "SDXL, text-to-image", "SD3, text-to-image", FLUX2)
FOLDED = {  # as TAESD's edition of factor 16: pixels are folded into channels
    "encoder_layers": ["pixel_unshuffle", "conv 12 8", "relu", "block 8 8", "conv 8 4"],
    "decoder_layers": ["conv 4 8", "relu", "block 8 8", "conv 8 12", "pixel_shuffle"],
}


def make_tiny(levels, **config):
    """A TinyAutoencoder of 4 latent channels, at half the size of images."""
    torch.manual_seed(0)
    sides = {f"{side}_block_out_channels": (WIDTH,) * levels for side in ("encoder", "decoder")}
    blocks = {f"num_{side}_blocks": (1,) * levels for side in ("encoder", "decoder")}
    return TinyAutoencoder(**sides, **blocks, **config).eval()


# name -> (what makes the autoencoder, how many times as large as the encoder's its images are)
DECODERS = {
    "narrow": (partial(tiny, "KLVAE", decoder_block_out_channels=(4, 4)), 1),
    "x2": (partial(tiny, "KLVAE", upscale=2), 2),
    "x4": (partial(tiny, "KLVAE", upscale=4), 4),
    "tiny": (partial(make_tiny, 2), 1),
    "tiny, folded": (partial(make_tiny, 1, **FOLDED), 1),
}
FLUX2_DECODERS = {
    "narrow": (partial(make_flux2, decoder_block_out_channels=(32, 32)), 1),
    "x2": (partial(make_flux2, upscale=2), 2),
    "tiny": DECODERS["tiny"],
    "tiny, folded": DECODERS["tiny, folded"],
}
PAIRS = [(name, kind) for name in PIPELINES for kind in (FLUX2_DECODERS if name == FLUX2 else DECODERS)]


def build(name, kind):
    """A pipeline around a decoder, and how many times as large its images are."""
    if name == FLUX2:
        make, upscale = FLUX2_DECODERS[kind]
        return test_flux2.pipeline_with(make()), upscale
    make, upscale = DECODERS[kind]
    shift = {"shift_factor": 0.3} if CASES[name].shifted else {}
    return CASES[name].build(make(scaling_factor=0.7, **shift)), upscale


def run(name, pipeline, output_type="pt"):
    """Images [1, 3, H, W] in [0, 1], or with ``latent`` the latents [1, 4, h, w]."""
    if name == FLUX2:
        return test_flux2.run(pipeline, output_type=output_type)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        **{"num_inference_steps": 2, **CASES[name].arguments},
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
    ).images


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_picture_is_what_the_model_decodes(name, kind, tmp_path):
    pipeline, upscale = build(name, kind)
    side = 64 if name == FLUX2 else SIZE
    images, latents = run(name, pipeline), run(name, pipeline, "latent")
    assert images.shape == (1, 3, upscale * side, upscale * side)
    assert latents.shape == (1, 4, side // 2, side // 2)
    # FLUX.2's pipeline has undone the normalisation already
    vae = pipeline.vae
    decoded = vae.decode(latents).sample if name == FLUX2 else vae.from_latents(latents)
    torch.testing.assert_close(images, as_image(decoded))
    assert images.std() > 0

    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.vae) is type(vae)
    assert torch.equal(run(name, loaded), images)


@pytest.mark.parametrize("name", PIPELINES[:3])
def test_the_denoiser_does_not_see_who_decodes(name):
    """Only the decoder is another one, so that the latents stay."""
    expected = run(name, build(name, "x2")[0], "latent")
    for kind in DECODERS:
        assert torch.equal(run(name, build(name, kind)[0], "latent"), expected)


@pytest.mark.parametrize("kind", ["tiny", "tiny, folded"])
def test_flux2_sees_the_latents_of_a_tiny_model_in_patches(kind):
    """Its batch normalisation changes nothing, as TAESD for FLUX.2 has normalised latents."""
    model = DECODERS[kind][0]()
    images = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(seen_by_a_denoiser(model, images), F.pixel_unshuffle(model.encode(images).latents, 2))
