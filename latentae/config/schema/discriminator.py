"""The networks that judge reconstructions. A second one makes `DiscriminatorConfig` a union."""

from typing import Literal, TypeAlias

from latentae.config.schema.base import Count, Section
from latentae.config.schema.optimizer import OptimizerConfig


class PatchGANConfig(Section):
    """A convolutional net with one logit per image patch (arXiv 1611.07004)."""

    type: Literal["patchgan"]
    base_channels: Count = 64
    """Width of the first layer; later layers double it, up to eight times."""
    num_layers: Count = 3
    """Layers that halve height and width (3: each logit sees 70x70 pixels)."""
    norm: Literal["group", "spectral", "none"] = "group"
    """Normalisation of the inner layers."""
    optimizer: OptimizerConfig
    """The discriminator's own optimizer."""


DiscriminatorConfig: TypeAlias = PatchGANConfig
