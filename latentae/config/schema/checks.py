"""What one section of a config demands of another: errors, and warnings about what is legal but unlikely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.model import KLVAEConfig, VQGANConfig, VQVAEConfig
from latentae.config.yaml_text import show

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig

SMALLEST_IMAGE = {
    "alex": 31,  # an 11×11 convolution of stride 4, then two 3×3 max-pools of stride 2, leave one pixel
    "vgg": 16,  # four max-pools that halve leave one pixel
}
"""Shortest image side, in pixels, that a perceptual trunk's deepest layer can still be computed on."""


def find_problems(config: RunConfig) -> list[str]:
    """Every contradiction between sections, one line each: field, value, remedy. Empty when there is none."""
    return [
        *_image_size(config),
        *_norm_groups(config),
        *_attention_levels(config),
        *_kl(config),
        *_adversarial(config),
        *_discriminator(config),
        *_downscale(config),
    ]


def config_warnings(config: RunConfig) -> list[str]:
    """What is allowed but probably not meant, one line each: field, value and consequence."""
    warnings = []
    adversarial = config.loss.adversarial
    if adversarial is not None and adversarial.start_step >= config.max_steps:
        warnings.append(
            f"`loss.adversarial.start_step` is {adversarial.start_step} and `max_steps` {config.max_steps}: "
            "the adversarial loss never starts"
        )
    if config.optimizer.warmup_steps >= config.max_steps:
        warnings.append(
            f"`optimizer.warmup_steps` is {config.optimizer.warmup_steps} and `max_steps` "
            f"{config.max_steps}: the learning rate never reaches `optimizer.learning_rate`"
        )
    return warnings


def _image_size(config: RunConfig) -> Iterator[str]:
    sides, factor = config.data.height_and_width, config.model.downsampling_factor
    shown = sides[0] if isinstance(config.data.image_size, int) else list(sides)
    perceptual = config.loss.perceptual
    if perceptual is not None and min(sides) < SMALLEST_IMAGE[perceptual.trunk]:
        smallest = math.ceil(SMALLEST_IMAGE[perceptual.trunk] / factor) * factor
        yield (
            f"`data.image_size` is {shown}, too small for the perceptual loss with `loss.perceptual.trunk: "
            f"{perceptual.trunk}`; use {smallest} or more, or loss.perceptual=null"
        )
    elif any(side % factor for side in sides):
        below = [max(side // factor, 1) * factor for side in sides]
        above = [math.ceil(side / factor) * factor for side in sides]
        nearest = [sizes[0] if isinstance(shown, int) else sizes for sizes in (below, above)]
        remedy = f"{nearest[0]} or {nearest[1]}" if nearest[0] != nearest[1] else f"{nearest[0]}"
        yield (
            f"`data.image_size` is {shown}, not a multiple of {factor}, by which a model with "
            f"{len(config.model.block_out_channels)} `model.block_out_channels` shrinks it; use {remedy}"
        )


def _norm_groups(config: RunConfig) -> Iterator[str]:
    groups, widths = config.model.norm_num_groups, config.model.block_out_channels
    offending = sorted({width for width in widths if width % groups})
    if offending:
        shared = math.gcd(*widths)
        remedy = max(divisor for divisor in range(1, min(groups, shared) + 1) if shared % divisor == 0)
        yield (
            f"`model.norm_num_groups` is {groups}, which does not divide {' and '.join(map(str, offending))} "
            f"in `model.block_out_channels`; {remedy} divides every width there"
        )


def _attention_levels(config: RunConfig) -> Iterator[str]:
    switches, levels = config.model.attention_levels, len(config.model.block_out_channels)
    if switches is not None and len(switches) != levels:
        yield (
            f"`model.attention_levels` is {show(switches)}; it needs one true or false for each of the "
            f"{levels} levels of `model.block_out_channels`"
        )


def _kl(config: RunConfig) -> Iterator[str]:
    if config.loss.kl is not None and not isinstance(config.model, KLVAEConfig):
        yield (
            f"`loss.kl` is set, and `model.class: {config.model.class_}` has no posterior to measure; set it "
            "to null or use `model.class: KLVAE`"
        )


def _adversarial(config: RunConfig) -> Iterator[str]:
    adversarial = config.loss.adversarial
    if isinstance(config.model, VQVAEConfig) and adversarial is not None:
        yield (
            "`loss.adversarial` is set, and `model.class: VQVAE` is trained without one; set it to null "
            "or use `model.class: VQGAN`"
        )
    if isinstance(config.model, VQGANConfig) and adversarial is None:
        yield (
            "`loss.adversarial` is null, and `model.class: VQGAN` is trained with one; give it its keys "
            "(`type: hinge`, `start_step`) or use `model.class: VQVAE`"
        )
    if adversarial is not None and adversarial.discriminator_warmup_steps > adversarial.start_step:
        yield (
            "`loss.adversarial.discriminator_warmup_steps` is "
            f"{adversarial.discriminator_warmup_steps}, more than the {adversarial.start_step} steps before "
            "`loss.adversarial.start_step`; lower the one or raise the other"
        )


def _discriminator(config: RunConfig) -> Iterator[str]:
    if config.loss.adversarial is not None and config.discriminator is None:
        yield "`discriminator` is null, and `loss.adversarial` needs one; give it `type` and `optimizer`"
    # with a VQGAN it is the missing loss that is wrong, which `_adversarial` says
    untrained = config.loss.adversarial is None and not isinstance(config.model, VQGANConfig)
    if untrained and config.discriminator is not None:
        yield "`discriminator` is set, and without `loss.adversarial` nothing trains it; set it to null"


def _downscale(config: RunConfig) -> Iterator[str]:
    if config.data.downscale is not None and config.data.downscale[0] > config.data.downscale[1]:
        low, high = config.data.downscale
        yield f"`data.downscale` is [{low}, {high}], a range [low, high] turned round; use [{high}, {low}]"
