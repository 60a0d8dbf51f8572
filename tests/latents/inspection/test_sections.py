import json

import pytest
import torch

from latentae import KLVAE
from latentae.latents.inspection.encoding import measure
from latentae.latents.inspection.sections import Inspected, all_sections
from tests.latents.conftest import SHAPE, batches_of, draw_tensors, make_kl
from tests.latents.inspection.conftest import make_quantized

ALL = ["histograms", "spectrum", "correlations", "interpolation", "samples", "traversal"]


def sections_of(model, images):
    measured = measure(model, batches_of(images, 4))
    return {part.name: part for part in all_sections(Inspected(model, measured, seed=0, batch_size=8))}


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_any_number_of_latent_channels(channels):
    model = make_quantized(latent_channels=channels, num_vq_embeddings=8)
    parts = sections_of(model, draw_tensors(5))
    assert list(parts) == [*ALL, "codebook"]
    for part in parts.values():
        assert part.figure is not None, part.name
        json.dumps(part.numbers, allow_nan=False)
    assert len(parts["traversal"].numbers["channels"]) == channels


@pytest.mark.parametrize("bands", [1, 5])
def test_any_number_of_image_channels(bands):
    parts = sections_of(
        make_kl(in_channels=bands, out_channels=bands), draw_tensors(4)[:, :1].repeat(1, bands, 1, 1)
    )
    assert list(parts) == ALL
    assert parts["interpolation"].numbers["pairs"] == ["images 1 and 2", "images 3 and 4", "two noises"]
    assert any("nats per latent position" in remark for remark in parts["samples"].remarks)


def test_constant_images_and_channels_are_said_to_be_that():
    model = make_kl()
    with torch.no_grad():
        model.quant_conv.weight[[2, 6]] = 0
        model.quant_conv.bias[2], model.quant_conv.bias[6] = 5, -30
    parts = sections_of(model, torch.full((4, 3, 16, 16), 0.2))
    for name in ("histograms", "correlations", "traversal"):
        assert any("channel(s) 2 do not vary" in remark for remark in parts[name].remarks), name
    assert parts["spectrum"].remarks[0].startswith("images: constant in channel(s) 0, 1, 2")
    assert parts["samples"].numbers["kl_fitted_to_prior_nats_per_position"] is None
    json.dumps([part.numbers for part in parts.values()], allow_nan=False)


def test_what_cannot_be_shown_says_why():
    parts = sections_of(make_kl(), draw_tensors(3, size=6))
    assert parts["spectrum"].figure is None
    assert parts["spectrum"].remarks == (
        "latents of 3x3 are too small for a spectrum: take a larger --image-size",
    )


def test_opposite_latents_are_left_out_with_a_remark():
    torch.manual_seed(0)
    model = KLVAE(**{**SHAPE, "latent_channels": 1}).eval()
    model.pin_posterior()
    images = draw_tensors(2, size=2)  # each becomes one number: they lie on opposite sides of their mean
    parts = sections_of(model, images)
    shown = parts["interpolation"].numbers.get("pairs", [])
    left_out = [remark.split(":")[0] for remark in parts["interpolation"].remarks]
    assert sorted(shown + left_out) == ["images 1 and 2", "two noises"]
    assert "images 1 and 2" in left_out
