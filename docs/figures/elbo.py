"""log p(x) = ELBO + KL(q(z|x) || p(z|x)), checked on a grid of 2-d latents, and tighter bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from digits import PIXELS, DigitVAE, open_digits, train
from drawing import Drawing, draw, main, new_figure, show_images
from matplotlib.axes import Axes
from torch import Tensor
from torch.distributions import Normal

from latentae.losses.kl import forward_kl
from latentae.losses.reconstruction import GaussianLikelihood
from latentae.report.figures import COLOURS

_REACH, _POINTS = 5.0, 301
_COUNTS = (1, 2, 5, 10, 30, 100, 300, 1000)
_IMAGES = 100
_WORST = 3


def latent_grid(points: int = _POINTS) -> tuple[Tensor, float]:
    """Returns the points of a square grid [points^2, 2] around 0, and the area of a cell."""
    axis = torch.linspace(-_REACH, _REACH, points)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


def log_weights(model: DigitVAE, images: Tensor, count: int) -> Tensor:
    """Returns log p(x, z) - log q(z|x) [count, B] for samples z of q: the ELBO is their mean."""
    mean, log_variance = model.encode(images)
    posterior, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    found = []
    for _ in range(count):
        z = posterior.sample()
        density = (prior.log_prob(z) - posterior.log_prob(z)).sum(dim=(1, 2, 3))
        found.append(model.log_likelihood(z, images) + density)
    return torch.stack(found)


def importance_weighted(weights: Tensor, count: int) -> Tensor:
    """Returns log (1/K sum_k w_k), the mean over disjoint sets of K = ``count`` samples, [B].

    Its expectation lies between the ELBO (K = 1) and log p(x), and grows with K (Burda et al. 2016, arXiv
    1509.00519).
    """
    sets = weights[: len(weights) // count * count].unflatten(0, (-1, count))
    return (sets.logsumexp(dim=1) - math.log(count)).mean(dim=0)


def joint_on_grid(model: DigitVAE, images: Tensor, grid: Tensor) -> Tensor:
    """Returns log p(x, z) [B, n] at the grid's points."""
    c = model.likelihood.log_dispersion.exp()
    squares = torch.cdist(images.flatten(1), model.decoder(grid).flatten(1)).square()
    log_likelihood = -0.5 * (squares / c + PIXELS * torch.log(2 * math.pi * c))
    return log_likelihood + Normal(0.0, 1.0).log_prob(grid).sum(dim=1)


def posterior_on_grid(model: DigitVAE, images: Tensor, grid: Tensor) -> Tensor:
    """Returns log q(z|x) [B, n] at the grid's points."""
    mean, log_variance = (part.flatten(1)[:, None] for part in model.encode(images))
    return Normal(mean, (0.5 * log_variance).exp()).log_prob(grid).sum(dim=2)


@dataclass(frozen=True, eq=False)
class Quadrature:
    """What a grid of latents says about some images.

    Attributes:
        evidence: [B] log p(x).
        posterior_mean: [B, 2] of p(z|x).
        gap: [B] KL(q(z|x) || p(z|x)).
    """

    evidence: Tensor
    posterior_mean: Tensor
    gap: Tensor


def integrate(model: DigitVAE, images: Tensor, points: int) -> Quadrature:
    """Computes the true posterior of images on a square grid, and how far q is from it."""
    grid, cell = latent_grid(points)
    joint = joint_on_grid(model, images, grid)
    evidence = joint.logsumexp(dim=1) + math.log(cell)
    log_posterior = joint - evidence[:, None]
    log_q = posterior_on_grid(model, images, grid)
    gap = (log_q.exp() * (log_q - log_posterior)).sum(dim=1) * cell
    return Quadrature(evidence, log_posterior.exp() @ grid * cell, gap)


