"""Choices that make a step faster or leaner without changing what it computes; torch.compile among them.

On a CPU they follow from the measurements of benchmarks/bench_step.py, in benchmarks/results.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config

from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.models.lean import make_lean

BACKEND = "inductor"
"""The compiler. Tests use others of torch's, which need no C++ compiler and make nothing faster."""

# Other devices keep the stock blocks: nothing was measured there.
_LEAN_DEVICES = ("cpu",)
# Pixels that LPIPS takes at a time. On a CPU: with fewer, the deepest layers, which have many weights and
# hardly any pixels, would read their weights too often.
_LPIPS_PIXELS = {"cpu": 2**15}
# On any other device: LPIPS on VGG16, the larger trunk, then holds less than 1 GiB (1.4 kB per pixel, in
# float32), whatever the batch.
_LPIPS_PIXELS_ELSEWHERE = 2**19
# With and without gradients, LPIPS's last chunk, images resized for a loss: a few variants of a block.
_MOST_VARIANTS = 32
# More than the networks have. Torch before 2.14 counts the variants of all blocks of a class together.
_MOST_BLOCKS = 64
_LIMITS_BEFORE_2_14 = (
    "recompile_limit",
    "cache_size_limit",
    "accumulated_recompile_limit",
    "accumulated_cache_size_limit",
)


