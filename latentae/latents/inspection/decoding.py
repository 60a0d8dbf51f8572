"""Decoded points of the latent space: interpolations between latents, and one channel moved at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.latents.inspection.channels import LatentGaussian, normal_noise
from latentae.models import KLVAE, VQVAE, ForeignAutoencoder, TinyAutoencoder
from latentae.models.interpolation import angle_between, slerp
from latentae.report.grids import Figure, image_grid

Autoencoder = KLVAE | VQVAE | TinyAutoencoder | ForeignAutoencoder

ABOUT_INTERPOLATION = (
    "Decoded points on the arc between two latents, around the latents' mean: spherical interpolation keeps "
    "them as far from it as real latents are, where a straight line passes too near. The ends are the "
    "reconstructions. Smooth changes without grey or torn images in between speak for the space; a "
    "denoiser does not need them. A VQ model quantizes each point first. The noises are drawn from the "
    "Gaussian fitted to the latents, position by position."
)
ABOUT_TRAVERSAL = (
    "One image's latents decoded with one channel moved, at all positions alike, by multiples of its "
    "standard deviation. The number beside each row is the change of the pixels for one standard deviation. "
    "Rows in which nothing changes are channels that the decoder hardly reads. A VQ model quantizes the "
    "moved latents first."
)


@torch.no_grad()
def decode_latents(
    model: Autoencoder,
    latents: Tensor,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
    scaled: bool = False,
) -> Tensor:
    """Decodes latents [B, c, h, w] to images [B, C, H, W] in float32 on the CPU; VQ models quantize first.

    Args:
        size: (H, W) to crop the images to.
        batch_size: latents at a time.
        scaled: whether the latents are a denoiser's, as ``to_latents`` gives them, and not raw.

    Raises:
        ValueError: the decoder gives values that are not finite.
    """
    parts = []
    for part in latents.to(model.device, model.dtype).split(batch_size):
        images = model.from_latents(part, size=size) if scaled else model.decode(part, size=size).sample
        parts.append(images.float().cpu())
    images = torch.cat(parts)
    check_pixels(images, model)
    return images


def check_pixels(images: Tensor, model: Autoencoder) -> None:
    """Raises ValueError for decoded images that hold NaN or infinite values."""
    finite = images.isfinite()
    if not bool(finite.all()):
        raise ValueError(
            f"{int((~finite).sum())} of {images.numel()} values that the decoder gives are not finite in "
            f"{model.dtype}: its weights are damaged, its training diverged, or they overflow in this dtype"
        )


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Decoded points on the arcs between pairs of latents.

    Attributes:
        weights: [steps] from 0, the first, to 1, the second.
        images: [pairs, steps, C, H, W] in about [−1, 1], on the CPU.
        norms: [pairs, steps] Euclidean norms of the latents, from the centre of the arcs.
        angles: [pairs] between the two ends, in degrees.
    """

    weights: Tensor
    images: Tensor
    norms: Tensor
    angles: Tensor

    def figure(self, labels: list[str] | None = None, alpha: bool = False) -> Figure:
        """Draws one row per pair, with its angle and its label. ``alpha``: see ``image_grid``."""
        labels = labels or [f"pair {number + 1}" for number in range(len(self.images))]
        named = [f"{label}\n{angle:.0f} degrees" for label, angle in zip(labels, self.angles, strict=True)]
        columns = [f"{weight:.2f}" for weight in self.weights.tolist()]
        names: Any = {"rows": named, "columns": columns, "column_title": "share of the second latent"}
        return image_grid("Spherical interpolation", self.images, alpha=alpha, **names)

    def numbers(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {
            "weights": self.weights.tolist(),
            "angles_degrees": self.angles.tolist(),
            "norms": self.norms.tolist(),
        }

    @classmethod
    def join(cls, parts: Sequence[Interpolation]) -> Interpolation:
        """Returns several interpolations with the same weights as one."""
        images, norms, angles = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("images", "norms", "angles")
        )
        return cls(parts[0].weights, images, norms, angles)


