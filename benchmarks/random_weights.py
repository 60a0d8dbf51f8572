"""Random weights in the place of downloads, so that a machine without network can train, measure and test.

They have the shapes and about the scale of the trained ones. So they cost the same time and memory, and what
they measure means nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models
from torch import Tensor

_NETWORKS = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}
_READERS = (
    "latentae.build.load_trunk",
    "latentae.evaluation.networks.load_trunk",
    "latentae.evaluation.features.load_trunk",
)


def random_trunk(name: str) -> dict[str, Tensor]:
    """Returns random convolutions under the names and with the shapes that `load_trunk` returns.

    Weights are N(0, 2 / fan-in), so that activations keep their scale from layer to layer. They are the same
    in each call.

    Args:
        name: `alex` or `vgg`.
    """
    with torch.device("meta"):
        layers = _NETWORKS[name](weights=None).features
    generator = torch.Generator().manual_seed(0)
    return {
        f"features.{key}": torch.zeros(value.shape)
        if value.ndim == 1
        else torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        for key, value in layers.state_dict().items()
    }


def use_random_trunks(patch: Any) -> None:
    """Lets the package take random trunks for LPIPS and VGG16's features.

    Args:
        patch: `setattr` of pytest's monkeypatch, or of its `MonkeyPatch` for a whole process.
    """
    for reader in _READERS:
        patch(reader, random_trunk)
