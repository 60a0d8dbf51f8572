"""torch.compile for the networks of a run, in place: classes, weights and their names stay.

Compiled are blocks, not whole networks: a step captures calls of the last convolutions (``CapturedCall``) by
hooks that a compiled forward would not see come and go.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch_config

from latentae.losses.perceptual import LPIPS

BACKEND = "inductor"
"""What compiles; torch has others that need no C++ compiler and make nothing faster, for tests."""

# With and without gradients, LPIPS's last chunk, images made smaller for a loss: a few variants of a block.
_MOST_VARIANTS = 32


def compile_networks(
    autoencoder: nn.Module, perceptual: nn.Module | None, discriminator: nn.Module | None
) -> str:
    """Has the blocks of encoder, decoder and discriminator, and LPIPS, compiled when they are first called.

    Shapes are static: another size or batch is compiled anew. The quantizer and what lies between the blocks
    are not compiled. A compiled block can be differentiated once, not twice.

    Args:
        autoencoder: has an ``encoder`` and a ``decoder``.
        perceptual: compiled where it is LPIPS.
        discriminator: None leaves it as it is.

    Returns:
        what was done, in a sentence.

    Raises:
        ValueError: a torch that cannot keep the blocks' variants apart.
    """
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise ValueError(
            f"compile is true, and torch {torch.__version__} counts the variants of all blocks together and "
            "gives up after a few (it has no isolate_recompiles): install torch 2.15, or set compile=false"
        )
    # The losses' gradients and the discriminator's go through one forward twice: its buffers must survive.
    functorch_config.donated_buffer = False
    options = {
        "backend": BACKEND,
        "dynamic": False,
        "isolate_recompiles": True,
        "recompile_limit": _MOST_VARIANTS,
    }
    networks = {
        "encoder": autoencoder.encoder,
        "decoder": autoencoder.decoder,
        "discriminator": discriminator,
    }
    counts = {
        name: _compile_blocks(network, options)
        for name, network in networks.items()
        if isinstance(network, nn.Module)
    }
    compiled = [f"{count} blocks of {name}" for name, count in counts.items()]
    if isinstance(perceptual, LPIPS):
        perceptual.compile_passes(**options)
        compiled.append("LPIPS")
    return (
        f"compile=true: {', '.join(compiled)} are compiled by {BACKEND} when first called, which takes "
        "minutes; not measured on a GPU here"
    )


def _compile_blocks(network: nn.Module, options: dict[str, Any]) -> int:
    """Compiles the parts that are more than one layer; returns how many there are."""
    blocks = [
        block
        for child in network.children()
        for block in (child if isinstance(child, nn.ModuleList) else [child])
        if any(True for _ in block.children())
    ]
    for block in blocks:
        block.compile(**options)
    return len(blocks)
