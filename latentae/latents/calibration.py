"""Gives a model's latents zero mean and unit variance under every pipeline's own scaling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentae import distributed
from latentae.data import ImageDataset
from latentae.latents.measurement import measure_latents
from latentae.latents.statistics import LatentStatistics
from latentae.latents.views import FEWEST_VIEWS, view_loader
from latentae.models import KLVAE, VQVAE
from latentae.models.folding import codes_can_move, fold_normalisation

# A float32 that varies by less than this, relative to its mean, varies by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Calibration:
    """What ``calibrate`` did.

    Attributes:
        statistics: of the raw latents before.
        scaling_factor, shift_factor: what the model's config now says.
        folded: what went into quant_conv and post_quant_conv: "mean", "mean and std", or None.
        remarks: sentences that whoever uses the model should read.
    """

    statistics: LatentStatistics
    scaling_factor: float
    shift_factor: float
    folded: str | None
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        convs = "quant_conv and post_quant_conv"
        folded = f"the {self.folded} of each channel folded into {convs}; " if self.folded else ""
        return f"{folded}scaling_factor {self.scaling_factor:.6g}, shift_factor {self.shift_factor:.6g}"


def calibrate(
    model: KLVAE | VQVAE, statistics: LatentStatistics, *, per_channel: bool = False, fold: bool = True
) -> Calibration:
    """Changes the model, in place, so that ``to_latents`` has zero mean and unit variance; pixels stay.

    Most pipelines know ``scaling_factor`` and nothing else, so each channel's mean goes into quant_conv and
    post_quant_conv (the codebook of a VQ model moves along), and scaling_factor = 1 / σ, where σ² is the
    mean of the channels' variances: all values together then have variance 1. Nothing is left to subtract,
    so SD, SDXL, SD3, FLUX, DiT and LDM pipelines all scale alike.

    Without these convolutions, with a quantizer whose codes cannot move, or with ``fold=False``, the mean
    of all values becomes ``shift_factor``, which only some pipelines read, and σ² is the variance around it.
    Previous ``latents_mean`` and ``latents_std`` are removed from the config.

    Args:
        model: in float32 if there is a choice, since folding rounds the weights once.
        statistics: of its raw latents, as ``measure_latents`` gives them. Calibrating twice takes measuring
            twice.
        per_channel: fold each channel's standard deviation too, so that each has variance 1 and
            scaling_factor is 1. A KL-VAE's only: it would change which code of a VQ model is nearest.
        fold: False leaves the weights alone.

    Raises:
        ValueError: statistics of another number of channels; latents that do not vary; ``per_channel`` where
            it cannot be. The model is then as it was.
    """
    _check_statistics(model, statistics)
    can_fold = fold and _can_fold(model)
    if per_channel:
        check_per_channel(model, fold=fold)
        _check_all_vary(statistics)
    constant = _constant_channels(statistics).nonzero().flatten().tolist()
    remarks = [f"latent channel(s) {constant} do not vary: nothing is stored in them"] if constant else []
    if can_fold:
        scale = 1 / statistics.std if per_channel else torch.ones_like(statistics.mean)
        fold_normalisation(model, statistics.mean, scale)
        scaling_factor = 1.0 if per_channel else 1 / statistics.centred_std
        shift_factor = 0.0
    else:
        scaling_factor, shift_factor = 1 / statistics.global_std, statistics.global_mean
        remarks.append(_remark_on_shift(model, shift_factor * scaling_factor))
    model.change_config(
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        latents_mean=None,
        latents_std=None,
    )
    folded = ("mean and std" if per_channel else "mean") if can_fold else None
    return Calibration(statistics, scaling_factor, shift_factor, folded, tuple(remarks))


def calibrate_on(
    model: KLVAE | VQVAE,
    dataset: ImageDataset,
    *,
    batch_size: int,
    seed: int = 0,
    max_images: int | None = None,
    relative_error: float | None = 1e-3,
    per_channel: bool = False,
    num_workers: int = 0,
) -> Calibration:
    """Measures the latents of a training set, on all ranks together, and calibrates the model in place.

    The images are measured as the training sees them, crops and flips included, since that is what the
    denoiser will see: the views of epoch 0, each a function of (dataset.seed, index), every image once. A set
    of fewer than 512 images is gone through in several whole epochs, until there are as many crops.

    Args:
        model: on its device; every rank's with the same weights, and every rank must call.
        dataset: with the transform of the training.
        batch_size: images a batch and rank.
        seed: of the order and of the posterior's noise.
        max_images: measure at most so many, over all ranks.
        relative_error: stop as soon as the standard deviation is known this well; None: measure all.
        per_channel: as in ``calibrate``.
        num_workers: processes that decode images.

    Raises:
        ValueError: as ``measure_latents``, ``calibrate`` and ``view_loader``.
        BrokenImageError: none of the images can be decoded.
    """
    if per_channel:
        check_per_channel(model)
    batches = view_loader(
        dataset,
        batch_size=batch_size,
        seed=seed,
        fewest_views=FEWEST_VIEWS,
        max_views=max_images,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=num_workers,
    )
    statistics = measure_latents(model, batches, seed=seed, relative_error=relative_error)
    return calibrate(model, statistics, per_channel=per_channel)


def check_per_channel(model: KLVAE | VQVAE, *, fold: bool = True) -> None:
    """Raises ValueError where ``calibrate`` cannot give each channel of this model its own scale."""
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


def _can_fold(model: KLVAE | VQVAE) -> bool:
    if isinstance(model, VQVAE) and not codes_can_move(model.quantize):
        return False
    return all(getattr(model, name, None) is not None for name in ("quant_conv", "post_quant_conv"))


def _constant_channels(statistics: LatentStatistics) -> Tensor:
    """[c] whether a channel's standard deviation is nothing but rounding."""
    return statistics.std <= _ROUNDING * statistics.mean.abs()


def _check_statistics(model: KLVAE | VQVAE, statistics: LatentStatistics) -> None:
    if not isinstance(model, KLVAE | VQVAE):
        raise ValueError(f"model is a {type(model).__name__}, but must be a KLVAE, a VQVAE or a VQGAN")
    is_kl = isinstance(model, KLVAE)
    channels = model.config.latent_channels if is_kl else model.quantize.code_dim
    if len(statistics.mean) != channels:
        raise ValueError(
            f"statistics are of {len(statistics.mean)} latent channels, but the model has {channels}: "
            "measure them on this model"
        )
    # Of equal images the latents vary by their places alone, most of it from the padding at the borders.
    if bool(_constant_channels(statistics).all()) or statistics.global_std_error < _ROUNDING:
        raise ValueError(
            f"the latents of {statistics.images} image(s) do not vary from one to the other (mean "
            f"{statistics.global_mean:.4g}, standard deviation {statistics.global_std:.4g}): measure on "
            "images that differ, or check that the model is trained"
        )


def _check_all_vary(statistics: LatentStatistics) -> None:
    """Raises ValueError for a channel that has no scale."""
    constant = _constant_channels(statistics).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"latent channel(s) {constant} do not vary, so per_channel has no scale to give them: leave "
            "per_channel out, or measure on images that differ"
        )


def _remark_on_shift(model: KLVAE | VQVAE, mean: float) -> str:
    remark = (
        "the mean could not be folded and stands in shift_factor: SD3, FLUX and their kin subtract it; "
        "StableDiffusion, SDXL, DiT and LDM pipelines ignore it, and their latents keep a mean of "
        f"{mean:+.3f} standard deviations"
    )
    if isinstance(model, VQVAE):
        remark += "; diffusers' VQModel, and so an export as one, has no shift_factor at all"
    return remark
