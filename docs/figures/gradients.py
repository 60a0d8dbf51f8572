"""The variance of two estimators of the same gradient: reparametrisation and score function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from digits import DigitVAE, open_digits, train
from drawing import Drawing, draw, main, new_figure
from torch import Tensor

from latentae.losses.reconstruction import GaussianLikelihood
from latentae.report.figures import COLOURS

_LATENT_SIZE = 8
_IMAGES = 32
ESTIMATORS = {
    "score": "score function",
    "baseline": "score function, with a baseline",
    "reparametrised": "reparametrisation",
}


@dataclass(frozen=True, eq=False)
class Estimates:
    """Single-sample estimates [N, B, 2d] of d/d(mean, log-variance) E_q log p(x|z), by estimator."""

    by_name: dict[str, Tensor]

    def variance(self, name: str) -> float:
        """Returns the variance of one estimate, summed over the 2d parameters, the mean over images."""
        return self.by_name[name].var(dim=0).sum(dim=-1).mean().item()

    def mean(self, name: str) -> Tensor:
        """Returns the mean estimate [B, 2d]."""
        return self.by_name[name].mean(dim=0)


def estimate(model: DigitVAE, images: Tensor, samples: int) -> Estimates:
    """Draws ``samples`` estimates of each kind, from the same noise.

    Reparametrisation: z = mean + std * e, so d/dmean = g and d/dlog-variance = g * std * e / 2, with g the
    gradient of log p(x|z) at z. Score function: (f - b) d log q(z) / d(.) with f = log p(x|z), which needs no
    gradient of f. The baseline b is the mean of the other samples.
    """
    with torch.no_grad():
        mean, log_variance = model.encode(images)
        std = (0.5 * log_variance).exp()
        noise = torch.randn(samples, *mean.shape)
    z = (mean + std * noise).flatten(0, 1).requires_grad_()
    repeated = images.repeat(samples, 1, 1, 1)
    values = model.log_likelihood(z, repeated)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    gradient, f = gradient.view_as(noise), values.detach().view(samples, -1, 1, 1, 1)
    others = (f.sum(dim=0) - f) / (samples - 1)
    score = torch.cat([noise / std, 0.5 * (noise.square() - 1)], dim=2)
    found = {
        "score": f * score,
        "baseline": (f - others) * score,
        "reparametrised": torch.cat([gradient, 0.5 * gradient * std * noise], dim=2),
    }
    return Estimates({name: value.flatten(2) for name, value in found.items()})


@draw
def make(seed: int = 0, steps: int = 3000, samples: int = 2000) -> Drawing:
    """Draws the variances at three moments of a training, and how they fall with the samples averaged."""
    training, held_out = open_digits()
    images = held_out.images[:_IMAGES]
    torch.manual_seed(seed)
    model = DigitVAE(_LATENT_SIZE, GaussianLikelihood())
    moments = {"untrained": 0, f"{steps // 10} steps": steps // 10, f"{steps} steps": steps - steps // 10}
    numbers: dict[str, float] = {}
    figure = new_figure(9.2, 3.2)
    bars, lines = figure.subplots(1, 2)
    for place, further in enumerate(moments.values()):
        if further:
            train(model, training.images, further)
        found = estimate(model, images, samples)
        for number, (name, label) in enumerate(ESTIMATORS.items()):
            variance = found.variance(name)
            bars.bar(
                place + 0.27 * (number - 1),
                variance,
                0.25,
                color=COLOURS[number],
                label="" if place else label,
            )
            numbers[f"{name}_variance_{place}"] = variance
    bars.set_yscale("log")
    bars.set_xticks(range(len(moments)), list(moments))
    bars.set_ylabel("variance of one estimate")
    bars.legend(loc="upper left")
    low, high = bars.get_ylim()
    bars.set_ylim(low, high * 300)
    # The error of an average of K estimates, relative to the gradient
    exact = found.mean("reparametrised").norm(dim=-1).mean().item()
    counts = torch.tensor([1, 10, 100, 1000, 10000, 100000])
    for number, (name, label) in enumerate(ESTIMATORS.items()):
        errors = (found.variance(name) / counts).sqrt() / exact
        lines.loglog(counts, errors, ".-", color=COLOURS[number], label=label)
        numbers[f"{name}_samples_for_10_percent"] = found.variance(name) / (0.1 * exact) ** 2
    lines.axhline(0.1, color="black", linewidth=0.8, linestyle=":")
    lines.set(xlabel="samples averaged", ylabel="error / length of the gradient")
    difference = (found.mean("baseline") - found.mean("reparametrised")).norm(dim=-1).mean().item()
    return Drawing(figure, numbers | {"gradient_norm": exact, "difference_of_means": difference})


if __name__ == "__main__":
    main(__doc__, {"gradients": make})
