"""What one section of a config demands of another: errors, and warnings about what is legal but unlikely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.checks_adversarial import adversarial_problems, adversarial_warnings
from latentae.config.schema.checks_checkpoint import checkpoint_problems
from latentae.config.schema.checks_compile import compile_problems
from latentae.config.schema.checks_data import data_problems
from latentae.config.schema.checks_latent_losses import latent_loss_problems, latent_loss_warnings
from latentae.config.schema.checks_loss import loss_problems, loss_warnings
from latentae.config.schema.checks_pretrained import pretrained_problems
from latentae.config.schema.checks_quantizer import quantizer_problems
from latentae.config.schema.model import KLVAEConfig, VQGANConfig, VQVAEConfig
from latentae.config.yaml_text import show

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def find_problems(config: RunConfig) -> list[str]:
    """Every contradiction between sections, one line each: field, value, remedy. Empty when there is none."""
    return [
        *checkpoint_problems(config),
        *compile_problems(config),
        *data_problems(config),
        *_norm_groups(config),
        *_attention_levels(config),
        *_kl(config),
        *_adversarial(config),
        *_discriminator(config),
        *adversarial_problems(config),
        *loss_problems(config),
        *latent_loss_problems(config),
        *pretrained_problems(config),
        *quantizer_problems(config),
    ]


def config_warnings(config: RunConfig) -> list[str]:
    """What is allowed but probably not meant, one line each: field, value and consequence."""
    warnings = [*adversarial_warnings(config)]
    if config.optimizer.warmup_steps >= config.max_steps:
        warnings.append(
            f"`optimizer.warmup_steps` is {config.optimizer.warmup_steps} and `max_steps` "
            f"{config.max_steps}: the learning rate never reaches `optimizer.learning_rate`"
        )
    return [*warnings, *loss_warnings(config), *latent_loss_warnings(config)]


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
