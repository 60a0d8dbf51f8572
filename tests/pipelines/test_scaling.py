"""That every pipeline multiplies latents by the scale once, on either side, as ``to_latents`` does."""

import pytest
import torch
from diffusers import FluxPipeline

from tests.pipelines.autoencoders import OURS, has_codes
from tests.pipelines.cases import CASES, SIZE
from tests.pipelines.running import built, left_half, pairs, picture, run

pytestmark = pytest.mark.usefixtures("no_gradients")

SCALE, SHIFT = 0.7, 0.3
MEAN, STD = [0.5, -1.0, 0.0, 0.25], [1.0, 2.0, 0.5, 1.5]
NEARLY_NOTHING = {"num_inference_steps": 1000, "strength": 0.001}  # one step, at the least noise

FROM_NOISE = [name for name, case in CASES.items() if case.scaled and not case.image]
FROM_IMAGE = [name for name, case in CASES.items() if "strength" in case.arguments or case.mask]
FROM_IMAGE = [name for name in FROM_IMAGE if "aMUSEd" not in name]  # it adds noise to codes


def normalised(name, autoencoder, **config):
    """The pipeline around an autoencoder with a scale, and with a shift where the pipeline reads one."""
    case = CASES[name]
    config |= {"scaling_factor": SCALE if case.scaled else 1.0}
    if case.shifted:
        config |= {"shift_factor": SHIFT}
    return built(name, autoencoder, **config)


def as_image(decoded):
    return (decoded / 2 + 0.5).clamp(0, 1)


def unpacked(name, latents):
    if name.startswith(("Flux", "Chroma")) and latents.ndim == 3:
        return FluxPipeline._unpack_latents(latents, SIZE, SIZE, 2)
    return latents


@pytest.mark.parametrize(("name", "autoencoder"), pairs(FROM_NOISE))
def test_what_is_decoded(name, autoencoder):
    pipeline = normalised(name, autoencoder)
    vae = getattr(pipeline, CASES[name].part)
    result = run(CASES[name], pipeline)
    denoised = unpacked(name, result.stepped[-1])
    (decoded,) = result.decoded
    torch.testing.assert_close(decoded, denoised / SCALE + (SHIFT if CASES[name].shifted else 0))
    torch.testing.assert_close(result.images, as_image(vae.from_latents(denoised)))


@pytest.mark.parametrize(("name", "autoencoder"), pairs(FROM_IMAGE))
def test_an_image_hardly_noised_comes_back_as_its_reconstruction(name, autoencoder):
    pipeline = normalised(name, autoencoder)
    vae = getattr(pipeline, CASES[name].part)
    result = run(CASES[name], pipeline, **NEARLY_NOTHING)
    (seen,) = result.seen
    images = picture() * 2 - 1
    torch.testing.assert_close(unpacked(name, seen)[:, :4], vae.to_latents(images), rtol=0, atol=0.01)
    # decoding without quantization, as Kandinsky does, takes the latents as they are
    unquantized = {"force_not_quantize": True} if CASES[name].of_codes else {}
    expected = as_image(vae.decode(vae.encode(images).latents, **unquantized).sample)
    difference = (result.images - expected).abs().mean()
    assert (as_image(images) - expected).abs().mean() > 0.1
    if has_codes(autoencoder) and not unquantized:  # the little noise moves a latent to another code
        indices = vae.quantize(result.decoded[0]).indices
        assert (indices == vae.encode_indices(images)).float().mean() > 0.97
        assert difference < 0.05
    else:
        assert difference < 0.002


@pytest.mark.parametrize("autoencoder", OURS)
def test_the_masked_image_beside_the_latents(autoencoder):
    name = "StableDiffusion, inpaint (9-channel UNet)"
    pipeline = normalised(name, autoencoder)
    seen = run(CASES[name], pipeline).seen[0]
    assert seen.shape == (1, 9, SIZE // 2, SIZE // 2)
    assert torch.equal(seen[:, 4:5], left_half()[..., ::2, ::2])
    masked = (picture() * 2 - 1) * (left_half() < 0.5)
    torch.testing.assert_close(seen[:, 5:], pipeline.vae.to_latents(masked), rtol=0, atol=1e-5)


@pytest.mark.parametrize("autoencoder", OURS)
@pytest.mark.parametrize("task", ["text-to-image", "image-to-image", "inpaint"])
def test_sdxl_normalises_by_channel(task, autoencoder):
    case = CASES[f"SDXL, {task}"]
    pipeline = normalised(f"SDXL, {task}", autoencoder, latents_mean=MEAN, latents_std=STD)
    result = run(case, pipeline, **(NEARLY_NOTHING if task == "image-to-image" else {}))
    if task == "image-to-image":
        latents = pipeline.vae.to_latents(picture() * 2 - 1)
        torch.testing.assert_close(result.seen[0], latents, rtol=0, atol=0.01)
    denoised = result.stepped[-1]
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    if task != "inpaint":  # there the known part of the image is put back after the last step
        torch.testing.assert_close(result.decoded[0], denoised * std / SCALE + mean)
        torch.testing.assert_close(result.images, as_image(pipeline.vae.from_latents(denoised)))
    else:
        assert result.images.shape == (1, 3, SIZE, SIZE)
