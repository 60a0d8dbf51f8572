from types import SimpleNamespace

import pytest
import torch

from latentae.losses.divergences import forward_kl, reverse_kl
from latentae.losses.free_bits import FreeBits
from latentae.losses.kl import KLRegulariser
from latentae.losses.kl_schedule import LinearWarmup
from latentae.losses.likelihood import GaussianLikelihood
from latentae.losses.objective import ReconstructionObjective
from latentae.losses.reconstruction import l1, l2


def output_of(mean, log_variance, sample):
    return SimpleNamespace(mean=mean, log_variance=log_variance, sample=sample)


@pytest.fixture
def batch():
    """Two images of 3·16·16 values, and an output with 4·4·4 latents an image, float64."""
    generator = torch.Generator().manual_seed(0)
    images, sample = torch.rand(2, 2, 3, 16, 16, generator=generator, dtype=torch.float64)
    mean, log_variance = torch.randn(2, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
    return images, output_of(*(x.requires_grad_() for x in (mean, log_variance, sample)))


def gradients(loss, output):
    return torch.autograd.grad(loss, [output.mean, output.log_variance, output.sample])


def test_the_balance_is_latent_diffusions(batch):
    """ldm: Σ|x − x̂| / B + 1e-6 · ΣKL / B. Ours is the same divided by C·H·W, gradients too."""
    images, output = batch
    mean, log_variance = output.mean, output.log_variance
    summed_kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
    ldm = (images - output.sample).abs().sum() / 2 + 1e-6 * summed_kl / 2

    reconstruction, _ = ReconstructionObjective(l1)(output.sample, images)
    ours = reconstruction + KLRegulariser(1e-6)(output)["kl"]
    values = 3 * 16 * 16
    assert ours.item() * values == pytest.approx(ldm.item(), rel=1e-12)
    for own, theirs in zip(gradients(ours, output), gradients(ldm, output), strict=True):
        torch.testing.assert_close(own * values, theirs, rtol=1e-10, atol=1e-20)


def test_l2_under_a_weight_is_a_gaussian_of_half_that_variance(batch):
    """‖x − x̂‖²/(2c) + KL against ‖x − x̂‖² + λ KL with λ = 2c: the same gradients, times λ."""
    images, output = batch
    weight = 0.06
    variance = torch.tensor(weight / 2, dtype=torch.float64)
    likelihood = GaussianLikelihood(variance.log().item(), learned=False).double()
    elbo_loss = likelihood(output.sample, images).mean() + KLRegulariser(1.0)(output)["kl"]
    plain_loss = l2(output.sample, images).mean() + KLRegulariser(weight)(output)["kl"]
    for exact, plain in zip(gradients(elbo_loss, output), gradients(plain_loss, output), strict=True):
        torch.testing.assert_close(weight * exact, plain, rtol=1e-6, atol=1e-12)


def test_the_schedule_multiplies_the_weight(batch):
    _, output = batch
    regulariser = KLRegulariser(0.5, schedule=LinearWarmup(10))
    whole = KLRegulariser(0.5)(output)["kl"].item()
    assert [regulariser.weight_at(step) for step in (0, 4, 10, 50)] == [0.0, 0.2, 0.5, 0.5]
    assert [regulariser(output, step)["kl"].item() for step in (0, 4, 50)] == pytest.approx(
        [0.0, 0.4 * whole, whole]
    )


def test_another_divergence(batch):
    _, output = batch
    expected = reverse_kl(output.mean, output.log_variance).sum() / 2 / (3 * 16 * 16)
    actual = KLRegulariser(1.0, divergence=reverse_kl)(output)["kl"]
    assert actual.item() == pytest.approx(expected.item())


def test_free_bits_are_not_paid_for(batch):
    _, output = batch
    paid = forward_kl(output.mean, output.log_variance).sum().item() / 2
    expected = max(paid, 1000.0) * 0.1 / (3 * 16 * 16)
    assert paid < 1000
    loss = KLRegulariser(0.1, free_bits=FreeBits(1000.0, "image"))(output)["kl"]
    assert loss.item() == pytest.approx(expected)
    assert not any(
        gradient.any() for gradient in torch.autograd.grad(loss, [output.mean, output.log_variance])
    )
