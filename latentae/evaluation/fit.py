"""Whether a denoiser that was trained on one model's latents, the teacher's, still fits another model.

"Old" is the teacher and "new" the other model. Everything is compared as a denoiser sees it: latents are the
posterior's mode after each model's own shift and scale, so that differences of those count. A FLUX.2 VAE
normalises latents by their places in patches; beside a model of another class, such as its TAESD, both are
compared without the arrangement in patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.evaluation.assembly import Assembled, Shard, mean_over_images
from latentae.evaluation.metrics import to_images, to_uint8
from latentae.evaluation.models import NamedModel, factor_of
from latentae.evaluation.rate import LatentMoments
from latentae.models import Flux2VAE, LatentAutoencoder
from latentae.report.results import TeacherFit

FIT_METRICS = ("psnr", "ssim", "lpips_alex")
"""The metrics of images that one model decodes from the other's latents; LPIPS with VGG16 costs too much."""

# Verdict → the largest PSNR lost in dB and the largest movement that it allows; beyond all it is "other".
# The lost PSNR is what pictures show, so its limits decide in the first place:
#   0.1 dB  a fifth of that which is visible
#   0.5 dB  about where a careful viewer begins to see a difference between two pictures
#   3 dB    the squared error doubles: the mismatch costs as much as all of the compression
# Decoders may be blind to what a denoiser sees, so the movement (the root mean squared difference over the
# teacher's deviation) is limited too. It acts like noise of that size. In Stable Diffusion's schedule the
# noise stays below 0.1 deviations for 11 of the 1000 steps and below 0.3 for 81. At 1 two latents of one
# image are as far apart as those of equal deviation whose correlation is a half.
LIMITS: dict[str, tuple[float, float]] = {"fits": (0.1, 0.1), "close": (0.5, 0.3), "moved": (3.0, 1.0)}

_ADVICE = {
    "equal": "{model}: its latents are bit-equal to those of {teacher}. Any denoiser of {teacher} fits.",
    "fits": "{model}: a denoiser of {teacher} fits. {numbers}.",
    "close": "{model}: a denoiser of {teacher} probably fits. {numbers}. Look at generated pictures before "
    "you rely on it; a short fine-tuning of the denoiser adapts it.",
    "moved": "{model}: a denoiser of {teacher} does not fit as it is. {numbers}. Fine-tune the denoiser on "
    "the new latents, or train the model again with freeze_encoder=true, which keeps the latents, or with "
    "loss.teacher.latents_weight=1, which learns them.",
    "other": "{model}: a denoiser of {teacher} does not fit. {numbers}: this is another latent space. Train "
    "a denoiser on it, or train the model again with freeze_encoder=true, which keeps the latents, or with "
    "loss.teacher.latents_weight=1, which learns them.",
}
_RESCALE = (
    "{model}: a denoiser of {teacher} does not fit, but only because of scale and shift. {numbers}. {remedy}"
)
_IN_CONFIG = (
    "Correct scaling_factor and shift_factor (or latents_mean and latents_std) in the model's config, or "
    "name the family of {teacher} by --family."
)
_BESIDE_STATISTICS = (
    "Correct scaling_factor and shift_factor (or latents_mean and latents_std) in the model's config."
)
_SET_STATISTICS = (
    "Correct bn.running_mean and bn.running_var, the statistics of the model's latents: "
    "model.take_scale(teacher) sets them."
)
_IN_STATISTICS = (
    "Copy bn.running_mean and bn.running_var, the statistics of the latents, from {teacher} with "
    "model.take_scale(teacher), and save the model again."
)

_GENERATES = (
    " What it generates decodes here without loss; only images that {model} encodes, as in image-to-image "
    "and inpainting, are foreign to it, so encode those with {teacher}."
)