@draw
@torch.no_grad()
def make(seed: int = 0, steps: int = 4000, points: int = _POINTS, samples: int = 6000) -> Drawing:
    """Trains a VAE of 2-d latents; draws a true posterior beside q, and the bounds over samples."""
    training, held_out = open_digits()
    torch.manual_seed(seed)
    model = DigitVAE(2, GaussianLikelihood())
    with torch.enable_grad():
        train(model, training.images, steps)
    images = training.images[:_IMAGES]
    mean, log_variance = model.encode(images)
    exact = integrate(model, images, points)
    # By sampling: the ELBO, and the importance-weighted bounds.
    weights = log_weights(model, images, samples)
    counts = [count for count in _COUNTS if count <= samples]
    bounds = torch.stack([importance_weighted(weights, count) for count in counts])
    elsewhere = integrate(model, held_out.images[:_IMAGES], points)
    usual = exact.gap.argsort()[:-_WORST]
    # The digit whose posterior q misses most but for a tenth of them.
    chosen = int(exact.gap.argsort()[int(0.9 * len(images))])
    figure = new_figure(9.2, 3.5)
    picture, density, curve = figure.subplots(1, 3, width_ratios=(0.45, 1, 1.2))
    pair = torch.cat([images[chosen : chosen + 1], model.decoder(mean[chosen : chosen + 1])])
    show_images(picture, pair, 1, "digit, decoded mean")
    _draw_posteriors(density, model, images[chosen : chosen + 1], exact.posterior_mean[chosen])
    missing = exact.evidence - bounds
    for gaps, style, colour, name in (
        (missing, "o-", COLOURS[0], f"{len(images)} digits"),
        (missing[:, usual], "s--", COLOURS[1], f"without the worst {_WORST}"),
    ):
        curve.loglog(counts, gaps.mean(dim=1), style, color=colour, label=name)
    curve.set(xlabel="samples K per image", ylabel="log p(x) minus the bound, nats")
    curve.legend()
    elbo = weights.mean(dim=0)
    numbers = {
        "log_p": exact.evidence.mean().item(),
        "elbo": elbo.mean().item(),
        "kl_to_true_posterior": exact.gap.mean().item(),
        "elbo_plus_kl": (elbo + exact.gap).mean().item(),
        "largest_mismatch": (elbo + exact.gap - exact.evidence).abs().max().item(),
        "held_out_kl_to_true_posterior": elsewhere.gap.mean().item(),
        "gap_without_worst": missing[0, usual].mean().item(),
        "gap_without_worst_at_most_samples": missing[-1, usual].mean().item(),
        "share_of_worst": 1 - (exact.gap[usual].sum() / exact.gap.sum()).item(),
        "prior_kl": forward_kl(mean, log_variance).sum(dim=(1, 2, 3)).mean().item(),
    }
    numbers |= {
        f"bound_of_{count}": bound for count, bound in zip(counts, bounds.mean(dim=1).tolist(), strict=True)
    }
    return Drawing(figure, numbers)


def _draw_posteriors(axes: Axes, model: DigitVAE, image: Tensor, centre: Tensor, points: int = 121) -> None:
    """Draws the contours of p(z|x) and q(z|x) of one image [1, 1, 8, 8]."""
    mean, log_variance = (part.flatten() for part in model.encode(image))
    reach = (mean - centre).abs().max().item() / 2 + 5 * (0.5 * log_variance).exp().max().item()
    axis, middle = torch.linspace(-reach, reach, points), (mean + centre) / 2
    grid = torch.cartesian_prod(axis + middle[0], axis + middle[1])
    for density, colour in zip((joint_on_grid, posterior_on_grid), COLOURS, strict=False):
        values = density(model, image, grid).view(points, points).T
        levels = (values.max() - torch.tensor([4.0, 2.0, 0.5])).tolist()
        axes.contour(axis + middle[0], axis + middle[1], values, levels=levels, colors=colour, linestyles="-")
    axes.set_aspect("equal")
    axes.set_title("blue: p(z|x), orange: q(z|x)", loc="left")


if __name__ == "__main__":
    main(__doc__, {"elbo": make})
