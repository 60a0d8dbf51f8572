"""What the losses of the latents demand of the rest of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.checks_data import SMALLEST_IMAGE
from latentae.config.schema.reconstruction import LikelihoodConfig

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def latent_loss_problems(config: RunConfig) -> list[str]:
    """Contradictions, one line each: field, value, remedy."""
    return [*_frozen(config), *_nothing_to_do(config), *_channels(config), *_sizes(config)]


def latent_loss_warnings(config: RunConfig) -> Iterator[str]:
    """What is allowed but probably not meant, one line each: field, value and consequence."""
    if config.loss.equivariance is not None and isinstance(config.loss.reconstruction, LikelihoodConfig):
        yield (
            f"`loss.equivariance` is set, and `loss.reconstruction.type` {config.loss.reconstruction.type}: "
            "`elbo_nats` and `bits_per_dimension` in the log are also of transformed images, and no bound"
        )


def _frozen(config: RunConfig) -> Iterator[str]:
    if not config.freeze_encoder:
        return
    for name in ("equivariance", "alignment", "spectral"):
        if getattr(config.loss, name) is not None:
            yield (
                f"`loss.{name}` is set, and `freeze_encoder` is true: it is to change the latents, which "
                f"then stay as they are; use loss.{name}=null or freeze_encoder=false"
            )


def _nothing_to_do(config: RunConfig) -> Iterator[str]:
    equivariance = config.loss.equivariance
    if equivariance is not None and equivariance.min_scale == 1 and not equivariance.rotate:
        yield (
            "`loss.equivariance.min_scale` is 1 and `loss.equivariance.rotate` false, which leaves nothing "
            "to transform; lower the one, turn on the other, or use loss.equivariance=null"
        )


def _channels(config: RunConfig) -> Iterator[str]:
    if config.loss.alignment is not None and config.model.in_channels != 3:
        yield (
            f"`loss.alignment` is set, and `model.in_channels` is {config.model.in_channels}; its networks "
            "see RGB images: use loss.alignment=null"
        )


def _sizes(config: RunConfig) -> Iterator[str]:
    """The smallest images that a step decodes, against what its losses can take."""
    shortest = min(min(size) for size in config.data.training_sizes)
    factor, loss = config.model.downsampling_factor, config.loss
    perceptual = 1 if loss.perceptual is None else SMALLEST_IMAGE[loss.perceptual.trunk]
    judged = perceptual
    if loss.adversarial is not None and config.discriminator is not None:
        # Each halving layer, then two of 4x4 that take away a pixel each and must leave one.
        judged = max(judged, 3 * 2**config.discriminator.num_layers)
    if loss.equivariance is not None:
        least = max(1, round(loss.equivariance.min_scale * (shortest // factor))) * factor
        if least < judged:
            yield (
                f"`loss.equivariance.min_scale` is {loss.equivariance.min_scale:g}, which makes images of "
                f"{shortest} pixels as small as {least}, and the other losses need {judged}; raise it or "
                "`data.image_size`"
            )
    if loss.spectral is not None:
        divisor = max(loss.spectral.factors)
        least = max(1, round(shortest // factor / divisor)) * factor
        if divisor > shortest // factor:
            yield (
                f"`loss.spectral.factors` has {divisor}, and images of {shortest} pixels have "
                f"{shortest // factor} latents along a side; use smaller ones or raise `data.image_size`"
            )
        elif least < perceptual:
            yield (
                f"`loss.spectral.factors` has {divisor}, which makes images of {shortest} pixels as small as "
                f"{least}, and the perceptual loss needs {perceptual}; use smaller ones or raise "
                "`data.image_size`"
            )
