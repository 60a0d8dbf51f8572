"""Pipelines around KL-VAEs whose decoder is not the mirror of their encoder."""

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.pipelines.cases import CASES, SIZE
from tests.pipelines.running import built, run

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("name", ["StableDiffusion, text-to-image", "SD3, text-to-image"])
@pytest.mark.parametrize("shape", [{"decoder_block_out_channels": (4, 4)}, {"upscale": 2}, {"upscale": 4}])
def test_pictures_are_as_much_larger_as_the_decoder_s(name, shape, tmp_path):
    case, pipeline = CASES[name], built(name, "KLVAE", **shape)
    upscale = shape.get("upscale", 1)
    result, usual = run(case, pipeline), run(case, built(name, "KLVAE"))
    assert result.images.shape[-2:] == (upscale * SIZE, upscale * SIZE)
    assert usual.images.shape[-2:] == (SIZE, SIZE)
    # The denoiser sees the same, whatever decodes it.
    assert torch.equal(result.decoded[0], usual.decoded[0])
    expected = pipeline.vae.decode(result.decoded[0]).sample / 2 + 0.5
    torch.testing.assert_close(result.images, expected.clamp(0, 1))
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(run(case, loaded).images, result.images)
