"""Decoded noise: of the prior N(0, I), and of a Gaussian fitted to real latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentae.latents.inspection.channels import LatentGaussian, normal_noise
from latentae.latents.inspection.decoding import Autoencoder, decode_latents
from latentae.models import KLVAE
from latentae.report.grids import Figure, image_grid

ABOUT_PRIOR = (
    "N(0, I) is the prior of the KL term, in raw latents; where that term's weight is tiny, as in latent "
    "diffusion, latents lie elsewhere, and the images show how far. The scaled row is N(0, I) in a "
    "denoiser's scale, taken back by from_latents. "
)
ABOUT_FITTED = (
    "The fitted Gaussian has the mean and covariance over channels of real latents. Each position is drawn "
    "by itself: neighbours are not alike, so there are colours and textures without shapes. What is missing "
    "for an image is what a denoiser has to learn."
)


@dataclass(frozen=True, eq=False)
class LatentSamples:
    """Decoded noise of several distributions; column i has the same noise in every row.

    Attributes:
        images: name of the distribution → [count, C, H, W] in about [−1, 1], on the CPU.
    """

    images: dict[str, Tensor]

    @property
    def saturated(self) -> dict[str, float]:
        """The share of values outside [−1, 1], the range of images, of each distribution."""
        return {name: (images.abs() > 1).double().mean().item() for name, images in self.images.items()}

    def figure(self) -> Figure:
        """Draws one row per distribution."""
        saturated = self.saturated
        rows = [f"{name}\n{100 * saturated[name]:.0f} % clipped" for name in self.images]
        return image_grid("Decoded noise", list(self.images.values()), rows=rows)

    def numbers(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {"share_outside_of_range": self.saturated}


def sample_prior(
    model: Autoencoder,
    count: int,
    latents_shape: tuple[int, int, int],
    *,
    fitted: LatentGaussian | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> LatentSamples:
    """Decodes N(0, I), the prior of a KL-VAE's KL term, and beside it a fitted Gaussian.

    Raw latents are drawn, without scale or shift. A calibrated model has its latents' mean folded into its
    weights, and the prior lies around that mean then. Where ``scaling_factor`` is known there is also a row
    of N(0, I) through ``from_latents``, where a denoiser starts.

    Args:
        model: a KL-VAE, in eval mode.
        count: samples of each.
        latents_shape: (c, h, w), such as ``model.latents_shape(images)``.
        fitted: a Gaussian from ``fit_gaussian``; None leaves its row out.
        seed: sample i is a function of (seed, i).
        size: (H, W) to crop the images to.
        batch_size: latents decoded at a time.

    Raises:
        ValueError: a model without such a prior, or a count below one.
    """
    if not isinstance(model, KLVAE):
        raise ValueError(
            f"sample_prior decodes N(0, I), the prior of a KL-VAE, and a {type(model).__name__} has none: "
            "train a prior over its indices and decode them with decode_indices, or see sample_gaussian"
        )
    _check_count(count)
    noise = normal_noise(count, latents_shape, seed)
    decoding: Any = {"size": size, "batch_size": batch_size}
    images = {"N(0, I)": decode_latents(model, noise, **decoding)}
    if model.config.scaling_factor is not None:
        images["N(0, I), scaled"] = decode_latents(model, noise, scaled=True, **decoding)
    if fitted is not None:
        images |= sample_gaussian(model, fitted, count, latents_shape[1:], seed=seed, **decoding).images
    return LatentSamples(images)


def sample_gaussian(
    model: Autoencoder,
    fitted: LatentGaussian,
    count: int,
    latents_size: tuple[int, int],
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> LatentSamples:
    """Decodes samples of a Gaussian fitted to a model's latents; a VQ model quantizes them first.

    Args:
        model: of any kind, in eval mode.
        fitted: from ``fit_gaussian``. Its positions are independent.
        count: samples.
        latents_size: (h, w).
        seed: sample i is a function of (seed, i), with the noise that ``sample_prior`` has.
        size: (H, W) to crop the images to.
        batch_size: latents decoded at a time.

    Raises:
        ValueError: a count below one.
    """
    _check_count(count)
    latents = fitted.sample(count, latents_size, seed)
    return LatentSamples(
        {"fitted Gaussian": decode_latents(model, latents, size=size, batch_size=batch_size)}
    )


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