def check_teacher(models: Sequence[NamedModel], teacher: NamedModel) -> None:
    """Checks that a denoiser could take the latents of the teacher and of each other model.

    Raises:
        ValueError: latents of another shape, an unknown scale, a decoder that upscales, or only one of two
            models has a codebook.
    """
    # The teacher first, so that its own faults are not blamed on another model.
    for model in sorted(models, key=lambda model: model is not teacher):
        name, autoencoder = model.name, model.autoencoder
        if not isinstance(autoencoder, LatentAutoencoder):
            raise ValueError(
                f"{name} is a {type(autoencoder).__name__}, which has no latents for a denoiser: leave out "
                "--teacher, or evaluate it apart"
            )
        if autoencoder.upscale > 1:
            raise ValueError(
                f"{name} decodes to images {autoencoder.upscale} times as large as those that it encodes, so "
                "its decoder cannot be compared with another one: evaluate it without --teacher"
            )
        if not autoencoder.has_known_scale:
            raise ValueError(
                f"the scale of the latents of {name} is not known, so they cannot be compared as a denoiser "
                f"sees them: name its family, as in --family {name}=sd1, or measure the scale with "
                f"scripts/latent_stats.py {model.path} --data IMAGES"
            )
        shapes = [_latents_of(each) for each in (model, teacher)]
        if shapes[0] != shapes[1]:
            own, other = (f"{channels} channels at 1/{factor} of the size" for channels, factor in shapes)
            raise ValueError(
                f"latents of {name} have {own}, and those of the teacher {teacher.name} {other}: no denoiser "
                "takes both, so evaluate them without --teacher"
            )
        if model.num_codes != teacher.num_codes and None in (model.num_codes, teacher.num_codes):
            with_codes, without = (model, teacher) if teacher.num_codes is None else (teacher, model)
            raise ValueError(
                f"{with_codes.name} decodes the nearest codes of its codebook, and {without.name} has no "
                "codebook: a denoiser of one does not suit the other, so evaluate them without --teacher"
            )


class LatentPairs:
    """Sums over pairs of latents of the same images, per channel, in float64, streamed and mergeable.

    Args:
        channels: c, of the latents.
    """

    def __init__(self, channels: int) -> None:
        self.new, self.old = LatentMoments(channels), LatentMoments(channels)
        self.products = torch.zeros(channels, dtype=torch.float64)  # Σ (new − its mean)(old − its mean)
        self.squares = torch.zeros(channels, dtype=torch.float64)  # Σ (new − old)²
        self.unequal = 0  # values whose bits differ

    @torch.no_grad()
    def add(self, new: Tensor, old: Tensor) -> None:
        """Adds latents [B, c, h, w] of the model and of the teacher."""
        batch = LatentPairs(new.shape[1])
        batch.new.add(new)
        batch.old.add(old)
        values = [to_float64_on_cpu(latents.transpose(0, 1).flatten(1)) for latents in (new, old)]
        centered = [value - value.mean(dim=1, keepdim=True) for value in values]
        batch.products = (centered[0] * centered[1]).sum(dim=1)
        batch.squares = (values[0] - values[1]).square().sum(dim=1)
        batch.unequal = int((new != old).sum())
        self.merge(batch)

    def merge(self, other: LatentPairs) -> None:
        """Adds the pairs of another one."""
        n, m = self.new.count, other.new.count
        if not m:
            return
        # Chan et al. 1979: the cross term of two parts follows from their means.
        steps = (other.new.mean - self.new.mean) * (other.old.mean - self.old.mean)
        self.products = self.products + other.products + steps * (n * m / (n + m))
        self.squares = self.squares + other.squares
        self.unequal += other.unequal
        self.new.merge(other.new)
        self.old.merge(other.old)

    @property
    def relative_mse(self) -> float:
        """Mean squared difference over the teacher's variance, both summed over the channels."""
        return _over_variance(self.squares.sum(), self.old)

    @property
    def relative_mse_rescaled(self) -> float:
        """The same after the best scale and shift of each channel; a negative scale is none."""
        positive = self.correlation.clamp(min=0).nan_to_num()
        return _over_variance((self.old.sums[0] * (1 - positive.square())).sum(), self.old)

    @property
    def correlation(self) -> Tensor:
        """Correlation of both models' values in each channel, [c]; NaN for a constant channel."""
        return self.products / (self.new.sums[0] * self.old.sums[0]).sqrt()

    def channels(self) -> dict[str, list[float]]:
        """Returns what a report shows of each channel; not finite where the teacher's is constant."""
        variance = self.old.sums[0] / self.old.count
        deviation = variance.sqrt()
        found = {
            "mean_shift": (self.new.mean - self.old.mean) / deviation,
            "std_ratio": (self.new.sums[0] / self.new.count).sqrt() / deviation,
            "correlation": self.correlation,
            "relative_mse": self.squares / self.old.count / variance,
        }
        return {name: values.tolist() for name, values in found.items()}

    def state(self) -> dict[str, Tensor]:
        """Returns the state as tensors; ``from_state`` is the inverse."""
        moments = {
            f"{side}.{name}": value
            for side in ("new", "old")
            for name, value in getattr(self, side).state().items()
        }
        own = {"products": self.products, "squares": self.squares, "unequal": torch.tensor(self.unequal)}
        return {**moments, **own}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> LatentPairs:
        """Rebuilds the object whose ``state`` this is."""
        pairs = cls(len(state["products"]))
        for side in ("new", "old"):
            part = {name: state[f"{side}.{name}"] for name in ("count", "mean", "sums")}
            setattr(pairs, side, LatentMoments.from_state(part))
        pairs.products, pairs.squares = state["products"], state["squares"]
        pairs.unequal = int(state["unequal"])
        return pairs


