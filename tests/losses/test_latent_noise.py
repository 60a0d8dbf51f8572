import pytest
import torch

from latentae.losses.latent_noise import LatentNoise, deviation


def test_by_hand():
    """Channels of deviations 1 and 7: their root mean square is 5; σ is 0.1 · 2 for the first image."""
    latents = torch.tensor([[1.0, 10.0], [-1.0, -4.0]], dtype=torch.float64)[:, :, None, None]
    torch.testing.assert_close(deviation(latents), torch.tensor(5.0, dtype=torch.float64))
    noise = torch.tensor([[1.0, -1.0], [3.0, 0.0]])[:, :, None, None]
    noisy = LatentNoise(0.1)(latents, noise, torch.tensor([-2.0, 0.0]))
    torch.testing.assert_close(noisy[0].flatten(), torch.tensor([2.0, 9.0], dtype=torch.float64))
    assert torch.equal(noisy[1], latents[1])


def test_larger_latents_get_larger_noise():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    strength, add = torch.tensor([1.0, -0.3, 2.0]), LatentNoise(0.5)
    torch.testing.assert_close(add(100 * latents, noise, strength), 100 * add(latents, noise, strength))


def test_the_gradient_is_that_of_adding():
    latents = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    add = LatentNoise(0.5)
    add(latents, torch.randn(2, 3, 4, 4), torch.randn(2)).sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_latents_get_none(value):
    latents = torch.full((2, 3, 4, 4), value)
    noisy = LatentNoise(0.5)(latents, torch.randn(2, 3, 4, 4), torch.ones(2))
    torch.testing.assert_close(noisy, latents, atol=1e-3, rtol=0)
