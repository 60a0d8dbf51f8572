"""Why a plain autoencoder is no generative model: its 2-d latent space beside that of a VAE."""

from __future__ import annotations

import torch
from digits import DigitVAE, class_shares, open_digits, train
from drawing import Drawing, by_digit, draw, main, new_figure, show_images
from matplotlib.patches import Circle

from latentae.losses.reconstruction import GaussianLikelihood
from latentae.report.figures import INK

_ROWS = 7
_SAMPLES = 2000
_RADIUS = 2.448  # of the circle that holds 95 % of N(0, I)
_NAMES = {"autoencoder": "plain autoencoder", "vae": "VAE"}


@draw
@torch.no_grad()
def make(seed: int = 0, steps: int = 4000) -> Drawing:
    """Trains both models; draws their latents, reconstructions, and images decoded from N(0, I)."""
    training, held_out = open_digits()
    figure = new_figure(9.2, 6.0)
    axes = figure.subplots(2, 3, width_ratios=(1.25, 1, 1))
    numbers: dict[str, float] = {}
    for row, (name, weight) in zip(axes, (("autoencoder", 0.0), ("vae", 1.0)), strict=True):
        torch.manual_seed(seed)
        model = DigitVAE(2, GaussianLikelihood())
        with torch.enable_grad():
            train(model, training.images, steps, kl_weight=weight)
        means, _ = model.encode(training.images)
        shown = held_out.images[: _ROWS**2]
        reconstructed = model.decoder(model.encode(held_out.images)[0])
        generated = model.decoder(torch.randn(_SAMPLES, 2, 1, 1))
        shares = class_shares(generated, training)
        # The latents, and where N(0, I) has 95 % of its samples.
        by_digit(row[0], means.flatten(1), training.labels)
        row[0].add_patch(Circle((0, 0), _RADIUS, fill=False, color=INK, linestyle="--", zorder=3))
        row[0].set_title(f"{_NAMES[name]}; dashed: N(0, I)", loc="left")
        show_images(row[1], reconstructed[: len(shown)], _ROWS, "held-out digits, decoded")
        show_images(row[2], generated[: _ROWS**2], _ROWS, "decoded samples of N(0, I)")
        numbers |= {
            f"{name}_latent_std": means.std(dim=0).mean().item(),
            f"{name}_reconstruction_error": (reconstructed - held_out.images).square().mean().sqrt().item(),
            f"{name}_rarest_class": shares.min().item(),
            f"{name}_commonest_class": shares.max().item(),
            f"{name}_latents_inside": (means.flatten(1).norm(dim=1) < _RADIUS).float().mean().item(),
        }
    axes[0, 0].legend(markerscale=3, ncols=2, loc="upper left", handletextpad=0, columnspacing=0.6)
    return Drawing(figure, numbers)


if __name__ == "__main__":
    main(__doc__, {"latent_spaces": make})
