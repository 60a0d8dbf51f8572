from types import SimpleNamespace

import pytest
import torch
from torch import nn

from latentae.probe.denoiser import (
    NULL_LABEL,
    DenoiserSize,
    FlowValidation,
    LatentBatch,
    build_denoiser,
    common_token_side,
    count_parameters,
    independent_loss,
    logit_normal_times,
    noisy_latents,
    spread_times,
    velocity,
)

SIZE = DenoiserSize(32, 1)


def test_as_many_tokens_for_each_model():
    assert common_token_side([16, 8], 16) == 8
    assert common_token_side([16, 32], 8) == 8
    assert common_token_side([12, 18], 16) == 6
    for sides in ([3, 8], [1, 4]):
        with pytest.raises(ValueError, match=f"latents of {sides[0]}, {sides[1]} positions a side"):
            common_token_side(sides, 16)


def test_the_first_prediction_is_zero_and_of_the_latents_shape():
    denoiser = build_denoiser((3, 8, 8), 4, SIZE, seed=0)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, NULL_LABEL])
    with torch.no_grad():
        predicted = denoiser(latents, timestep=torch.tensor([10.0, 900.0]), class_labels=labels).sample
    assert predicted.shape == latents.shape
    assert predicted.abs().max() == 0
    assert denoiser.config.patch_size == 2
    assert not denoiser.training


def test_initialised_by_the_seed_alone_without_touching_others_numbers():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build_denoiser((3, 8, 8), 8, SIZE, seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, other = (build_denoiser((3, 8, 8), 8, SIZE, seed=seed) for seed in (1, 2))
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_models_differ_in_the_first_and_last_layer_only():
    few = count_parameters(build_denoiser((4, 8, 8), 8, SIZE, 0))
    many = count_parameters(build_denoiser((8, 16, 16), 8, SIZE, 0))
    inputs = 8 * 2 * 2 - 4
    assert many - few == 2 * inputs * 32 + inputs  # in and out weights, and the biases of the latter


@pytest.mark.parametrize(("field", "value"), [("width", 48), ("width", 0), ("depth", 0), ("largest_side", 0)])
def test_sizes_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        DenoiserSize(**{field: value})


def test_latents_that_cannot_be_cut():
    with pytest.raises(ValueError, match="latents of 8 x 6"):
        build_denoiser((3, 8, 6), 2, SIZE, 0)


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


class LinearDenoiser(nn.Module):
    """The best prediction for latents of independent values of variance s²."""

    def __init__(self, variance):
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(variance))

    def forward(self, noisy, timestep, class_labels):
        t = (timestep / 1000)[:, None, None, None]
        slope = (t - (1 - t) * self.variance) / ((1 - t) ** 2 * self.variance + t**2)
        return SimpleNamespace(sample=slope * noisy)


def held_out(count, variance, side=16):
    latents = torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(0)) * variance**0.5
    return LatentBatch(latents, torch.zeros(count, dtype=torch.int64))


def test_one_for_a_denoiser_that_knows_the_variance_alone():
    validation = FlowValidation(held_out(300, 0.64), torch.tensor([0.64, 0.64]), seed=0)
    found = validation(LinearDenoiser(0.64))
    assert found.relative_loss == pytest.approx(1, abs=0.01)
    expected = independent_loss(torch.tensor([0.64]), validation.times).mean().item()
    assert found.loss == pytest.approx(expected, rel=0.01)
    assert validation(LinearDenoiser(0.1)).relative_loss > 1.1
    assert validation(LinearDenoiser(0.64)) == found  # nothing in it is random


def test_few_images_are_seen_at_many_times():
    validation = FlowValidation(held_out(100, 1.0), torch.ones(2), seed=0)
    assert validation.images.tolist()[98:102] == [98, 99, 0, 1]
    assert len(validation.times) == 300


def test_times_are_spread_like_those_of_the_training():
    times = spread_times(1001, seed=0)
    assert times.median().item() == pytest.approx(0.5)
    assert (times < 0.268941).float().mean().item() == pytest.approx(0.158655, abs=1e-3)  # one deviation
    assert not torch.equal(times, times.sort().values)


def test_no_images():
    with pytest.raises(ValueError, match="no held-out images"):
        FlowValidation(held_out(0, 1.0), torch.ones(2), seed=0)
