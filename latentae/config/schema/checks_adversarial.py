"""Contradictions between the adversarial loss, its discriminator, the model and the images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.loss import SMALLEST_IMAGE
from latentae.config.schema.model import VQGANConfig, VQVAEConfig
from latentae.config.yaml_text import show

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def check_adversarial(config: RunConfig) -> Iterator[str]:
    """Yields every contradiction, as ``find_problems`` returns them."""
    yield from _adversarial(config)
    yield from _discriminator(config)
    yield from _discriminator_images(config)


def shortest_side(config: RunConfig) -> int:
    """Returns the shortest side of all training images."""
    return min(min(size) for size in config.data.training_sizes)


def discriminator_side(config: RunConfig) -> int:
    """Returns the image side that the discriminator needs; 1 without one."""
    discriminator = config.discriminator
    if discriminator is None or config.loss.adversarial is None:
        return 1
    if discriminator.type == "patchgan":
        # After the halving layers two 4x4 convolutions remove one pixel each, and one must remain.
        return 3 * 2**discriminator.num_layers
    if discriminator.type == "wavelet":
        return int(2**discriminator.num_layers)
    if discriminator.type == "frozen_features":
        trunk = "vgg" if discriminator.network == "vgg16" else discriminator.network
        return SMALLEST_IMAGE.get(trunk, 1)  # a transformer's images are resized
    return 1


def _adversarial(config: RunConfig) -> Iterator[str]:
    """A VQVAE has no adversarial loss, a VQGAN has one, and the discriminator's warmup comes before it."""
    adversarial = config.loss.adversarial
    if isinstance(config.model, VQVAEConfig) and adversarial is not None:
        yield (
            "`loss.adversarial` is set, but `model.class: VQVAE` is trained without one; set it to null "
            "or use `model.class: VQGAN`"
        )
    if isinstance(config.model, VQGANConfig) and adversarial is None:
        yield (
            "`loss.adversarial` is null, but `model.class: VQGAN` is trained with one; set its keys "
            "(`type: hinge`, `start_step`) or use `model.class: VQVAE`"
        )
    if adversarial is not None and adversarial.discriminator_warmup_steps > adversarial.start_step:
        yield (
            "`loss.adversarial.discriminator_warmup_steps` is "
            f"{adversarial.discriminator_warmup_steps}, more than the {adversarial.start_step} steps before "
            "`loss.adversarial.start_step`; lower the former or raise the latter"
        )


def _discriminator(config: RunConfig) -> Iterator[str]:
    """The adversarial loss and the discriminator need each other."""
    adversarial, discriminator = config.loss.adversarial, config.discriminator
    if adversarial is not None and discriminator is None:
        yield "`discriminator` is null, but `loss.adversarial` needs one; set its `type` and `optimizer`"
    # With a VQGAN it is the missing loss that is wrong, which `_adversarial` reports.
    untrained = adversarial is None and not isinstance(config.model, VQGANConfig)
    if untrained and discriminator is not None:
        yield "`discriminator` is set, but without `loss.adversarial` nothing trains it; set it to null"
    if adversarial is not None and adversarial.min_adaptive_weight > adversarial.max_adaptive_weight:
        yield (
            f"`loss.adversarial.min_adaptive_weight` is {adversarial.min_adaptive_weight:g}, more than "
            f"`loss.adversarial.max_adaptive_weight`, {adversarial.max_adaptive_weight:g}; lower the former "
            "or raise the latter"
        )
    if discriminator is not None and len(set(discriminator.augment)) < len(discriminator.augment):
        once = list(dict.fromkeys(discriminator.augment))
        yield (
            f"`discriminator.augment` is {show(list(discriminator.augment))}, but may name each augmentation "
            f"only once; use {show(once)}"
        )


def _discriminator_images(config: RunConfig) -> Iterator[str]:
    """The discriminator can take the images: their channels, and the smallest of them."""
    discriminator = config.discriminator
    if discriminator is None or config.loss.adversarial is None:
        return
    if discriminator.type == "frozen_features":
        if config.model.in_channels != 3 and not config.data.alpha:
            yield (
                f"`discriminator.type` is frozen_features, but `model.in_channels` is "
                f"{config.model.in_channels}, and its network needs RGB images; use "
                "discriminator.type=patchgan"
            )
        if discriminator.head_channels % 16:
            yield (
                f"`discriminator.head_channels` is {discriminator.head_channels}, but the heads normalise 8 "
                f"groups of two channels or more; use {math.ceil(discriminator.head_channels / 16) * 16}"
            )
    shortest, needed = shortest_side(config), discriminator_side(config)
    if shortest < needed:
        key, remedy = "num_layers", "lower it"
        if discriminator.type == "frozen_features":
            key, remedy = "network", "choose another one"
        yield (
            f"`discriminator.{key}` is {getattr(discriminator, key)}, which needs images of {needed} pixels "
            f"or more per side, but they have {shortest}; {remedy}, or raise `data.image_size`"
        )
