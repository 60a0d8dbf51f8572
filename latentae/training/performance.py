"""Choices that make a step faster or leaner and do not change what it computes.

On a CPU they follow from the measurements of benchmarks/bench_step.py, in benchmarks/results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import nn

from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.models.lean import make_lean

# A device that is not named keeps the stock blocks: nothing was measured there.
_LEAN_DEVICES = ("cpu",)
# Pixels that LPIPS takes at a time. On a CPU: with fewer, the deepest layers, which have many weights and
# hardly any pixels, would read their weights too often.
_LPIPS_PIXELS = {"cpu": 2**15}
# On any other device: LPIPS on VGG16, the larger trunk, then holds less than 1 GiB (1.4 kB per pixel, in
# float32), whatever the batch.
_LPIPS_PIXELS_ELSEWHERE = 2**19


@dataclass(frozen=True)
class TorchSettings:
    """What a run sets in torch for the whole process, and what its end puts back.

    Attributes:
        tries_algorithms: whether cuDNN tries its algorithms out.
        determinism: torch's mode: 0 for none, 1 for warnings, 2 for deterministic algorithms only.
        threads: that torch computes with on a CPU.
    """

    tries_algorithms: bool
    determinism: int
    threads: int

    @classmethod
    def read(cls) -> Self:
        """The present settings."""
        return cls(
            torch.backends.cudnn.benchmark,
            torch.get_deterministic_debug_mode(),
            torch.get_num_threads(),
        )

    def restore(self) -> None:
        """Makes these the settings again."""
        torch.backends.cudnn.benchmark = self.tries_algorithms
        torch.set_deterministic_debug_mode(self.determinism)
        torch.set_num_threads(self.threads)


def tune(
    autoencoder: nn.Module,
    objective: ReconstructionObjective,
    size: tuple[int, int],
    device: torch.device,
    *,
    performance: Literal["auto", "memory"] = "auto",
    sizes_differ: bool = False,
) -> str:
    """Makes the choices for a device, in place, and names them in a sentence.

    Args:
        autoencoder: the model to train, not yet compiled; names and values of its weights stay.
        objective: its perceptual loss goes through its network in chunks.
        size: height and width of the training images, in pixels; of the largest, where they differ.
        device: where it is trained.
        performance: ``memory`` takes the least memory there is, on any device and at some cost in time.
        sizes_differ: whether the networks see tensors of several sizes.
    """
    least = performance == "memory"
    chosen = []
    if least or device.type in _LEAN_DEVICES:
        channels = _fewest_channels(autoencoder) if least else 0
        exchanged = make_lean(autoencoder, recomputed_channels=channels)
        if exchanged:
            again = f", convolutions of {channels} channels done twice" if channels else ""
            chosen.append(f"{exchanged} lean blocks{again}")
    perceptual = objective.perceptual
    pixels = 0 if least else _LPIPS_PIXELS.get(device.type, _LPIPS_PIXELS_ELSEWHERE)
    if isinstance(perceptual, LPIPS):
        perceptual.chunk = max(1, pixels // (size[0] * size[1]))
        rounded = "" if perceptual.precision == "float32" else f" in {perceptual.precision}"
        chosen.append(f"LPIPS {perceptual.chunk} images at a time{rounded}")
    if device.type == "cuda":
        chosen += _tune_cuda(sizes_differ)
    return f"performance={performance} on {device.type}: {'; '.join(chosen) or 'nothing to choose'}"


def _tune_cuda(sizes_differ: bool) -> list[str]:
    """What cuDNN's and torch's documentation promise for any model; the rest waits for a measurement.

    cuDNN tries out its algorithms for each size that it meets for the first time, which only pays where sizes
    repeat. The setting holds for the whole process, so it is also switched off.
    """
    chosen = ["fused AdamW, batches copied from pinned memory while the GPU computes"]
    torch.backends.cudnn.benchmark = not (sizes_differ or torch.are_deterministic_algorithms_enabled())
    if torch.backends.cudnn.benchmark:
        chosen.append("cuDNN tries its algorithms out")
    return [*chosen, "chosen by documentation, not measured here"]


def use_channels_last(
    autoencoder: nn.Module, perceptual: nn.Module | None, discriminator: nn.Module | None
) -> str:
    """Has convolutions keep a pixel's channels next to each other, in place, and says so.

    Only the memory order of the weights is another; their names, shapes and values stay. Convolutions give
    their output the order of their weights, and so what follows them.
    """
    for network in (autoencoder, perceptual, discriminator):
        if network is not None:
            network.to(memory_format=torch.channels_last)
    return "channels_last=true: convolutions in channels last; not measured on a GPU here, slower on a CPU"


def set_float32_precision(precision: Literal["highest", "high"], device: torch.device) -> str:
    """Sets what CUDA computes float32 in, for the whole process, and says so.

    Args:
        precision: ``high`` allows TensorFloat-32 (10 bits of mantissa) in matrix products and convolutions,
            ``highest`` in neither. torch's own default is TensorFloat-32 in convolutions alone.
        device: where the run computes; on others than CUDA nothing is set.
    """
    if device.type != "cuda":
        return f"float32_precision={precision}: is about CUDA, nothing to set on {device.type}"
    # The older of torch's two interfaces: who reads it after the newer one was used, as torch does, fails.
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision == "high"
    how = "TensorFloat-32" if precision == "high" else "float32 throughout"
    return f"float32_precision={precision}: {how} in matrix products and convolutions"


def _fewest_channels(autoencoder: nn.Module) -> int:
    """Channels of the level with the most pixels."""
    channels: int = min(autoencoder.config.block_out_channels)  # type: ignore[union-attr, arg-type]
    return channels
