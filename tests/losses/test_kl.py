import math
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from latentae.losses.kl import (
    DIVERGENCES,
    Cyclical,
    FreeBits,
    KLRegulariser,
    LinearWarmup,
    PosteriorReport,
    bits_per_dimension,
    constant,
    forward_kl,
    jeffreys,
    reverse_kl,
)
from latentae.losses.reconstruction import GaussianLikelihood, ReconstructionObjective, l1, l2
from tests.processes import run_ranks


def random_posteriors(*shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_divergences_by_hand():
    mean = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    log_variance = torch.tensor([0.0, math.log(4.0)]).reshape(1, 2, 1, 1)
    # forward: ½ μ²; ½ (4 − 1 − log 4). reverse: ½ μ²; ½ (¼ − 1 + log 4)
    assert forward_kl(mean, log_variance).flatten().tolist() == pytest.approx([0.5, 0.5 * (3 - math.log(4))])
    assert reverse_kl(mean, log_variance).flatten().tolist() == pytest.approx(
        [0.5, 0.5 * (math.log(4) - 0.75)]
    )
    assert jeffreys(mean, log_variance).flatten().tolist() == pytest.approx([1.0, 0.5 * 2.25])


def test_equal_torch_distributions():
    mean, log_variance = random_posteriors(3, 4, 5, 5)
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
    assert torch.autograd.gradcheck(divergence, [x.requires_grad_() for x in random_posteriors(1, 2, 2, 2)])


def test_no_cancellation_near_the_prior():
    log_variance = torch.full((1, 1, 1, 1), 1e-3)
    # ½ (e^x − 1 − x) = x²/4 + x³/12 + …; in float32, e^x − 1 − x would keep two digits
    expected = 1e-6 / 4 + 1e-9 / 12
    assert forward_kl(torch.zeros_like(log_variance), log_variance).item() == pytest.approx(
        expected, rel=1e-3
    )


# Two images of two channels: the channels' means over the batch are 1.0 and 6.0 nats.
DIVERGENCE = torch.tensor([[[[0.5, 0.25]], [[2.0, 2.0]]], [[[0.25, 1.0]], [[3.0, 5.0]]]])


@pytest.mark.parametrize(
    ("nats", "per", "paid", "free"),
    [
        (0.5, "channel", 7.0, 0),
        (1.0, "channel", 7.0, 1),
        (2.0, "channel", 2.0 + 6.0, 1),
        (9.0, "channel", 18.0, 2),
        (2.0, "image", 7.0, 0),
        (9.0, "image", 9.0, 1),
    ],
)
def test_free_bits_by_hand(nats, per, paid, free):
    free_bits = FreeBits(nats, per)
    assert free_bits(DIVERGENCE).item() == paid
    assert free_bits.count_free(DIVERGENCE).item() == free


def test_only_what_is_paid_for_has_a_gradient():
    divergence = DIVERGENCE.clone().requires_grad_()
    FreeBits(2.0)(divergence).backward()
    assert divergence.grad[:, 0].eq(0).all()
    assert divergence.grad[:, 1].eq(0.5).all()  # of two images


def free_bits_of_a_rank(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    divergence = DIVERGENCE[rank : rank + 1].clone().requires_grad_()
    free_bits = FreeBits(5.0)
    loss = free_bits(divergence)
    loss.backward()
    found = (loss.detach(), divergence.grad, free_bits.count_free(divergence.detach()))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_free_bits_of_two_ranks_equal_one(tmp_path):
    """By themselves the ranks' second channels have 4 nats, which would be free, and 8."""
    whole = DIVERGENCE.clone().requires_grad_()
    loss = FreeBits(5.0)(whole)
    loss.backward()
    run_ranks(free_bits_of_a_rank, 2, tmp_path)
    (first, first_gradient, first_count), (second, second_gradient, second_count) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    assert ((first + second) / 2).item() == loss.item() == 5.0 + 6.0
    # what DDP makes of it: the mean over ranks
    assert torch.equal(torch.cat([first_gradient, second_gradient]) / 2, whole.grad)
    assert first_count == second_count == 1


def test_constant():
    assert [constant(step) for step in (0, 10**9)] == [1.0, 1.0]


def test_linear_warm_up_by_hand():
    schedule = LinearWarmup(4)
    assert [schedule(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_two_cycles_by_hand():
    schedule = Cyclical(cycle_steps=8, cycles=2, ratio=0.5)
    cycle = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert [schedule(step) for step in range(20)] == [*cycle, *cycle, *[1.0] * 4]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_a_cycle_is_the_papers_formula(ratio):
    """T = 1000 steps in M = 4 cycles; the paper counts steps from t = 1."""
    schedule = Cyclical(cycle_steps=250, cycles=4, ratio=ratio)
    for t in range(1, 1001):
        tau = (t - 1) % (1000 // 4) / (1000 / 4)
        assert schedule(t - 1) == pytest.approx(tau / ratio if tau <= ratio else 1.0)


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


def elbo_output_of(mean, log_variance, values=12):
    sample = torch.zeros(len(mean), values, 1, 1)
    shape = (len(mean), -1, 1, 1)
    return SimpleNamespace(mean=mean.reshape(shape), log_variance=log_variance.reshape(shape), sample=sample)


def test_report_by_hand():
    # Two images with two latents: KL of ½ (1 + 4) and 0, 1.25 on average.
    output = elbo_output_of(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
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
    output = elbo_output_of(torch.ones(1, 2), torch.zeros(1, 2))
    report = PosteriorReport(KLRegulariser(1.0), likelihood=False)(output, {}, 0)
    assert set(report) == {"kl_nats", "kl_nats_per_latent", "kl_weight"}


def test_groups_below_the_free_bits_are_counted():
    output = elbo_output_of(torch.tensor([[1.0, 2.0, 0.1]]), torch.zeros(1, 3))
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

    output = elbo_output_of(mean, log_variance, values=5)
    elbo = report(output, {"reconstruction": nll}, 0)["elbo_nats"].item()
    assert elbo == pytest.approx(evidence, abs=0.03)
    # and a bound elsewhere, here at a posterior that is the prior
    latents = torch.randn(draws, 2, dtype=torch.float64, generator=generator)
    reconstruction = (latents @ matrix.T)[:, :, None, None]
    nll = likelihood(reconstruction, image[None, :, None, None].expand_as(reconstruction)).mean().detach()
    prior = elbo_output_of(torch.zeros_like(mean), torch.zeros_like(mean), values=5)
    assert report(prior, {"reconstruction": nll}, 0)["elbo_nats"].item() < evidence - 0.5
