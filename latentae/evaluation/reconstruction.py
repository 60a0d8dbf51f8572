"""Reconstruction quality of an autoencoder over a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.data import BrokenImageError
from latentae.devices import to_float64
from latentae.evaluation.metrics import psnr, ssim, to_uint8
from latentae.quantizers import Quantizer, code_counts, codebook_health

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass
class ReconstructionQuality:
    """Means over all images of 8-bit reconstructions against 8-bit originals.

    Attributes:
        psnr: dB. ssim: in [−1, 1]. lpips: ≥ 0.
        images: how many.
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
    """Images could not be measured; raised on every rank alike, with the reasons of all of them."""


@torch.no_grad()
def evaluate_reconstruction(
    autoencoder: nn.Module, batches: Iterable[dict[str, Any]], lpips: Distance, device: torch.device
) -> ReconstructionQuality:
    """Runs the autoencoder, in eval mode, over the images of all ranks; every rank must call it.

    Args:
        autoencoder: called as ``autoencoder(images).sample``.
        batches: this rank's batches, with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B].
        lpips: maps two [B, C, H, W] to [B]; called in float32 on what 8 bits can hold.

    Raises:
        NoMeasurementError: no images; or a reconstruction that holds NaN, on whichever rank.
    """
    own = _OwnImages(autoencoder, device)
    failure = ""
    try:
        for batch in batches:
            own.add(batch, lpips)
    except BrokenImageError:
        raise
    except ValueError as error:  # the others would wait for this rank's numbers forever
        failure = f"{error}\n"
    failures = distributed.all_gather_concat(
        torch.tensor(list(failure.encode(errors="backslashreplace")), dtype=torch.uint8)
    )
    if len(failures):
        raise NoMeasurementError("; ".join(dict.fromkeys(bytes(failures.tolist()).decode().splitlines())))
    return own.joined()


class _OwnImages:
    """This rank's part of an evaluation."""

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
        """Measures a batch: a row [index, PSNR, SSIM, LPIPS] an image, and the codes."""
        if not len(batch["images"]):  # none of them could be decoded
            return
        images = batch["images"].to(self.device)
        output = self.autoencoder(images)
        originals, reconstructions = (to_uint8(x).float() / 127.5 - 1 for x in (images, output.sample))
        values = [
            psnr(reconstructions, originals),
            ssim(reconstructions, originals),
            to_float64(lpips(reconstructions, originals)),
        ]
        self.rows.append(torch.stack([to_float64(batch["indices"].to(self.device)), *values], dim=1))
        if self.counts is not None:
            self.counts += code_counts(output.indices, self.counts.shape[-1])

    def joined(self) -> ReconstructionQuality:
        """The means over the images of all ranks, which must call it together."""
        nothing = to_float64(torch.zeros(0, 4, device=self.device))
        table = distributed.all_gather_concat(torch.cat(self.rows) if self.rows else nothing)
        if not len(table):
            raise NoMeasurementError("there are no images to evaluate on")
        # Summed in the images' own order, the means do not depend on how many ranks shared the work.
        mean_psnr, mean_ssim, mean_lpips = table[table[:, 0].argsort()][:, 1:].mean(dim=0).tolist()
        quality = ReconstructionQuality(psnr=mean_psnr, ssim=mean_ssim, lpips=mean_lpips, images=len(table))
        if self.counts is not None:
            health = codebook_health(distributed.all_reduce_sum(self.counts))
            quality.codebook_usage, quality.codebook_perplexity = health.usage, health.perplexity
        return quality
