"""Measures reconstructions of the validation images, during a run and at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.data import Batch, BrokenImageError, ImageDataset, validation_loader
from latentae.devices import to_float64
from latentae.evaluation.metrics import psnr, ssim, to_images, to_uint8
from latentae.quantizers import Quantizer, code_counts, codebook_health

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass
class ReconstructionQuality:
    """Means over all images of 8-bit reconstructions against 8-bit originals.

    Attributes:
        psnr: dB. ssim: in [−1, 1]. lpips: ≥ 0.
        images: number of images.
        codebook_usage: share of the codes that occurred; None for models without codes.
        codebook_perplexity: exp of the entropy of their frequencies.
    """

    psnr: float
    ssim: float
    lpips: float
    images: int
    codebook_usage: float | None = None
    codebook_perplexity: float | None = None


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
        note_broken: receives the names of unreadable images, which are left out.

    Returns:
        ``validation_psnr`` in dB, ``validation_ssim``, ``validation_lpips``, and with a codebook
        ``validation_codebook_usage`` and ``validation_codebook_perplexity``.
    """
    loader = validation_loader(
        images,
        batch_size=batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=num_workers,
    )
    with evaluating(model):
        quality = asdict(evaluate_reconstruction(model, noting_broken(loader, note_broken), lpips, device))
    del quality["images"]
    return {f"validation_{name}": value for name, value in quality.items() if value is not None}


@torch.no_grad()
def evaluate_reconstruction(
    autoencoder: nn.Module, batches: Iterable[dict[str, Any]], lpips: Distance, device: torch.device
) -> ReconstructionQuality:
    """Measures an autoencoder in eval mode on the images of all ranks; every rank must call it.

    Args:
        autoencoder: called as ``autoencoder(images).sample``.
        batches: this rank's batches, with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B].
        lpips: maps two [B, C, H, W] to [B]; called in float32 on what 8 bits can hold.

    Raises:
        NoMeasurementError: there are no images, or a reconstruction holds NaN on any rank.
    """
    own = _OwnImages(autoencoder, device)
    failure = ""
    try:
        for batch in batches:
            own.add(batch, lpips)
    except BrokenImageError:
        raise
    except ValueError as error:  # the other ranks would wait forever
        failure = f"{error}\n"
    failures = distributed.all_gather_concat(
        torch.tensor(list(failure.encode(errors="backslashreplace")), dtype=torch.uint8)
    )
    if len(failures):
        raise NoMeasurementError("; ".join(dict.fromkeys(bytes(failures.tolist()).decode().splitlines())))
    return own.joined()


class _OwnImages:
    """Collects the measurements of this rank's images."""

    def __init__(self, autoencoder: nn.Module, device: torch.device) -> None:
        self.autoencoder = autoencoder
        self.device = device
        self.rows: list[Tensor] = []
        quantizer: Quantizer | None = getattr(autoencoder, "quantize", None)
        self.counts: Tensor | None = None
        if quantizer is not None:
            depth = () if quantizer.depth is None else (quantizer.depth,)
            self.counts = torch.zeros(*depth, quantizer.num_codes, dtype=torch.int64, device=device)

    def add(self, batch: dict[str, Any], lpips: Distance) -> None:
        """Measures a batch: a row [index, PSNR, SSIM, LPIPS] per image, and its codes."""
        if not len(batch["images"]):  # none could be decoded
            return
        images = batch["images"].to(self.device)
        output = self.autoencoder(images)
        originals, reconstructions = (to_images(to_uint8(x)) for x in (images, output.sample))
        values = [
            psnr(reconstructions, originals),
            ssim(reconstructions, originals),
            to_float64(lpips(reconstructions, originals)),
        ]
        self.rows.append(torch.stack([to_float64(batch["indices"].to(self.device)), *values], dim=1))
        if self.counts is not None:
            self.counts += code_counts(output.indices, self.counts.shape[-1])

    def joined(self) -> ReconstructionQuality:
        """Returns the means over the images of all ranks; every rank must call it."""
        nothing = to_float64(torch.zeros(0, 4, device=self.device))
        table = distributed.all_gather_concat(torch.cat(self.rows) if self.rows else nothing)
        if not len(table):
            raise NoMeasurementError("there are no images to evaluate on")
        # Summed in the images' order, the means do not depend on the number of ranks.
        mean_psnr, mean_ssim, mean_lpips = table[table[:, 0].argsort()][:, 1:].mean(dim=0).tolist()
        quality = ReconstructionQuality(psnr=mean_psnr, ssim=mean_ssim, lpips=mean_lpips, images=len(table))
        if self.counts is not None:
            health = codebook_health(distributed.all_reduce_sum(self.counts))
            quality.codebook_usage, quality.codebook_perplexity = health.usage, health.perplexity
        return quality


def noting_broken(loader: Iterable[Batch], note_broken: Callable[[list[str]], None] | None) -> Iterator[Any]:
    """Yields the batches of a loader, and reports unreadable images."""
    for batch in loader:
        if note_broken is not None:
            note_broken(batch["broken"])
        yield batch


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
