"""KL(q || p), KL(p || q) and Jeffreys' divergence: functions, fits, and the posteriors that each makes."""

from __future__ import annotations

import math

import torch
from digits import DigitVAE, open_digits, train
from drawing import Drawing, by_digit, draw, main, new_figure
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from torch import Tensor
from torch.distributions import Normal

from latentae.losses.kl import DIVERGENCES, forward_kl
from latentae.losses.reconstruction import GaussianLikelihood, l2
from latentae.report.figures import COLOURS, INK

VARIANCE = 0.1
"""Of the decoder; fixed, so that only the divergence differs."""

NAMES = {"forward": "KL(q || p)", "reverse": "KL(p || q)", "jeffreys": "Jeffreys, the sum"}
_ELLIPSES = 150


def fit_mixture(name: str, steps: int = 600) -> tuple[float, float]:
    """Returns mean and deviation of the Gaussian q that is nearest to a mixture of two, by a divergence."""
    x = torch.linspace(-6, 6, 1201)
    log_target = _log_mixture(x)
    parameters = torch.tensor([0.5, 0.0], requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=0.03)
    for _ in range(steps):
        log_q = Normal(parameters[0], parameters[1].exp()).log_prob(x)
        forward = (log_q.exp() * (log_q - log_target)).sum() * (x[1] - x[0])
        reverse = (log_target.exp() * (log_target - log_q)).sum() * (x[1] - x[0])
        loss = {"forward": forward, "reverse": reverse, "jeffreys": forward + reverse}[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return parameters[0].item(), parameters[1].exp().item()


def _log_mixture(x: Tensor) -> Tensor:
    parts = torch.stack([Normal(centre, 0.4).log_prob(x) for centre in (-2.0, 2.0)])
    return parts.logsumexp(dim=0) - math.log(2)


@draw
def make(seed: int = 0, steps: int = 3000, divergences: tuple[str, ...] = tuple(NAMES)) -> Drawing:
    """Draws the divergences, Gaussians fitted by them, and the posteriors of VAEs trained with them."""
    figure = new_figure(9.2, 6.2)
    grid = figure.add_gridspec(2, 6, height_ratios=(0.8, 1))
    _draw_functions(figure.add_subplot(grid[0, :3]))
    numbers = _draw_fits(figure.add_subplot(grid[0, 3:]))
    for place, name in enumerate(divergences):
        axes = figure.add_subplot(grid[1, 2 * place : 2 * place + 2])
        found = _draw_posteriors(axes, name, seed, steps)
        numbers |= {f"{name}_{key}": value for key, value in found.items()}
        axes.set_title(NAMES[name], loc="left")
    return Drawing(figure, numbers)


def _draw_functions(axes: Axes) -> None:
    std = torch.logspace(-1, 0.7, 100)
    for name, colour in zip(NAMES, COLOURS, strict=False):
        values = DIVERGENCES[name](torch.zeros_like(std), 2 * std.log())
        axes.semilogx(std, values, color=colour, label=NAMES[name])
    axes.set(xlabel="deviation of q (mean 0)", ylabel="nats", ylim=(-0.2, 10))
    axes.set_title("divergence of q = N(0, σ²) and p = N(0, 1)", loc="left")
    axes.legend(loc="upper center")


def _draw_fits(axes: Axes) -> dict[str, float]:
    x = torch.linspace(-5, 5, 401)
    axes.fill_between(x, _log_mixture(x).exp(), color="#dee2e8", label="p")
    numbers = {}
    for name, colour in zip(NAMES, COLOURS, strict=False):
        mean, std = fit_mixture(name)
        numbers |= {f"fit_{name}_mean": mean, f"fit_{name}_std": std}
        axes.plot(x, Normal(mean, std).log_prob(x).exp(), color=colour, label=NAMES[name])
    axes.set_title("the nearest Gaussian q to a p with two modes", loc="left")
    axes.legend(loc="upper left")
    return numbers


def _draw_posteriors(axes: Axes, name: str, seed: int, steps: int) -> dict[str, float]:
    training, held_out = open_digits()
    torch.manual_seed(seed)
    likelihood = GaussianLikelihood(math.log(VARIANCE), learned=False)
    model = train(DigitVAE(2, likelihood), training.images, steps, divergence=DIVERGENCES[name])
    with torch.no_grad():
        mean, log_variance = model.encode(held_out.images)
        error = l2(model.decoder(mean), held_out.images).mean().item()
    std = (0.5 * log_variance).exp()
    by_digit(axes, mean.flatten(1), held_out.labels)
    for centre, width in zip(mean.flatten(1)[:_ELLIPSES], std.flatten(1), strict=False):
        axes.add_patch(Ellipse(centre.tolist(), *(2 * width).tolist(), fill=False, color=INK, lw=0.3))
    axes.set_xlabel("ellipses: one posterior deviation")
    return {
        "posterior_std": std.mean().item(),
        "mean_std": mean.std(dim=0).mean().item(),
        "kl_nats": forward_kl(mean, log_variance).sum(dim=(1, 2, 3)).mean().item(),
        "squared_error": error,
    }


if __name__ == "__main__":
    main(__doc__, {"divergences": make})