def interpolate(
    model: Autoencoder,
    first: Tensor,
    second: Tensor,
    *,
    steps: int = 7,
    centre: Tensor | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Interpolation:
    """Decodes points on the arcs between pairs of raw latents, of images or of noise.

    Args:
        model: in eval mode.
        first, second: [B, c, h, w] the ends of each pair, such as ``model.encode(images).latents``, or
            ``torch.randn`` of that shape.
        steps: points of each arc, 2 or more, with both ends.
        centre: [c] of the arcs, such as ``fit_gaussian(…).mean``; None: zero.
        size: (H, W) to crop the images to.
        batch_size: latents decoded at a time.

    Raises:
        ValueError: fewer than 2 steps, latents of different shapes, none, or in opposite directions.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}, but must be 2 or more: both ends count")
    if first.shape != second.shape or first.ndim != 4 or not len(first):
        raise ValueError(
            f"the ends are {list(first.shape)} and {list(second.shape)}, but must both be [B, c, h, w] with "
            "one pair or more"
        )
    ends = to_float64_on_cpu(first.detach()), to_float64_on_cpu(second.detach())
    middle = torch.zeros(first.shape[1]) if centre is None else centre
    middle = to_float64_on_cpu(middle.detach())[:, None, None]
    weights = torch.linspace(0, 1, steps, dtype=torch.float64)
    pairs = [(a - middle, b - middle) for a, b in zip(*ends, strict=True)]
    arcs = torch.stack([slerp(a, b, weights) for a, b in pairs])
    images = decode_latents(model, (arcs + middle).flatten(0, 1), size=size, batch_size=batch_size)
    return Interpolation(
        weights=weights,
        images=images.view(len(pairs), steps, *images.shape[1:]),
        norms=arcs.flatten(2).norm(dim=2),
        angles=torch.tensor([angle_between(a, b) for a, b in pairs], dtype=torch.float64),
    )


@dataclass(frozen=True, eq=False)
class Traversal:
    """One image's latents with one channel moved at a time.

    Attributes:
        channels: the moved channels, one per row.
        offsets: [steps] in standard deviations of the channel.
        images: [channels, steps, C, H, W] in about [−1, 1], on the CPU.
        std: [channels] the standard deviations; 0 for a channel that does not vary.
        changes: [channels, steps] root mean square of the pixels' change from offset 0, in the images' units.
    """

    channels: list[int]
    offsets: Tensor
    images: Tensor
    std: Tensor
    changes: Tensor

    @property
    def sensitivity(self) -> Tensor:
        """[channels] pixel change for one standard deviation: the slope of ``changes`` through zero."""
        steps = self.offsets.abs()
        return (self.changes @ steps) / steps.square().sum()

    def figure(self, alpha: bool = False) -> Figure:
        """Draws one row per channel and one column per offset. ``alpha``: see ``image_grid``."""
        rows = [
            f"channel {channel}\n{f'change {change:.3f}' if std > 0 else 'constant'}"
            for channel, change, std in zip(
                self.channels, self.sensitivity.tolist(), self.std.tolist(), strict=True
            )
        ]
        columns = [f"{offset:+.3g}" if offset else "0" for offset in self.offsets.tolist()]
        title = "offset in standard deviations of the channel"
        names: Any = {"rows": rows, "columns": columns, "column_title": title}
        return image_grid("One channel moved at a time", self.images, alpha=alpha, **names)

    def numbers(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {
            "channels": self.channels,
            "offsets": self.offsets.tolist(),
            "std": self.std.tolist(),
            "pixel_change": self.changes.tolist(),
            "pixel_change_per_std": self.sensitivity.tolist(),
        }


def traverse(
    model: Autoencoder,
    latents: Tensor,
    std: Tensor,
    *,
    channels: Sequence[int] | None = None,
    reach: float = 3.0,
    steps: int = 7,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Traversal:
    """Moves one channel at a time by up to ±``reach`` standard deviations, at all positions alike.

    Args:
        model: in eval mode.
        latents: [c, h, w] raw latents of one image.
        std: [c] of each channel, such as ``fit_gaussian(…).std``.
        channels: the channels to move, in this order; None: all.
        reach: the largest offset, in standard deviations.
        steps: an odd number of 3 or more, so that the middle one is the image itself.
        size: (H, W) to crop the images to.
        batch_size: latents decoded at a time.

    Raises:
        ValueError: latents of another shape, a channel that is not there, an even number of steps, or a reach
            that is not positive.
    """
    if latents.ndim != 3 or len(std) != len(latents):
        raise ValueError(
            f"latents are {list(latents.shape)} with {len(std)} standard deviations, but must be [c, h, w] "
            "with c of them"
        )
    if steps < 3 or steps % 2 == 0:
        raise ValueError(f"steps is {steps}, but must be odd and 3 or more: the middle one is the image")
    if not reach > 0:
        raise ValueError(f"reach is {reach}, but must be positive")
    chosen = list(range(len(latents)) if channels is None else channels)
    missing = [channel for channel in chosen if not 0 <= channel < len(latents)]
    if missing or not chosen:
        raise ValueError(
            f"channels are {chosen}, but must be one or more of the {len(latents)}, counted from 0"
        )
    base = to_float64_on_cpu(latents.detach())
    deviations = to_float64_on_cpu(std.detach())[chosen]
    offsets = torch.linspace(-reach, reach, steps, dtype=torch.float64)
    moved = base.repeat(len(chosen), steps, 1, 1, 1)
    for row, channel in enumerate(chosen):
        moved[row, :, channel] += (offsets * deviations[row])[:, None, None]
    images = decode_latents(model, moved.flatten(0, 1), size=size, batch_size=batch_size)
    images = images.view(len(chosen), steps, *images.shape[1:])
    change = (images.double() - images[:, steps // 2 : steps // 2 + 1].double()).flatten(2)
    return Traversal(chosen, offsets, images, deviations, change.square().mean(dim=2).sqrt())


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

    def figure(self, alpha: bool = False) -> Figure:
        """Draws one row per distribution. ``alpha``: see ``image_grid``."""
        saturated = self.saturated
        rows = [f"{name}\n{100 * saturated[name]:.0f} % clipped" for name in self.images]
        return image_grid("Decoded noise", list(self.images.values()), rows=rows, alpha=alpha)

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
    of N(0, I) through ``from_latents``, where a denoiser starts (not for odd sizes of a FLUX.2 VAE).

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
    if model.has_known_scale and all(
        side * model.downsampling_factor % model.image_multiple == 0 for side in latents_shape[1:]
    ):
        images["N(0, I), scaled"] = decode_latents(model, model.arrange(noise), scaled=True, **decoding)
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
    **decoding: Any,
) -> LatentSamples:
    """Decodes samples of a Gaussian fitted to a model's latents; a VQ model quantizes them first.

    Args:
        model: of any kind, in eval mode.
        fitted: from ``fit_gaussian``. Its positions are independent.
        count: samples.
        latents_size: (h, w).
        seed: sample i is a function of (seed, i), with the noise that ``sample_prior`` has.
        decoding: ``size`` and ``batch_size`` as ``sample_prior`` takes them.

    Raises:
        ValueError: a count below one.
    """
    _check_count(count)
    latents = fitted.sample(count, latents_size, seed)
    return LatentSamples({"fitted Gaussian": decode_latents(model, latents, **decoding)})


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