@dataclass(frozen=True)
class TorchSettings:
    """Settings of torch for the whole process, which a run makes and restores at its end.

    Attributes:
        tries_algorithms: whether cuDNN benchmarks its algorithms.
        determinism: torch's mode: 0 for none, 1 for warnings, 2 for deterministic algorithms only.
        threads: number of threads on a CPU.
    """

    tries_algorithms: bool
    determinism: int
    threads: int

    @classmethod
    def read(cls) -> Self:
        """Returns the present settings."""
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
    """Makes the choices for a device, in place, and returns a sentence that names them.

    Args:
        autoencoder: the model to train, not yet compiled; names and values of its weights stay.
        objective: its perceptual loss goes through its network in chunks.
        size: height and width in pixels of the training images, the largest if they differ.
        device: where it is trained.
        performance: ``memory`` takes the least memory possible, on any device and at some cost in time.
        sizes_differ: whether the networks see tensors of several sizes.
    """
    least = performance == "memory"
    chosen = []
    if least or device.type in _LEAN_DEVICES:
        # The level with the most pixels has the fewest channels.
        channels: int = min(autoencoder.config.block_out_channels) if least else 0  # type: ignore[union-attr, arg-type]
        exchanged = make_lean(autoencoder, recomputed_channels=channels)
        if exchanged:
            again = f", convolutions of {channels} channels done twice" if channels else ""
            chosen.append(f"{exchanged} lean blocks{again}")
    perceptual = objective.perceptual
    pixels = 0 if least else _LPIPS_PIXELS.get(device.type, _LPIPS_PIXELS_ELSEWHERE)
    if isinstance(perceptual, LPIPS):
        perceptual.chunk = max(1, pixels // (size[0] * size[1]))
        how = "" if perceptual.precision == "float32" else f" in {perceptual.precision}"
        if device.type == "cpu" and not least and perceptual.precision == "float32":
            how = f", {perceptual.use_winograd()} of its convolutions by Winograd's algorithm"
        chosen.append(f"LPIPS {perceptual.chunk} images at a time{how}")
    if device.type == "cuda":
        # What cuDNN's and torch's documentation promise for any model; the rest waits for a measurement.
        chosen.append("batches copied from pinned memory while the GPU computes")
        # cuDNN benchmarks for each new size, which pays only if sizes repeat. The setting holds for the whole
        # process, so it is also switched off.
        torch.backends.cudnn.benchmark = not (sizes_differ or torch.are_deterministic_algorithms_enabled())
        if torch.backends.cudnn.benchmark:
            chosen.append("cuDNN tries its algorithms out")
        chosen.append("chosen by documentation, not measured here")
    return f"performance={performance} on {device.type}: {'; '.join(chosen) or 'nothing to choose'}"


def use_channels_last(
    autoencoder: nn.Module, perceptual: nn.Module | None, discriminator: nn.Module | None
) -> str:
    """Stores convolution weights in channels last, in place, and returns a sentence that says so.

    Names, shapes and values of the weights stay. Convolutions give their output the memory order of their
    weights, and what follows keeps it.
    """
    for network in (autoencoder, perceptual, discriminator):
        if network is not None:
            network.to(memory_format=torch.channels_last)
    return "channels_last=true: convolutions in channels last; not measured on a GPU here, slower on a CPU"


def set_float32_precision(precision: Literal["highest", "high"], device: torch.device) -> str:
    """Sets how CUDA computes in float32, for the whole process, and returns a sentence that says so.

    Args:
        precision: ``high`` allows TensorFloat-32 (10 bits of mantissa) in matrix products and convolutions,
            ``highest`` in neither. torch's own default is TensorFloat-32 in convolutions alone.
        device: where the run computes; nothing is set unless it is CUDA.
    """
    if device.type != "cuda":
        return f"float32_precision={precision}: is about CUDA, nothing to set on {device.type}"
    # torch's older interface: reading it after the newer one was used, as torch itself does, is an error.
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision == "high"
    how = "TensorFloat-32" if precision == "high" else "float32 throughout"
    return f"float32_precision={precision}: {how} in matrix products and convolutions"


def compile_networks(
    autoencoder: nn.Module, perceptual: nn.Module | None, discriminator: nn.Module | None
) -> str:
    """Compiles the blocks of encoder, decoder and discriminator, and LPIPS, when they are first called.

    Classes, weights and their names stay. Blocks are compiled, not whole networks: a step watches the inputs
    of the last convolutions by hooks that come and go, which a compiled forward would not see. Shapes are
    static: another size or batch is compiled anew. The quantizer and what lies between the blocks are not
    compiled. A compiled block can be differentiated once, not twice.

    Args:
        autoencoder: has an ``encoder`` and a ``decoder``.
        perceptual: compiled if it is LPIPS.
        discriminator: None: there is none to compile.

    Returns:
        what was done, in a sentence.
    """
    # The losses' gradients and the discriminator's go through one forward twice: its buffers must survive.
    functorch_config.donated_buffer = False
    options: dict[str, Any] = {"backend": BACKEND, "dynamic": False}
    if _can_isolate_blocks():
        options |= {"isolate_recompiles": True, "recompile_limit": _MOST_VARIANTS}
    else:
        _allow_variants(_MOST_VARIANTS * _MOST_BLOCKS)
    networks = {
        "encoder": autoencoder.encoder,
        "decoder": autoencoder.decoder,
        "discriminator": discriminator,
    }
    compiled = [
        f"{_compile_blocks(network, options)} blocks of {name}"
        for name, network in networks.items()
        if isinstance(network, nn.Module)
    ]
    if isinstance(perceptual, LPIPS):
        perceptual.compile_passes(**options)
        compiled.append("LPIPS")
    return (
        f"compile=true: {', '.join(compiled)} are compiled by {BACKEND} when first called, which takes "
        "minutes; not measured on a GPU here"
    )


def _can_isolate_blocks() -> bool:
    """Returns whether the compiler can count each block's variants on their own."""
    return "isolate_recompiles" in inspect.signature(torch.compile).parameters


def _allow_variants(count: int) -> None:
    """Lets the compiler make this many variants of a piece of code before it gives up, in this process."""
    for name in _LIMITS_BEFORE_2_14:
        if hasattr(dynamo_config, name):
            setattr(dynamo_config, name, max(count, getattr(dynamo_config, name)))


def _compile_blocks(network: nn.Module, options: dict[str, Any]) -> int:
    """Compiles the parts that are more than one layer; returns how many there are."""
    # The halves of a TAESD are one sequence of layers each.
    children = network.layers if isinstance(network, EncoderTiny | DecoderTiny) else network.children()
    blocks = [
        block
        for child in children
        for block in (child if isinstance(child, nn.ModuleList) else [child])
        if any(True for _ in block.children())
    ]
    for block in blocks:
        block.compile(**options)
    return len(blocks)
