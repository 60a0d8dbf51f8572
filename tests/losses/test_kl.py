import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentae.losses.kl import KLRegulariser, kl_to_standard_normal


def test_by_hand():
    mean = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    log_variance = torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]]).reshape(2, 2, 1, 1)
    # ½ μ² = ½; ½ (4 − 1 − log 4)
    expected = [0.5, 0.5 * (3 - math.log(4.0))]
    assert kl_to_standard_normal(mean, log_variance).tolist() == pytest.approx(expected)


def test_equals_torch_distributions():
    mean, log_variance = torch.randn(
        2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_half_precision_is_summed_in_float32():
    mean = torch.full((1, 4, 64, 64), 0.1, dtype=torch.bfloat16)
    value = kl_to_standard_normal(mean, torch.zeros_like(mean))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.5 * float(mean.flatten()[0]) ** 2 * mean.numel(), rel=1e-4)


def test_the_balance_is_latent_diffusions():
    """ldm: loss = Σ|x − x̂| / B + 1e-6 · KL summed over latents / B. Ours is the same divided by C·H·W."""
    generator = torch.Generator().manual_seed(0)
    images, sample = torch.rand(2, 2, 3, 16, 16, generator=generator, dtype=torch.float64)
    mean, log_variance = torch.randn(2, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
    summed_kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
    ldm = ((images - sample).abs().sum() + 1e-6 * summed_kl) / 2

    output = SimpleNamespace(sample=sample, mean=mean, log_variance=log_variance)
    ours = (images - sample).abs().mean() + KLRegulariser(1e-6)(output)["kl"]
    assert ours.item() * (3 * 16 * 16) == pytest.approx(ldm.item(), rel=1e-12)