def measure_fit(
    model: NamedModel,
    teacher: NamedModel,
    batches: Iterable[Tensor],
    latents: tuple[Sequence[Tensor], Sequence[Tensor]],
    compare: Callable[[Tensor, Tensor], dict[str, Tensor]],
) -> Shard:
    """Measures a model beside the teacher on batches of images.

    Args:
        batches: images [B, C, H, W] in [−1, 1].
        latents: the unscaled latents of the model and of the teacher, one tensor for each batch.
        compare: returns metric → [B] of reconstructions in 8 bits and images, both in [−1, 1].

    Returns:
        a shard: float64 values [n] as ``new_decoder.METRIC``, where the model decodes the teacher's latents,
        and as ``old_decoder.METRIC``, where the teacher decodes the model's; ``latents.*`` is the state of
        ``LatentPairs``.

    Raises:
        ValueError: a decoder makes NaN of the other model's latents.
    """
    rows: dict[str, list[Tensor]] = {}
    autoencoder: Any = model.autoencoder
    patch = _patch_of(model) if _patch_of(model) == _patch_of(teacher) else 1
    pairs = LatentPairs(autoencoder.latents_channels * patch**2)
    for images, own, other in zip(batches, *latents, strict=True):
        new, old = model.normalise(own), teacher.normalise(other)
        # Only whole patches have the channels that a denoiser sees.
        height, width = (side // patch * patch for side in new.shape[-2:])
        pairs.add(*(F.pixel_unshuffle(each[..., :height, :width], patch) for each in (new, old)))
        size = (images.shape[2], images.shape[3])
        for decoder, decoding, given in (("new_decoder", model, old), ("old_decoder", teacher, new)):
            pixels = to_images(to_uint8(decoding.decode_normalised(given, size)))
            for name, value in compare(pixels, images).items():
                if name in FIT_METRICS:
                    rows.setdefault(f"{decoder}.{name}", []).append(to_float64_on_cpu(value))
    shard = {name: torch.cat(parts) for name, parts in rows.items()}
    return shard | {f"latents.{name}": value for name, value in pairs.state().items()}


@dataclass(frozen=True)
class FitMeasured:
    """The measurements of a model beside the teacher.

    Attributes:
        new_decoder, old_decoder: metric → [N] float64, one value per image: the model decodes the teacher's
            latents, and the teacher decodes the model's.
        pairs: sums over the latents of both.
    """

    new_decoder: dict[str, Tensor]
    old_decoder: dict[str, Tensor]
    pairs: LatentPairs


def assemble_fit(shards: Iterable[Shard]) -> FitMeasured:
    """Joins the shards of all blocks, in the order of the blocks; there must be one."""
    rows: dict[str, dict[str, list[Tensor]]] = {"new_decoder": {}, "old_decoder": {}}
    pairs: LatentPairs | None = None
    for shard in shards:
        for key, value in shard.items():
            decoder, _, name = key.partition(".")
            if decoder in rows:
                rows[decoder].setdefault(name, []).append(value)
        state = {k.removeprefix("latents."): v for k, v in shard.items() if k.startswith("latents.")}
        pairs = pairs or LatentPairs(len(state["products"]))
        pairs.merge(LatentPairs.from_state(state))
    assert pairs is not None
    new, old = ({name: torch.cat(parts) for name, parts in rows[decoder].items()} for decoder in rows)
    return FitMeasured(new, old, pairs)


def describe_fit(
    model: str,
    teacher: str,
    measured: FitMeasured,
    assembled: Mapping[str, Assembled],
    *,
    remedy: str = _IN_CONFIG,
) -> TeacherFit:
    """Returns what a report says of a model beside the teacher, with advice.

    ``psnr_loss`` is how far images fall below the decoder's own reconstructions, or below the teacher's if
    those are worse, in dB: a decoder that was trained for other things than PSNR loses nothing by that, nor
    does one that only gains less on old latents than on its own.

    Args:
        assembled: model → its own numbers, of the same images.
        remedy: how to correct a wrong scale, from ``scale_remedy``.
    """
    decoded = []
    for decoder, rows in ((model, measured.new_decoder), (teacher, measured.old_decoder)):
        values = {name: mean_over_images(row) for name, row in rows.items() if not row.isnan().any()}
        own = [assembled[name].values["psnr"] for name in (decoder, teacher)]
        reached = min(own, key=lambda row: row.mean().item())
        # Two exact reconstructions have infinite ratios, and no difference.
        lost = torch.where(reached == rows["psnr"], 0.0, reached - rows["psnr"])
        decoded.append({"psnr": values.pop("psnr"), "psnr_loss": mean_over_images(lost), **values})
    lost_values = (d["psnr_loss"].value for d in decoded)
    verdict, advice = advise(model, teacher, measured.pairs, *lost_values, remedy=remedy)
    return TeacherFit(
        verdict=verdict,
        advice=advice,
        new_decoder_on_old_latents=decoded[0],
        old_decoder_on_new_latents=decoded[1],
        bit_equal=measured.pairs.unequal == 0,
        relative_mse=measured.pairs.relative_mse,
        channels=measured.pairs.channels(),
    )


def scale_remedy(model: NamedModel, teacher: NamedModel) -> str:
    """Returns how to correct a wrong scale of a model's latents, with ``{teacher}`` for the other's name."""
    patched = [isinstance(each.autoencoder, Flux2VAE) for each in (model, teacher)]
    if all(patched):
        return _IN_STATISTICS
    if patched[0]:
        return _SET_STATISTICS
    return _BESIDE_STATISTICS if patched[1] else _IN_CONFIG


def advise(
    model: str,
    teacher: str,
    pairs: LatentPairs,
    new_decoder_lost: float,
    old_decoder_lost: float,
    *,
    remedy: str = _IN_CONFIG,
) -> tuple[str, str]:
    """Returns the verdict, ``equal``, ``fits``, ``close``, ``moved`` or ``other``, and advice as text.

    Args:
        model, teacher: their names.
        new_decoder_lost, old_decoder_lost: ``psnr_loss`` of the decoders on each other's latents, in dB.
        remedy: how to correct a wrong scale, from ``scale_remedy``.
    """
    lost = max(new_decoder_lost, old_decoder_lost)
    movement = math.sqrt(pairs.relative_mse)
    allowed = (name for name, limits in LIMITS.items() if lost < limits[0] and movement < limits[1])
    verdict = "equal" if pairs.unequal == 0 else next(allowed, "other")
    numbers = (
        f"Its latents moved by {100 * movement:.3g} % of their standard deviation, and the decoders lose "
        f"up to {max(lost, 0.0):.2f} dB on each other's latents"
    )
    wording = _ADVICE[verdict]
    # A wrong scale or shift in a config looks like another latent space, and needs no training at all. It is
    # the reason where correcting it takes away nearly all of the movement.
    left = math.sqrt(pairs.relative_mse_rescaled)
    if verdict in ("moved", "other") and left < min(LIMITS["fits"][1], 0.2 * movement):
        wording = _RESCALE
    elif verdict in ("moved", "other") and new_decoder_lost < LIMITS["fits"][0]:
        wording += _GENERATES
    remedy = remedy.format(teacher=teacher)
    return verdict, wording.format(model=model, teacher=teacher, numbers=numbers, remedy=remedy)


def _latents_of(model: NamedModel) -> tuple[int, int]:
    """Returns channels of the latents, and pixels per latent along a side."""
    autoencoder: Any = model.autoencoder
    return int(autoencoder.latents_channels), factor_of(model)


def _patch_of(model: NamedModel) -> int:
    """Returns the latent positions per side that a denoiser sees as one."""
    autoencoder: Any = model.autoencoder
    return int(autoencoder.image_multiple) // factor_of(model)


def _over_variance(squares: Tensor, old: LatentMoments) -> float:
    total, variance = squares.item(), old.sums[0].sum().item()
    if variance > 0:
        return total / variance
    return math.inf if total > 0 else 0.0
