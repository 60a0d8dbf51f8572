"""Gives a model's latents zero mean and unit variance under the scaling of every pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from latentae import distributed
from latentae.data import ImageDataset
from latentae.latents.statistics import (
    FEWEST_VIEWS,
    MOST_VIEWS,
    LatentStatistics,
    measure_latents,
    view_loader,
)
from latentae.models import VQVAE, Autoencoder, Flux2VAE
from latentae.models.decoders import downscale
from latentae.models.folding import codes_can_move, fold_normalisation

# A float32 that varies by less than this, relative to its size, varies by rounding only.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Calibration:
    """The changes that ``calibrate`` made.

    Attributes:
        statistics: of the raw latents before.
        scaling_factor, shift_factor: in the model's config now; None for a FLUX.2 VAE, which has neither.
        folded: into quant_conv and post_quant_conv: "mean", "mean and std", or None.
        remarks: sentences for users of the model.
    """

    statistics: LatentStatistics
    scaling_factor: float | None
    shift_factor: float | None
    folded: str | None
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.scaling_factor is None:
            return (
                f"bn.running_mean and bn.running_var of {len(self.statistics.mean)} channels of 2x2 patches"
            )
        convs = "quant_conv and post_quant_conv"
        folded = f"the {self.folded} of each channel folded into {convs}; " if self.folded else ""
        return f"{folded}scaling_factor {self.scaling_factor:.6g}, shift_factor {self.shift_factor:.6g}"


def calibrate(
    model: Autoencoder, statistics: LatentStatistics, *, per_channel: bool = False, fold: bool = True
) -> Calibration:
    """Changes the model in place so that ``to_latents`` has zero mean and unit variance; pixels stay.

    Most pipelines read ``scaling_factor`` alone. So each channel's mean is folded into quant_conv and
    post_quant_conv (the codebook of a VQ model moves along), and scaling_factor = 1 / σ, where σ² is the
    mean of the channels' variances: all values together then have variance 1. Nothing is left to subtract,
    so SD, SDXL, SD3, FLUX, DiT and LDM pipelines all scale alike.

    Without these convolutions, with a quantizer whose codes cannot move, or with ``fold=False``, the mean
    of all values becomes ``shift_factor``, which only some pipelines read, and σ² is the variance around it.
    A FLUX.2 VAE takes the mean and variance of each channel of its 2×2 patches as ``bn``'s statistics.
    Previous ``latents_mean`` and ``latents_std`` are removed from the config.

    Args:
        model: in float32 if there is a choice, since folding rounds the weights once.
        statistics: of its raw latents, from ``measure_latents``. Measure again before calibrating again.
        per_channel: fold each channel's standard deviation too, so that each channel has variance 1 and
            scaling_factor is 1. For KL-VAEs only: it would change which code of a VQ model is nearest.
        fold: False leaves the weights alone.

    Raises:
        ValueError: statistics of another number of channels; latents that do not vary; ``per_channel`` for a
            model that does not allow it. The model is then unchanged.
    """
    # Check everything before the model changes.
    _check_statistics(model, statistics)
    can_fold = fold and _can_fold(model)
    constant = _constant_channels(statistics)
    if per_channel:
        check_per_channel(model, fold=fold)
        if constant:
            raise ValueError(
                f"latent channel(s) {constant} do not vary, so per_channel has no scale to give them: leave "
                "per_channel out, or measure on images that differ"
            )
    remarks = [f"latent channel(s) {constant} do not vary: nothing is stored in them"] if constant else []

    # A FLUX.2 VAE normalises each channel itself.
    if isinstance(model, Flux2VAE):
        model.set_statistics(statistics.mean, statistics.variance)
        return Calibration(statistics, None, None, None, tuple(remarks))

    # Fold what the convolutions can take; leave the rest to the config.
    if can_fold:
        scale = 1 / statistics.std if per_channel else torch.ones_like(statistics.mean)
        fold_normalisation(model, statistics.mean, scale)
        scaling_factor = 1.0 if per_channel else 1 / statistics.centred_std
        shift_factor = 0.0
    else:
        scaling_factor, shift_factor = 1 / statistics.global_std, statistics.global_mean
        remarks.append(_remark_on_shift(model, shift_factor * scaling_factor))
    factors = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    model.change_config(**factors, latents_mean=None, latents_std=None)
    folded = ("mean and std" if per_channel else "mean") if can_fold else None
    return Calibration(statistics, scaling_factor, shift_factor, folded, tuple(remarks))


def calibrate_on(
    model: Autoencoder,
    dataset: ImageDataset,
    *,
    batch_size: int,
    seed: int = 0,
    max_images: int | None = None,
    per_channel: bool = False,
    num_workers: int = 0,
    upscale: int = 1,
    alpha: bool = False,
) -> Calibration:
    """Measures the latents of a training set and calibrates the model in place; every rank must call it.

    The images are measured with the crops and flips of the training, which the denoiser will see: the views
    of epoch 0, each a function of (dataset.seed, index), every image once. Fewer than 512 images are measured
    over several whole epochs, until there are 512 crops.

    Args:
        model: on its device, with the same weights on every rank.
        dataset: with the transform of the training.
        batch_size: images per batch and rank.
        seed: of the order and of the posterior's noise.
        max_images: crops to measure at most, over all ranks; None: 16,384.
        per_channel: as in ``calibrate``.
        num_workers: processes that decode images.
        upscale: the model's. The encoder sees images that many times smaller than those of the dataset.
        alpha: whether the images are RGBA: see ``downscale``.

    Raises:
        ValueError: as ``measure_latents``, ``calibrate`` and ``view_loader``.
        BrokenImageError: none of the images can be decoded.
    """
    if per_channel:
        check_per_channel(model)
    batches: Iterable[Any] = view_loader(
        dataset,
        batch_size=batch_size,
        seed=seed,
        fewest_views=FEWEST_VIEWS,
        max_views=MOST_VIEWS if max_images is None else max_images,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=num_workers,
    )
    if upscale > 1:
        batches = ({**batch, "images": downscale(batch["images"], upscale, alpha=alpha)} for batch in batches)
    return calibrate(model, measure_latents(model, batches, seed=seed), per_channel=per_channel)


def check_per_channel(model: Autoencoder, *, fold: bool = True) -> None:
    """Raises ValueError where ``calibrate`` cannot give each channel of this model its own scale."""
    if isinstance(model, Flux2VAE):
        raise ValueError("a FLUX.2 VAE gives each channel its own scale anyway: leave per_channel out")
    if isinstance(model, VQVAE):
        raise ValueError(
            "per_channel is for KL-VAEs: a scale by channel would change which code of a VQ model is "
            "nearest; leave it out"
        )
    if not (fold and _can_fold(model)):
        raise ValueError(
            "per_channel folds the scales into quant_conv and post_quant_conv, which this model lacks or "
            "fold=False leaves alone; leave per_channel out"
        )


def _can_fold(model: Autoencoder) -> bool:
    if isinstance(model, VQVAE) and not codes_can_move(model.quantize):
        return False
    return all(getattr(model, name, None) is not None for name in ("quant_conv", "post_quant_conv"))


def _constant_channels(statistics: LatentStatistics) -> list[int]:
    """Returns the channels whose standard deviation is rounding alone."""
    return (statistics.std <= _ROUNDING * statistics.mean.abs()).nonzero().flatten().tolist()


def _check_statistics(model: Autoencoder, statistics: LatentStatistics) -> None:
    if not isinstance(model, Autoencoder):
        raise ValueError(f"model is a {type(model).__name__}, but must be a KLVAE, a VQVAE or a VQGAN")
    channels = model.bn.num_features if isinstance(model, Flux2VAE) else model.latents_channels
    if len(statistics.mean) != channels:
        raise ValueError(
            f"statistics are of {len(statistics.mean)} latent channels, but the model has {channels}: "
            "measure them on this model"
        )
    # The latents of equal images vary between positions, mostly by the padding, but not between images.
    magnitude = (statistics.mean.square() + statistics.variance).sqrt()
    equal = bool((statistics.std_between_images <= _ROUNDING * magnitude).all())
    images_are_equal = statistics.images > 1 and equal
    if len(_constant_channels(statistics)) == channels or images_are_equal:
        raise ValueError(
            f"the latents of {statistics.images} image(s) do not vary from one to the other (mean "
            f"{statistics.global_mean:.4g}, standard deviation {statistics.global_std:.4g}): measure on "
            "images that differ, or check that the model is trained"
        )


def _remark_on_shift(model: Autoencoder, mean: float) -> str:
    remark = (
        "the mean could not be folded and stands in shift_factor: SD3, FLUX and their kin subtract it; "
        "StableDiffusion, SDXL, DiT and LDM pipelines ignore it, and their latents keep a mean of "
        f"{mean:+.3f} standard deviations"
    )
    if isinstance(model, VQVAE):
        remark += "; diffusers' VQModel, and so an export as one, has no shift_factor at all"
    return remark
