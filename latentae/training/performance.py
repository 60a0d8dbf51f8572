"""What makes a step faster or leaner without changing what it computes, chosen by what was measured.

The measurements are those of benchmarks/bench_step.py, in benchmarks/results.
"""

from __future__ import annotations

import torch
from torch import nn

from latentae.losses.objective import ReconstructionObjective
from latentae.losses.perceptual import LPIPS
from latentae.models.lean import make_lean

# On a device that is not named, stock blocks and whole batches: nothing was measured there.
_LEAN_DEVICES = ("cpu",)
# At fewer pixels the deepest layers, all weights and hardly any pixels, would be read too often.
_LPIPS_PIXELS = {"cpu": 2**15}


def tune(
    autoencoder: nn.Module, objective: ReconstructionObjective, size: tuple[int, int], device: torch.device
) -> str:
    """Makes the choices for a device, in place, and says in a sentence which.

    Args:
        autoencoder: what is trained, not yet compiled; names and values of its weights stay.
        objective: whose perceptual loss goes through its network in chunks.
        size: height and width of the training images, in pixels; of the largest, where they differ.
        device: where it is trained.
    """
    chosen = []
    if device.type in _LEAN_DEVICES:
        exchanged = make_lean(autoencoder)
        if exchanged:
            chosen.append(f"{exchanged} lean blocks")
    perceptual, pixels = objective.perceptual, _LPIPS_PIXELS.get(device.type)
    if isinstance(perceptual, LPIPS) and pixels is not None:
        perceptual.chunk = max(1, pixels // (size[0] * size[1]))
        chosen.append(f"LPIPS {perceptual.chunk} images at a time")
    return f"performance=auto on {device.type}: {', '.join(chosen) or 'nothing to choose'}"
