"""The networks that judge reconstructions. A second one makes `DiscriminatorConfig` a union."""

from typing import Annotated, Literal, TypeAlias

from latentae.config.schema.base import FROM_LIST, Count, Positive, Section
from latentae.config.schema.optimizer import OptimizerConfig


class R1Config(Section):
    """A penalty on the slope of the discriminator's logits at real images (R1, arXiv 1801.04406), applied
    lazily as in StyleGAN2."""

    weight: Positive
    """Factor of |gradient of the sum of an image's logits|^2 / (2 x number of these logits), the mean over
    images. A PatchGAN's is about 1 before the factor, so 0.1 is felt; 10 in StyleGAN2, with one logit."""
    every: Count = 16
    """The penalty joins every so many-th update of the discriminator, as many times stronger. `max_grad_norm`
    cuts such an update back like any other, and the penalty with it; 1 avoids that, at a cost in time."""


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
    update_every: Count = 1
    """The discriminator learns in every so many-th optimizer step: more than 1 holds back one that is too
    strong."""
    augment: Annotated[tuple[Literal["color", "translation", "cutout"], ...], FROM_LIST] = ()
    """Random changes, in this order, that it sees images and reconstructions through (DiffAug, arXiv
    2006.10738): for few images, which it would else learn by heart. []: none."""
    r1: R1Config | None = None
    """Penalty on its slope; null: none."""


DiscriminatorConfig: TypeAlias = PatchGANConfig
