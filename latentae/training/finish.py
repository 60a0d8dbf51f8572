"""Measures reconstructions during a run, and ends it: averaged weights calibrated, measured, exported."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.config import RunConfig
from latentae.data import Batch, BrokenImageError, ImageDataset, validation_loader, with_true_colors
from latentae.devices import to_float64
from latentae.evaluation.metrics import downscaled_psnr, psnr, ssim, to_images, to_uint8
from latentae.evaluation.transparency import (
    ALPHA_METRICS,
    downscaled_composite_psnr,
    over_black_and_white,
    transparent_psnr,
)
from latentae.export import export_diffusers
from latentae.files import written_aside
from latentae.latents.calibration import calibrate_on
from latentae.models import Autoencoder
from latentae.models.decoders import reconstruct, upscale_of
from latentae.quantizers import Quantizer, code_counts, codebook_health
from latentae.training.checkpoint import needing_disk
from latentae.training.run_folder import RunFolder

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass
class ReconstructionQuality:
    """Means over all images of 8-bit reconstructions against 8-bit originals.

    Attributes:
        psnr: dB. ssim: in [−1, 1]. lpips: ≥ 0.
        images: number of images.
        codebook_usage: share of the codes that occurred; None for models without codes.
        codebook_perplexity: exp of the entropy of their frequencies.
        psnr_downscaled: dB, of a model that upscales: its reconstructions, downscaled, against what its
            encoder saw. The other numbers are of the whole images. None for other models.
    """

    psnr: float
    ssim: float
    lpips: float
    images: int
    codebook_usage: float | None = None
    codebook_perplexity: float | None = None
    psnr_downscaled: float | None = None


@dataclass
class TransparentQuality(ReconstructionQuality):
    """Means over all RGBA images; PSNR, SSIM and LPIPS are means of composites over black and over white.

    Attributes:
        alpha_psnr: dB, of alpha alone, at most 60 per image, as are those below.
        psnr_black, psnr_white, psnr_random: dB, of composites over these backgrounds.
    """

    alpha_psnr: float = math.nan
    psnr_black: float = math.nan
    psnr_white: float = math.nan
    psnr_random: float = math.nan


class NoMeasurementError(ValueError):
    """Images could not be measured; raised on every rank, with the reasons of all ranks."""


def validate(
    model: nn.Module,
    images: ImageDataset,
    lpips: Distance,
    *,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    alpha: bool = False,
    note_broken: Callable[[list[str]], None] | None = None,
) -> dict[str, float]:
    """Returns a run's validation metrics, under the names that it logs; every rank must call it.

    The ranks share the images, and get equal numbers. Nothing random is drawn, and every module stays in its
    mode, training or eval.

    Args:
        model: called as ``model(images).sample``.
        images: the validation images.
        lpips: maps two [B, C, H, W] to [B].
        batch_size: images per rank and forward pass.
        num_workers: loading processes per rank.
        alpha: whether the images are RGBA, which are measured as ``TransparentQuality`` says.
        note_broken: receives the names of unreadable images, which are left out.

    Returns:
        ``validation_psnr`` in dB, ``validation_ssim``, ``validation_lpips``, and with a codebook
        ``validation_codebook_usage`` and ``validation_codebook_perplexity``; with alpha
        ``validation_alpha_psnr`` and those over each background.
    """
    with evaluating(model):
        measured = _measure(model, images, lpips, batch_size, device, num_workers, note_broken, alpha=alpha)
    quality = asdict(measured)
    del quality["images"]
    return {f"validation_{name}": value for name, value in quality.items() if value is not None}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a whole model into eval mode; afterwards each module has its former mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def calibrate_and_measure(
    model: Autoencoder,
    training_images: ImageDataset,
    validation_images: ImageDataset,
    lpips: Distance,
    config: RunConfig,
    *,
    device: torch.device,
    say: Callable[[str], None],
    measured: Mapping[str, float] | None = None,
    note_broken: Callable[[list[str]], None] | None = None,
) -> dict[str, Any]:
    """Sets the scale of the latents from the training images, then measures on the validation images.

    With a frozen encoder the scale stays as it was. With latents that were learned from a teacher it stays
    the teacher's, whatever the latents' own variance is: that is what the teacher's denoiser and pipeline
    expect. Every rank must call it.

    Args:
        model: changed in place, its pixels not.
        lpips: maps two [B, C, H, W] to [B].
        say: is told what a person should know of the calibration.
        measured: what ``validate`` returned for this very model. It is then not measured again, since a scale
            changes pixels by no more than rounding. None or empty: nothing.
        note_broken: receives the names of unreadable validation images, which are left out.

    Returns:
        numbers for the run's summary; the scale is None if it could not be measured.
    """
    teacher = config.loss.teacher
    learned = teacher is not None and teacher.latents_weight > 0
    if config.freeze_encoder or learned:
        scale = {name: model.config.get(name) for name in ("scaling_factor", "shift_factor")}
        scale["scale_source"] = "of the teacher" if learned else "of the pretrained model"
        if teacher is not None and learned:
            place = teacher.model or config.model.pretrained
            say(
                "note: the latents keep the teacher's scale. Measure whether its denoiser fits: latentae "
                f"evaluate {config.output_dir} --teacher {place} --data IMAGES --out FOLDER"
            )
    else:
        scale = _calibrate(model, training_images, config, say)
    if measured:
        known = {name.removeprefix("validation_"): value for name, value in measured.items()}
        make = TransparentQuality if config.data.alpha else ReconstructionQuality
        quality: ReconstructionQuality = make(images=len(validation_images), **known)
    else:
        options = (config.batch_size, device, 0, note_broken)
        quality = _measure(model, validation_images, lpips, *options, alpha=config.data.alpha)
    numbers = asdict(quality)
    if quality.psnr_downscaled is None:
        del numbers["psnr_downscaled"]
    return {**numbers, **scale}


def _calibrate(
    model: Autoencoder, training_images: ImageDataset, config: RunConfig, say: Callable[[str], None]
) -> dict[str, float | str | None]:
    """Measures and sets the scale; returns it for the summary."""
    try:
        calibration = calibrate_on(
            model,
            with_true_colors(training_images),  # a denoiser sees images as they are
            batch_size=config.batch_size,
            seed=config.seed,
            num_workers=config.data.num_workers,
            upscale=model.upscale,
            alpha=config.data.alpha,
        )
    except ValueError as error:
        # Latents that do not vary or are not finite are no reason to lose the run.
        say(f"the latents' scale could not be measured: {error}")
        return {"scaling_factor": None, "shift_factor": None}
    for remark in calibration.remarks:
        say(f"note: {remark}")
    return {
        "scaling_factor": calibration.scaling_factor,
        "shift_factor": calibration.shift_factor,
        "scale_source": "measured on the training images",
    }


def export_run(model: Autoencoder, folder: RunFolder) -> None:
    """Writes the model to the run's ``model`` folder, as the stock class if that can hold it.

    Raises:
        RunError: it cannot be written; a model that was there before still is.
    """
    with needing_disk(folder.model), written_aside(folder.model) as aside:
        if model.fits_stock_class:
            export_diffusers(model, aside)
        else:
            model.save_pretrained(aside)


# Measuring


def _measure(
    model: nn.Module,
    images: ImageDataset,
    lpips: Distance,
    batch_size: int,
    device: torch.device,
    num_workers: int,
    note_broken: Callable[[list[str]], None] | None,
    *,
    alpha: bool,
) -> ReconstructionQuality:
    """Measures this rank's part of the images, and reports unreadable ones."""
    loader = validation_loader(
        images,
        batch_size=batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=num_workers,
    )

    def batches() -> Iterator[Batch]:
        for batch in loader:
            if note_broken is not None:
                note_broken(batch["broken"])
            yield batch

    return evaluate_reconstruction(model, batches(), lpips, device, alpha=alpha)


