"""The first latents of a run, among which its codebook is placed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from latentae import distributed
from latentae.data import Batch
from latentae.quantizers import Quantizer

# Images of so many batches are held at once, whatever the codebook would like to see.
MOST_BATCHES = 16


@torch.no_grad()
def start_codebook(
    quantizer: Quantizer,
    encode: Callable[[Tensor], Tensor],
    batches: Iterator[Batch],
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Starts a quantizer from the first batches of all ranks; gives these again, and then the rest.

    Args:
        quantizer: asks, by ``latents_to_start``, for so many latents; it gets those of one batch at least and
            of 16 at most.
        encode: from images to latents [B, d, h, w].
        batches: this rank's, as many latents in each as on any other rank.
        generator: on the CPU, in the same state on every rank.

    Raises:
        ValueError: latents that are not finite.
    """
    first = next(batches)
    latents = [encode(first["images"])]
    in_all = latents[0][:, 0].numel() * distributed.world_size()
    wanted = min(-(-quantizer.latents_to_start // in_all), MOST_BATCHES)
    others = list(itertools.islice(batches, max(wanted - 1, 0)))
    latents += [encode(batch["images"]) for batch in others]
    quantizer.start(latents, generator)
    return itertools.chain([first, *others], batches)
