"""A pipeline whose autoencoder is optimised."""

import pytest
import torch
from diffusers import DiffusionPipeline

from latentae import winograd
from tests.pipelines.cases import CASES
from tests.pipelines.running import built, run

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("name", ["StableDiffusion, text-to-image", "SD3, text-to-image"])
def test_pictures_and_files_stay(name, tmp_path, monkeypatch):
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "_LEAST_TILES", 1)
    case, pipeline = CASES[name], built(name, "KLVAE")
    expected = run(case, pipeline).images
    pipeline.vae.optimize()
    images = run(case, pipeline).images
    assert images.shape == expected.shape
    assert 0 < (images - expected).abs().max() < 1e-5
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(run(case, DiffusionPipeline.from_pretrained(tmp_path)).images, expected)
