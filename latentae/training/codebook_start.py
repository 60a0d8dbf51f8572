"""The first latents of a run, among which its codebook is placed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from latentae import distributed
from latentae.data import Batch
from latentae.quantizers import LatentMap, Quantizer

# Images of so many batches are held at once, whatever the codebook would like to see.
MOST_BATCHES = 16


class StartableAutoencoder(Protocol):
    """What a start needs of a VQ model."""

    quantize: Quantizer

    def encode(self, images: Tensor, /) -> Any:
        """``latents`` [B, d, h, w] of images."""

    def move_latents(self, change: LatentMap, /) -> None:
        """Changes what ``encode`` gives."""


@torch.no_grad()
def start_codebook(
    autoencoder: StartableAutoencoder,
    batches: Iterator[Batch],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Starts a model's quantizer from the first batches of all ranks; gives these again, and then the rest.

    The quantizer asks, by ``latents_to_start``, for so many latents; it gets those of one batch at least and
    of 16 at most.

    Args:
        autoencoder: on ``device``.
        batches: this rank's, as many latents in each as on any other rank.
        generator: on the CPU, in the same state on every rank.

    Raises:
        ValueError: latents that are not finite.
    """
    quantizer = autoencoder.quantize
    first = next(batches)
    latents = [autoencoder.encode(first["images"].to(device)).latents]
    in_all = latents[0][:, 0].numel() * distributed.world_size()
    wanted = min(-(-quantizer.latents_to_start // in_all), MOST_BATCHES)
    others = list(itertools.islice(batches, max(wanted - 1, 0)))
    latents += [autoencoder.encode(batch["images"].to(device)).latents for batch in others]
    change = quantizer.start(latents, generator)
    if change is not None:
        autoencoder.move_latents(change)
    return itertools.chain([first, *others], batches)
