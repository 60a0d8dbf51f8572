"""What the KL weight does, from shrinking variances to posterior collapse.

With the squared error summed over an image, a KL weight of w has the gradients, times w, of a Gaussian
decoder of the variance c = w / 2 with a KL weight of 1. The sweep is therefore one over c, and a learned c
has a place in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from digits import PIXELS, DigitVAE, open_digits, sample, train
from drawing import Drawing, draw, label_rows, main, new_figure, show_images
from torch import Tensor

from latentae.losses.kl import forward_kl
from latentae.losses.reconstruction import GaussianLikelihood, l2
from latentae.report.figures import COLOURS

LATENT_SIZE = 8
WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 1.0, 3.0, 10.0)
_SHOWN = (0.003, 0.1, 1.0, 10.0)
_COLUMNS = 9
_SAMPLES = 16
_LOW_START, _HIGH_START = 0.02, 2.0  # twice the variance from which it is learned


@dataclass(frozen=True, eq=False)
class Measured:
    """A VAE of the sweep, measured on the held-out digits.

    Attributes:
        squared_error: per pixel, of reconstructions from samples of the posterior.
        training_error: the same on the digits that were trained on.
        kl: [d] in nats per image of each latent, the largest first.
        std: [d] the mean of each latent's posterior deviation, in the same order.
        reconstructions, generated: images of the first digits, and of N(0, I).
    """

    variance: float
    squared_error: float
    training_error: float
    kl: Tensor
    std: Tensor
    reconstructions: Tensor
    generated: Tensor

    def elbo(self, variance: float | None = None) -> float:
        """Returns the ELBO in nats per image with a decoder of this variance; None: the model's own."""
        c = variance or self.variance
        log_likelihood = -0.5 * PIXELS * (self.squared_error / c + math.log(2 * math.pi * c))
        return log_likelihood - self.kl.sum().item()


def largest_variance() -> float:
    """Returns the variance of the digits along their first principal axis."""
    training, _ = open_digits()
    return torch.linalg.eigvalsh(training.images.flatten(1).T.cov())[-1].item()


@cache
def measure(seed: int, steps: int, weight: float, learned: bool = False) -> Measured:
    """Trains a VAE with this KL weight and measures it; a learned variance only starts there."""
    training, held_out = open_digits()
    torch.manual_seed(seed)
    likelihood = GaussianLikelihood(math.log(weight / 2), learned=learned)
    model = train(DigitVAE(LATENT_SIZE, likelihood), training.images, steps)
    with torch.no_grad():
        mean, log_variance = model.encode(held_out.images)
        kl = forward_kl(mean, log_variance).mean(dim=0).flatten()
        order = kl.argsort(descending=True)

        return Measured(
            variance=likelihood.log_dispersion.exp().item(),
            squared_error=_squared_error(model, held_out.images),
            kl=kl[order],
            std=(0.5 * log_variance).exp().mean(dim=0).flatten()[order],
            reconstructions=model.decoder(mean[:_COLUMNS]),
            generated=model.decoder(torch.randn(_COLUMNS, LATENT_SIZE, 1, 1)),
            training_error=_squared_error(model, training.images),
        )


def _squared_error(model: DigitVAE, images: Tensor) -> float:
    """Returns the mean squared error per pixel of reconstructions from samples of the posterior."""
    posterior = model.encode(images)
    errors = [l2(model.decoder(sample(*posterior)), images).mean() for _ in range(_SAMPLES)]
    return torch.stack(errors).mean().item()


