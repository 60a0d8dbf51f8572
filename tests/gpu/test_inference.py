"""Encoding and decoding on a device: exact tiling, float16 in its own arithmetic, rewrites, compilers."""

import copy
import re

import pytest
import torch

from latentae.models import KLVAE
from latentae.models.exact_tiling import free_memory
from tests.models.conftest import make
from tests.models.test_exact_tiling import ATTENTION, MODELS
from tests.models.test_half_safe import overflowing

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def latents_of(model, device, dtype=torch.float32, side=14):
    return torch.randn(1, 4, side, 9, generator=torch.Generator().manual_seed(2)).to(device, dtype)


def in_strips_of_a_row(model, latents, **settings):
    """Decodes with the least memory that exact tiling can do with."""
    model.enable_tiling(memory=1, **settings)
    with pytest.raises(ValueError, match="positions needs") as raised:
        model.decode(latents)
    model.enable_tiling(memory=int(re.search(r"needs (\d+) bytes", str(raised.value))[1]), **settings)
    images = model.decode(latents).sample
    model.disable_tiling()
    return images


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["kl, attention in a level", "flux2", "vqvae, spatial", "tiny"])
@torch.no_grad()
def test_strips_give_the_whole_image(name, dtype, device):
    torch.manual_seed(0)
    model = MODELS[name]().to(device, dtype)
    latents = latents_of(model, device, dtype)
    whole = model.decode(latents).sample
    strips = in_strips_of_a_row(model, latents)
    assert strips.dtype == dtype
    scale = float(whole.float().abs().max())
    torch.testing.assert_close(strips.float(), whole.float(), rtol=0, atol=TOLERANCE[dtype] * scale)


@torch.no_grad()
def test_maps_in_another_dtype_and_on_the_cpu(device):
    torch.manual_seed(0)
    model = make(KLVAE, **ATTENTION).to(device)
    latents = latents_of(model, device)
    whole = model.decode(latents).sample
    for settings, tolerance in (({"storage_dtype": torch.bfloat16}, 3e-2), ({"offload": True}, 2e-5)):
        strips = in_strips_of_a_row(model, latents, **settings)
        assert strips.device.type == device.type
        torch.testing.assert_close(strips, whole, rtol=0, atol=tolerance * float(whole.abs().max()))


def test_free_memory_is_what_the_device_has(device):
    assert 2**20 < free_memory(device) < 2**45


def test_float16_holds_a_model_that_it_did_not(device):
    model = overflowing().to(device)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    report = model.make_half_safe(images.to(device))
    assert report.changed
    assert report.float16_before.not_finite > 0
    assert report.float16_after.not_finite == 0
    assert report.float32_after.images < 1e-3
    assert report.float16_after.images < 0.05


@pytest.mark.gpu
@torch.no_grad()
def test_float16_s_own_arithmetic_holds_it_too(cuda):
    """Beside `Reference`, which measures the report: the model itself, cast as a pipeline casts it."""
    model = overflowing().to(cuda)
    images = (torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(cuda)
    before = copy.deepcopy(model).half()
    assert not torch.isfinite(before.decode(before.encode(images.half()).latents).sample).all()
    model.make_half_safe(images)
    latents = model.encode(images).latents
    exact = model.decode(latents).sample
    half = model.half().decode(latents.half()).sample
    assert torch.isfinite(half).all()
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_optimized_models_decode_the_same(order, device):
    torch.manual_seed(0)
    model = make(KLVAE, **ATTENTION).to(device, memory_format=order)
    latents = latents_of(model, device)
    expected = model.decode(latents).sample
    model.optimize()
    torch.testing.assert_close(model.decode(latents).sample, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_compiled_decoder_decodes_the_same(device):
    torch.manual_seed(0)
    model = make(KLVAE, **ATTENTION).to(device)
    latents = latents_of(model, device)
    expected = model.decode(latents).sample
    torch._dynamo.reset()
    # The CPU's inductor needs a C++ compiler, which a machine may lack.
    model.decoder.compile(backend="inductor" if device.type == "cuda" else "eager")
    torch.testing.assert_close(model.decode(latents).sample, expected, rtol=1e-4, atol=1e-4)
