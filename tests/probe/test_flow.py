import pytest
import torch

from latentae.probe.flow import independent_loss, logit_normal_times, noisy_latents, velocity


def test_path_and_its_velocity():
    latents, noise = torch.full((2, 1, 1, 1), 4.0), torch.full((2, 1, 1, 1), -2.0)
    times = torch.tensor([0.25, 1.0])
    assert noisy_latents(latents, noise, times).flatten().tolist() == [0.75 * 4 - 0.25 * 2, -2.0]
    assert velocity(latents, noise).flatten().tolist() == [-6.0, -6.0]


def test_times():
    times = logit_normal_times(torch.tensor([0.0, 1.0, -1.0]))
    assert times.tolist() == pytest.approx([0.5, 0.731059, 0.268941], abs=1e-6)


def test_independent_loss_is_what_the_best_linear_prediction_leaves():
    generator = torch.Generator().manual_seed(0)
    deviations = torch.tensor([0.5, 2.0], dtype=torch.float64)
    x = torch.randn(200_000, 2, generator=generator, dtype=torch.float64) * deviations
    noise = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    for time in (0.2, 0.5, 0.9):
        noisy, target = (1 - time) * x + time * noise, noise - x
        slope = (noisy * target).mean(0) / noisy.square().mean(0)
        left = (target - slope * noisy).square().mean()
        times = torch.tensor([time], dtype=torch.float64)
        assert independent_loss(deviations.square(), times).item() == pytest.approx(left.item(), rel=0.01)
    # by hand: s² = 4 and t = 1/2 give 4 / (1/4 · 4 + 1/4)
    assert independent_loss(torch.tensor([4.0]), torch.tensor([0.5])).item() == pytest.approx(3.2)
