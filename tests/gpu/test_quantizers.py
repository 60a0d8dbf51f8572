"""Quantizers on a device against the CPU: the look-up, the start from data, averages and revived codes."""

import copy

import pytest
import torch

from latentae.quantizers import nearest_code
from latentae.training.speed import set_float32_precision
from tests.quantizers.conftest import CASES, draw, generator, make


def farther(latents, codebook, indices):
    """By how much the chosen codes are farther, in float64, than the nearest ones, as a share."""
    distances = torch.cdist(latents.double(), codebook.double())
    chosen = distances.gather(1, indices.cpu()[:, None])[:, 0]
    return ((chosen - distances.amin(dim=1)) / distances.amin(dim=1)).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "mean"), [(16, 0.0), (5000, 0.0), (1000, 100.0)])
def test_the_look_up_finds_the_nearest_code(count, mean, dtype, device):
    latents, codebook = ((mean + draw(n, 8, seed=n)).to(dtype) for n in (600, count))
    indices = nearest_code(latents.to(device), codebook.to(device))
    assert indices.device.type == device.type
    assert farther(latents, codebook, indices) < 1e-5


def test_rounded_products_choose_no_other_code(device):
    """TensorFloat-32, and autocast, apply to matrix products. The look-up does without."""
    latents, codebook = 10 + draw(600, 8), 10 + draw(1000, 8, seed=1)
    set_float32_precision("high", device)
    with torch.autocast(device.type, torch.bfloat16):
        indices = nearest_code(latents.to(device), codebook.to(device))
    assert farther(latents, codebook, indices) < 1e-5


def test_rows_and_codes_that_are_not_finite(device):
    latents, codebook = draw(5, 4), draw(6, 4, seed=1)
    latents[1, 2], codebook[3, 0] = float("nan"), float("inf")
    indices = nearest_code(latents.to(device), codebook.to(device)).tolist()
    assert indices == nearest_code(latents, codebook).tolist()
    assert indices[1] == 0
    assert 3 not in indices


@pytest.mark.parametrize("kind", CASES)
def test_a_quantizer_learns_as_on_the_cpu(kind, device):
    """k-means start, counts, moving averages, revived codes and refused steps, with the same draws."""
    ours = make(kind).train()
    theirs = copy.deepcopy(ours)
    ours.to(device)
    sides = [(theirs, torch.device("cpu")), (ours, device)]
    for quantizer, place in sides:
        quantizer.start([draw(2, 4, 8, 8, seed=seed).to(place) for seed in (1, 2)], generator())
    for step in range(1, 5):
        latents, accepted = draw(2, 4, 8, 8, seed=10 + step), torch.tensor(step != 3)
        if step == 3:
            latents[0, 0] = float("nan")
        outputs = []
        for quantizer, place in sides:
            own = latents.to(place).requires_grad_()
            output = quantizer(own)
            (output.quantized.square().mean() + sum(output.losses.values())).backward()
            quantizer.commit(step, generator(step), accepted.to(place))
            outputs.append((output.indices, output.quantized, own.grad))
        for expected, found in zip(*outputs, strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    expected = {**theirs.state_dict(), **theirs.upkeep}
    found = {**ours.state_dict(), **ours.upkeep}
    for name, value in expected.items():
        assert found[name].device.type == device.type
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", CASES)
def test_a_quantizer_in_training_never_waits(kind, cuda):
    quantizer = make(kind).to(cuda).train()
    latents = [draw(2, 4, 8, 8, seed=seed).to(cuda).requires_grad_() for seed in range(3)]
    accepted = torch.ones((), dtype=torch.bool, device=cuda)
    for step, own in enumerate(latents, start=1):
        if step == 2:  # the first step loads kernels
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            output = quantizer(own)
            (output.quantized.square().mean() + sum(output.losses.values())).backward()
            quantizer.commit(step, generator(step), accepted)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(own.grad is not None for own in latents)
