import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from latentae.losses.divergences import reverse_kl
from latentae.losses.elbo import PosteriorReport, bits_per_dimension
from latentae.losses.free_bits import FreeBits
from latentae.losses.kl import KLRegulariser
from latentae.losses.kl_schedule import LinearWarmup
from latentae.losses.likelihood import GaussianLikelihood


def test_bits_per_dimension_by_hand():
    # A uniform density on [−1 − 1/255, 1 + 1/255], the 256 bins of 8-bit images: 8 bits a value.
    width = 2 + 2 / 255
    elbo = torch.tensor(-12 * math.log(width), dtype=torch.float64)
    assert bits_per_dimension(elbo, 12).item() == pytest.approx(8.0, abs=1e-12)
    # In steps of their own width, densities are probabilities.
    assert bits_per_dimension(torch.tensor(-12 * math.log(2.0)), 12, bin_width=1.0).item() == pytest.approx(1)


def test_bits_are_those_of_the_discretised_density():
    """−log₂ of a Gaussian's probability of each value's own bin, averaged over values drawn from it."""
    deviation = 0.1
    density = Normal(torch.tensor(0.0, dtype=torch.float64), deviation)
    levels = torch.arange(-255, 256, 2, dtype=torch.float64) / 255
    masses = density.cdf(levels + 1 / 255) - density.cdf(levels - 1 / 255)
    exact = torch.special.entr(masses).sum() / math.log(2)
    likelihood = GaussianLikelihood(2 * math.log(deviation)).double()
    nll = (masses * likelihood(torch.zeros(256, 1, 1, 1), levels[:, None, None, None])).sum()
    assert bits_per_dimension(-nll, 1).item() == pytest.approx(exact.item(), abs=1e-3)


def output_of(mean, log_variance, values=12):
    sample = torch.zeros(len(mean), values, 1, 1)
    shape = (len(mean), -1, 1, 1)
    return SimpleNamespace(mean=mean.reshape(shape), log_variance=log_variance.reshape(shape), sample=sample)


def test_report_by_hand():
    # Two images with two latents: KL of ½ (1 + 4) and 0, 1.25 on average.
    output = output_of(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
    regulariser = KLRegulariser(0.5, schedule=LinearWarmup(10), divergence=reverse_kl)
    terms = {"reconstruction": torch.tensor(-0.25)}
    report = PosteriorReport(regulariser, likelihood=True)(output, terms, 4)
    assert {name: value.item() for name, value in report.items()} == pytest.approx(
        {
            "kl_nats": 1.25,
            "kl_nats_per_latent": 0.625,
            "kl_weight": 0.2,
            "elbo_nats": 12 * 0.25 - 1.25,
            "bits_per_dimension": -1.75 / 12 / math.log(2) + math.log2(127.5),
        }
    )


def test_there_is_no_elbo_without_a_likelihood():
    output = output_of(torch.ones(1, 2), torch.zeros(1, 2))
    report = PosteriorReport(KLRegulariser(1.0), likelihood=False)(output, {}, 0)
    assert set(report) == {"kl_nats", "kl_nats_per_latent", "kl_weight"}


def test_groups_below_the_free_bits_are_counted():
    output = output_of(torch.tensor([[1.0, 2.0, 0.1]]), torch.zeros(1, 3))
    regulariser = KLRegulariser(1.0, free_bits=FreeBits(0.6))
    report = PosteriorReport(regulariser, likelihood=False)(output, {}, 0)
    assert report["kl_free_groups"].item() == 2
    assert report["kl_nats"].item() == pytest.approx(0.5 * (1 + 4 + 0.01))


def test_elbo_is_tight_at_the_true_posterior():
    """x = A z + noise, z ~ N(0, I) with orthogonal columns of A: the posterior is known and diagonal."""
    generator = torch.Generator().manual_seed(0)
    noise_variance, draws = 0.3, 20_000
    matrix = torch.zeros(5, 2, dtype=torch.float64)
    matrix[:2, 0] = torch.tensor([0.8, -0.6])
    matrix[2:, 1] = torch.tensor([1.0, 2.0, -2.0]) / 3
    image = torch.tensor([0.4, 0.3, -1.0, 0.5, 0.2], dtype=torch.float64)
    covariance = matrix @ matrix.T + noise_variance * torch.eye(5, dtype=torch.float64)
    evidence = MultivariateNormal(torch.zeros(5, dtype=torch.float64), covariance).log_prob(image).item()

    variance = noise_variance / (1 + noise_variance)  # of columns of unit length
    mean = (matrix.T @ image / (1 + noise_variance)).expand(draws, 2)
    log_variance = torch.full_like(mean, math.log(variance))
    latents = mean + variance**0.5 * torch.randn(draws, 2, dtype=torch.float64, generator=generator)
    reconstruction = (latents @ matrix.T)[:, :, None, None]
    likelihood = GaussianLikelihood(math.log(noise_variance)).double()
    nll = likelihood(reconstruction, image[None, :, None, None].expand_as(reconstruction)).mean().detach()
    report = PosteriorReport(KLRegulariser(1.0), likelihood=True)

    elbo = report(output_of(mean, log_variance, values=5), {"reconstruction": nll}, 0)["elbo_nats"].item()
    assert elbo == pytest.approx(evidence, abs=0.03)
    # and a bound elsewhere, here at a posterior that is the prior
    latents = torch.randn(draws, 2, dtype=torch.float64, generator=generator)
    reconstruction = (latents @ matrix.T)[:, :, None, None]
    nll = likelihood(reconstruction, image[None, :, None, None].expand_as(reconstruction)).mean().detach()
    prior = output_of(torch.zeros_like(mean), torch.zeros_like(mean), values=5)
    assert report(prior, {"reconstruction": nll}, 0)["elbo_nats"].item() < evidence - 0.5