@torch.no_grad()
def evaluate_reconstruction(
    autoencoder: nn.Module,
    batches: Iterable[Any],
    lpips: Distance,
    device: torch.device,
    *,
    alpha: bool = False,
) -> ReconstructionQuality:
    """Measures an autoencoder in eval mode on the images of all ranks; every rank must call it.

    Args:
        autoencoder: called as ``autoencoder(images).sample``.
        batches: this rank's batches, with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B].
        lpips: maps two [B, C, H, W] to [B]; called in float32 on values that 8 bits can hold.
        alpha: whether the images are RGBA; the result is then a ``TransparentQuality``.

    Raises:
        NoMeasurementError: there are no images, or a reconstruction holds NaN on any rank.
    """
    own = _OwnImages(autoencoder, device, alpha=alpha)
    failure = ""
    try:
        for batch in batches:
            own.add(batch, lpips)
    except BrokenImageError:
        raise
    except ValueError as error:  # raised below on all ranks: the others would wait forever
        failure = f"{error}\n"
    failures = distributed.all_gather_concat(
        torch.tensor(list(failure.encode(errors="backslashreplace")), dtype=torch.uint8)
    )
    if len(failures):
        raise NoMeasurementError("; ".join(dict.fromkeys(bytes(failures.tolist()).decode().splitlines())))
    return own.joined()


