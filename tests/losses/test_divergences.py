import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentae.losses.divergences import DIVERGENCES, forward_kl, jeffreys, reverse_kl


def posteriors(*shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_by_hand():
    mean = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    log_variance = torch.tensor([0.0, math.log(4.0)]).reshape(1, 2, 1, 1)
    # forward: ½ μ²; ½ (4 − 1 − log 4). reverse: ½ μ²; ½ (¼ − 1 + log 4)
    assert forward_kl(mean, log_variance).flatten().tolist() == pytest.approx([0.5, 0.5 * (3 - math.log(4))])
    assert reverse_kl(mean, log_variance).flatten().tolist() == pytest.approx(
        [0.5, 0.5 * (math.log(4) - 0.75)]
    )
    assert jeffreys(mean, log_variance).flatten().tolist() == pytest.approx([1.0, 0.5 * 2.25])


def test_equal_torch_distributions():
    mean, log_variance = posteriors(3, 4, 5, 5)
    posterior, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 1.0)
    forward, reverse = kl_divergence(posterior, prior), kl_divergence(prior, posterior)
    torch.testing.assert_close(forward_kl(mean, log_variance), forward)
    torch.testing.assert_close(reverse_kl(mean, log_variance), reverse)
    torch.testing.assert_close(jeffreys(mean, log_variance), forward + reverse)


def test_equal_averages_of_log_ratios():
    mean, log_variance = (torch.tensor(x, dtype=torch.float64).reshape(1, 1, 1, 1) for x in (0.7, -0.6))
    posterior, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    noise = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for divergence, first, second in [(forward_kl, posterior, prior), (reverse_kl, prior, posterior)]:
        draws = first.mean.flatten() + first.stddev.flatten() * noise
        ratios = (first.log_prob(draws) - second.log_prob(draws)).flatten()
        error = 4 * ratios.std().item() / len(noise) ** 0.5
        assert divergence(mean, log_variance).item() == pytest.approx(ratios.mean().item(), abs=error)


@pytest.mark.parametrize("divergence", DIVERGENCES.values())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(divergence, dtype):
    mean = torch.full((1, 1, 1, 2), 3.0, dtype=dtype, requires_grad=True)
    log_variance = torch.tensor([-50.0, 50.0], dtype=dtype).reshape(1, 1, 1, 2).requires_grad_()
    values = divergence(mean, log_variance)
    assert values.dtype == torch.float32
    # as at the ends of the clamp, beyond float16's largest number 65504
    expected = divergence(mean.double(), torch.tensor([-30.0, 20.0]).double().reshape(1, 1, 1, 2))
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=0)
    values.clamp(max=1e4).sum().backward()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES.values())
def test_gradients(divergence):
    assert torch.autograd.gradcheck(divergence, [x.requires_grad_() for x in posteriors(1, 2, 2, 2)])


def test_no_cancellation_near_the_prior():
    log_variance = torch.full((1, 1, 1, 1), 1e-3)
    # ½ (e^x − 1 − x) = x²/4 + x³/12 + …; in float32, e^x − 1 − x would keep two digits
    expected = 1e-6 / 4 + 1e-9 / 12
    assert forward_kl(torch.zeros_like(log_variance), log_variance).item() == pytest.approx(
        expected, rel=1e-3
    )