@draw
def make_sweep(seed: int = 0, steps: int = 2000, weights: tuple[float, ...] = WEIGHTS) -> Drawing:
    """Draws error, KL divergence and posterior deviations over the KL weight, and images at some weights."""
    models = {weight: measure(seed, steps, weight) for weight in weights}
    shown = [weight for weight in _SHOWN if weight in models]
    figure = new_figure(9.2, 5.6)
    grid = figure.add_gridspec(2, 4, height_ratios=(1.1, 1))
    rate, deviations = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2:])
    # What is kept, and what it costs
    kls = [model.kl.sum().item() for model in models.values()]
    rate.semilogx(weights, kls, "o-", color=COLOURS[0])
    rate.set_ylabel("KL(q || p), nats per image", color=COLOURS[0])
    error = rate.twinx()
    error.semilogx(weights, [model.squared_error for model in models.values()], "s--", color=COLOURS[1])
    error.set_ylabel("squared error per pixel", color=COLOURS[1])
    rate.set_xlabel("KL weight w")
    # The latents, one after the other
    std = torch.stack([model.std for model in models.values()])
    for number in range(LATENT_SIZE):
        deviations.loglog(weights, std[:, number], ".-", color=COLOURS[number])
    deviations.axhline(1, color="black", linewidth=0.8, linestyle=":")
    deviations.set(xlabel="KL weight w", ylabel="posterior deviation of each latent")
    # Images
    for place, (title, images) in enumerate(
        {
            "reconstructions": [models[weight].reconstructions for weight in shown],
            "decoded samples of N(0, I)": [models[weight].generated for weight in shown],
        }.items()
    ):
        axes = figure.add_subplot(grid[1, 2 * place : 2 * place + 2])
        show_images(axes, torch.cat(images), _COLUMNS, title)
        label_rows(axes, [f"w = {weight:g}" for weight in shown])
    active = {weight: int((model.kl > 0.1).sum()) for weight, model in models.items()}
    numbers = {f"kl_at_{w:g}": kl for w, kl in zip(weights, kls, strict=True)}
    numbers["largest_variance"] = largest_variance()
    numbers |= {f"squared_error_at_{w:g}": model.squared_error for w, model in models.items()}
    numbers |= {f"active_latents_at_{w:g}": count for w, count in active.items()}
    numbers |= {f"largest_std_at_{w:g}": model.std.max().item() for w, model in models.items()}
    numbers |= {f"smallest_std_at_{w:g}": model.std.min().item() for w, model in models.items()}
    return Drawing(figure, numbers)


@draw
def make_variance(seed: int = 0, steps: int = 2000, weights: tuple[float, ...] = WEIGHTS) -> Drawing:
    """Draws the ELBO over the KL weight, and where the run with a learned variance stands."""
    models = {weight: measure(seed, steps, weight) for weight in weights}
    learned = measure(seed, steps, _LOW_START, learned=True)
    from_above = measure(seed, steps, _HIGH_START, learned=True)
    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    own = [model.elbo() for model in models.values()]
    best = [model.elbo(model.squared_error) for model in models.values()]
    axes.semilogx(weights, own, "o-", color=COLOURS[0], label="variance c = w / 2")
    axes.semilogx(weights, best, "s--", color=COLOURS[2], label="same model, c = its squared error")
    place = 2 * learned.variance
    axes.plot([place], [learned.elbo()], "*", color=COLOURS[1], markersize=13, label="c learned, at w = 2c")
    axes.set(xlabel="KL weight w", ylabel="ELBO, nats per image", ylim=(min(best) - 5, max(own) + 25))
    axes.legend(loc="upper right")
    numbers = {f"elbo_at_{w:g}": value for w, value in zip(weights, own, strict=True)}
    numbers |= {
        "learned_variance": learned.variance,
        "learned_as_weight": place,
        "learned_squared_error": learned.squared_error,
        "learned_training_error": learned.training_error,
        "learned_elbo": learned.elbo(),
        "learned_from_above_elbo": from_above.elbo(),
        "learned_from_above_variance": from_above.variance,
        "learned_from_above_kl": from_above.kl.sum().item(),
        "learned_kl": learned.kl.sum().item(),
        "best_swept_elbo": max(own),
        "best_swept_weight": weights[own.index(max(own))],
    }
    return Drawing(figure, numbers)


if __name__ == "__main__":
    main(__doc__, {"kl_weight": make_sweep, "learned_variance": make_variance})