class _OwnImages:
    """Collects the measurements of this rank's images."""

    def __init__(self, autoencoder: nn.Module, device: torch.device, *, alpha: bool) -> None:
        self.alpha = alpha
        self.autoencoder = autoencoder
        self.device = device
        self.upscale = upscale_of(autoencoder)
        self.rows: list[Tensor] = []
        quantizer: Quantizer | None = getattr(autoencoder, "quantize", None)
        self.counts: Tensor | None = None
        if quantizer is not None:
            depth = () if quantizer.depth is None else (quantizer.depth,)
            self.counts = torch.zeros(*depth, quantizer.num_codes, dtype=torch.int64, device=device)

    def add(self, batch: dict[str, Any], lpips: Distance) -> None:
        """Measures a batch: a row [index, PSNR, SSIM, LPIPS, ...] per image, and its codes."""
        if not len(batch["images"]):  # none could be decoded
            return
        images = batch["images"].to(self.device)
        output = reconstruct(self.autoencoder, images, alpha=self.alpha)
        originals, reconstructions = (to_images(to_uint8(x)) for x in (images, output.sample))
        if self.alpha:
            ratios = transparent_psnr(reconstructions, originals)
            similarity, distance = (
                over_black_and_white(metric, reconstructions, originals) for metric in (ssim, lpips)
            )
            more = [ratios[name] for name in ALPHA_METRICS]
            values = [ratios["psnr"], similarity, to_float64(distance), *more]
        else:
            values = [
                psnr(reconstructions, originals),
                ssim(reconstructions, originals),
                to_float64(lpips(reconstructions, originals)),
            ]
        if self.upscale > 1:
            small_psnr = downscaled_composite_psnr if self.alpha else downscaled_psnr
            values.append(small_psnr(output.sample, images, self.upscale))
        self.rows.append(torch.stack([to_float64(batch["indices"].to(self.device)), *values], dim=1))
        if self.counts is not None:
            self.counts += code_counts(output.indices, self.counts.shape[-1])

    def joined(self) -> ReconstructionQuality:
        """Returns the means over the images of all ranks; every rank must call it."""
        names = ["psnr", "ssim", "lpips", *(ALPHA_METRICS if self.alpha else ())]
        if self.upscale > 1:
            names.append("psnr_downscaled")
        nothing = to_float64(torch.zeros(0, 1 + len(names), device=self.device))
        table = distributed.all_gather_concat(torch.cat(self.rows) if self.rows else nothing)
        if not len(table):
            raise NoMeasurementError("there are no images to evaluate on")
        # Summed in the images' order, the means do not depend on the number of ranks.
        means = table[table[:, 0].argsort()][:, 1:].mean(dim=0).tolist()
        make = TransparentQuality if self.alpha else ReconstructionQuality
        quality = make(**dict(zip(names, means, strict=True)), images=len(table))
        if self.counts is not None:
            health = codebook_health(distributed.all_reduce_sum(self.counts))
            quality.codebook_usage, quality.codebook_perplexity = health.usage, health.perplexity
        return quality
