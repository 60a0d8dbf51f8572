"""Contradictions between keys (errors), and combinations that are allowed but unlikely (warnings).

Every line names the key, its value and a remedy, or, in a warning, the consequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.checks_adversarial import (
    check_adversarial,
    discriminator_side,
    shortest_side,
)
from latentae.config.schema.checks_decoder import check_decoder_training, decoder_training_warnings
from latentae.config.schema.loss import SMALLEST_IMAGE, LikelihoodConfig, LinearScheduleConfig
from latentae.config.schema.model import (
    MOST_CODES,
    Flux2VAEConfig,
    FSQConfig,
    GroupedQuantizerConfig,
    KLVAEConfig,
    ResidualQuantizerConfig,
    TinyAutoencoderConfig,
    VQGANConfig,
    VQVAEConfig,
)
from latentae.config.yaml_text import show

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig

SMALLEST_MEASURED = max(11, SMALLEST_IMAGE["alex"])
"""Smallest image side, in pixels, that can be measured: SSIM needs 11, LPIPS needs AlexNet's."""


def find_problems(config: RunConfig) -> list[str]:
    """Returns every contradiction between keys, one line each; empty when there is none."""
    checks = (
        _best_checkpoint,
        _compile,
        _image_sizes,
        _image_ranges,
        _alpha,
        _color_jitter,
        _model,
        _kl,
        check_adversarial,
        _scaled_perceptual,
        _latent_losses,
        _equivariance_sizes,
        _spectral_sizes,
        check_decoder_training,
        _quantizer,
    )
    return [problem for check in checks for problem in check(config)]


def config_warnings(config: RunConfig) -> list[str]:
    """Returns what is allowed but probably not meant, one line each."""
    checks = (
        _adversarial_warnings,
        _warmup_warnings,
        _kl_schedule_warnings,
        _equivariance_warnings,
        decoder_training_warnings,
        _alpha_warnings,
    )
    return [warning for check in checks for warning in check(config)]


def _best_checkpoint(config: RunConfig) -> Iterator[str]:
    """The best checkpoint can only be chosen among checkpoints that are measured."""
    if config.best_metric is None:
        return
    validate, save = config.validate_every, config.checkpoint_every
    if validate is None:
        yield (
            f"`best_metric` is {config.best_metric}, but `validate_every` is null, so nothing measures it; "
            f"set `validate_every: {save}`, the value of `checkpoint_every`"
        )
    elif validate % save and save % validate:
        yield (
            f"`best_metric` is {config.best_metric}, but neither of `validate_every: {validate}` and "
            f"`checkpoint_every: {save}` is a multiple of the other, so few checkpoints would be measured; "
            f"set `validate_every: {save}`"
        )


def _compile(config: RunConfig) -> Iterator[str]:
    """Networks are compiled separately for every size of images and latents."""
    if not config.compile:
        return
    sizes = len(set(config.data.training_sizes))
    if sizes > 1:
        yield (
            f"`compile` is true, but `data.resolutions` has {sizes} sizes, and compiling takes minutes for "
            "each; set `compile: false` or `data.resolutions: null`"
        )
    equivariance = config.loss.equivariance
    if equivariance is not None and equivariance.min_scale < 1:
        yield (
            f"`compile` is true, but `loss.equivariance.min_scale: {equivariance.min_scale}` changes the "
            "sizes from step to step, and compiling takes minutes for each; set `compile: false` or "
            "`loss.equivariance.min_scale: 1`"
        )


def _image_sizes(config: RunConfig) -> Iterator[str]:
    size = config.data.image_size
    yield from _image_size(config, "data.image_size", config.data.height_and_width, isinstance(size, int))
    for sides in config.data.resolutions or ():
        yield from _image_size(config, "data.resolutions", sides, is_number=False)


def _image_size(config: RunConfig, key: str, sides: tuple[int, int], is_number: bool) -> Iterator[str]:
    """Checks one size against the measurements, the perceptual loss and the model, in this order."""
    factor = _pixels_per_latent(config)
    shown = sides[0] if is_number else list(sides)
    verb = "is" if key == "data.image_size" else "has"
    perceptual = config.loss.perceptual
    # Every run is measured at its end, at this size only.
    measured = SMALLEST_MEASURED if key == "data.image_size" else 1
    least = math.ceil(measured / factor) * factor
    if min(sides) < measured:
        yield (
            f"`{key}` {verb} {shown}, too small to measure: the measurement at the end of a run needs "
            f"{measured} pixels per side (SSIM 11, LPIPS {SMALLEST_IMAGE['alex']}); use {least} or more"
        )
    elif perceptual is not None and min(sides) < SMALLEST_IMAGE[perceptual.trunk]:
        smallest = math.ceil(SMALLEST_IMAGE[perceptual.trunk] / factor) * factor
        yield (
            f"`{key}` {verb} {shown}, too small for the perceptual loss with `loss.perceptual.trunk: "
            f"{perceptual.trunk}`; use {smallest} or more, or loss.perceptual=null"
        )
    elif any(side % factor for side in sides):
        below = [max(side // factor * factor, least) for side in sides]
        above = [math.ceil(side / factor) * factor for side in sides]
        nearest = [sizes[0] if is_number else sizes for sizes in (below, above)]
        upscale = factor // config.model.downsampling_factor
        times = f" times `decoder.upscale: {upscale}`" if upscale > 1 else ""
        remedy = f"{nearest[0]} or {nearest[1]}" if nearest[0] != nearest[1] else f"{nearest[0]}"
        yield (
            f"`{key}` {verb} {shown}, not a multiple of {factor}, the downsampling factor of a model with "
            f"{len(config.model.block_out_channels)} levels in `model.block_out_channels`{times}; use "
            f"{remedy}"
        )


def _pixels_per_latent(config: RunConfig) -> int:
    """Returns the pixels of the training images per latent along each side."""
    upscale = 1 if config.decoder is None else config.decoder.upscale
    return config.model.downsampling_factor * upscale


def _image_ranges(config: RunConfig) -> Iterator[str]:
    """Ranges must be given as [low, high]."""
    downscale, values = config.data.downscale, config.data.value_range
    if downscale is not None and downscale[0] > downscale[1]:
        low, high = downscale
        yield f"`data.downscale` is [{low}, {high}], but it must be [low, high]; use [{high}, {low}]"
    if values is not None and values[0] >= values[1]:
        low, high = values
        yield (
            f"`data.value_range` is [{low}, {high}]; it must be [low, high] with low < high, the numbers "
            "that stand for black and white"
        )


def _alpha(config: RunConfig) -> Iterator[str]:
    """Transparency needs RGBA images, and losses that do not mix hidden colours into visible ones."""
    if not config.data.alpha:
        return
    taken = config.model.in_channels
    made = config.model.out_channels or taken
    for key, channels in {"in_channels": taken, "out_channels": made}.items():
        if channels != 4:
            yield (
                f"`data.alpha` is true, but `model.{key}` is {channels}: images with transparency have four "
                f"channels, RGBA; use model.{key}=4 or data.alpha=false"
            )
            return
    loss = config.loss
    mixes_pixels = {
        "equivariance": loss.equivariance is not None and loss.equivariance.min_scale < 1,
        "spectral": loss.spectral is not None,
    }
    for name in (name for name, mixes in mixes_pixels.items() if mixes):
        yield (
            f"`data.alpha` is true, but `loss.{name}` makes images smaller and would mix the colours of "
            f"transparent pixels into their neighbours; use loss.{name}=null or data.alpha=false"
        )


def _color_jitter(config: RunConfig) -> Iterator[str]:
    """Colours can only be changed where channels are colours."""
    jitter, channels = config.data.color_jitter, config.model.in_channels
    if jitter is None:
        return
    if channels != (4 if config.data.alpha else 3):
        rgba = ", or data.alpha=true for RGBA images" if channels == 4 else ""
        yield (
            f"`data.color_jitter` is set, but `model.in_channels` is {channels}, and it mixes red, green and "
            f"blue; use data.color_jitter=null, or model.in_channels=3 for RGB images{rgba}"
        )
    if jitter.changes_nothing:
        yield (
            "`data.color_jitter` changes nothing: raise `data.color_jitter.hue`, `saturation`, `contrast` or "
            "`brightness` with a `probability` above 0, set `permute: true`, or use data.color_jitter=null"
        )


def _model(config: RunConfig) -> Iterator[str]:
    """Group norms need widths that the number of groups divides; attention needs one value per level."""
    if isinstance(config.model, TinyAutoencoderConfig):
        return  # it has neither
    groups, widths = config.model.norm_num_groups, config.model.block_out_channels
    offending = sorted({width for width in widths if width % groups})
    if offending:
        shared = math.gcd(*widths)
        remedy = max(divisor for divisor in range(1, min(groups, shared) + 1) if shared % divisor == 0)
        yield (
            f"`model.norm_num_groups` is {groups}, which does not divide {' and '.join(map(str, offending))} "
            f"in `model.block_out_channels`; {remedy} divides every width there"
        )
    decoder = getattr(config.model, "decoder_block_out_channels", None)
    if decoder is not None and (len(decoder) != len(widths) or any(width % groups for width in decoder)):
        yield (
            f"`model.decoder_block_out_channels` is {show(decoder)}; it needs one width for each of the "
            f"{len(widths)} levels of `model.block_out_channels`, and `model.norm_num_groups` ({groups}) "
            "must divide each"
        )
    switches = config.model.attention_levels
    if switches is not None and len(switches) != len(widths):
        yield (
            f"`model.attention_levels` is {show(switches)}; it needs one true or false for each of the "
            f"{len(widths)} levels of `model.block_out_channels`"
        )


def _kl(config: RunConfig) -> Iterator[str]:
    if config.loss.kl is not None and not isinstance(config.model, KLVAEConfig | Flux2VAEConfig):
        yield (
            f"`loss.kl` is set, but `model.class: {config.model.class_}` has no posterior; set it to null or "
            "use `model.class: KLVAE`"
        )


def _scaled_perceptual(config: RunConfig) -> Iterator[str]:
    reconstruction = config.loss.reconstruction
    scaled = isinstance(reconstruction, LikelihoodConfig) and reconstruction.scale_perceptual
    if scaled and config.loss.perceptual is None:
        yield (
            "`loss.reconstruction.scale_perceptual` is true, but `loss.perceptual` is null; set its keys "
            "(`type: lpips`) or use loss.reconstruction.scale_perceptual=false"
        )


def _latent_losses(config: RunConfig) -> Iterator[str]:
    """Losses of the latents need an encoder that learns, something to transform, and RGB images."""
    loss = config.loss
    for name in ("equivariance", "alignment", "spectral") if config.freeze_encoder else ():
        if getattr(loss, name) is not None:
            yield (
                f"`loss.{name}` is set, but `freeze_encoder` is true: this loss changes the latents, and a "
                f"frozen encoder cannot change them; use loss.{name}=null or freeze_encoder=false"
            )
    if loss.equivariance is not None and loss.equivariance.min_scale == 1 and not loss.equivariance.rotate:
        yield (
            "`loss.equivariance.min_scale` is 1 and `loss.equivariance.rotate` is false, so there is "
            "nothing to transform; lower the former, turn on the latter, or use loss.equivariance=null"
        )
    if loss.alignment is not None and config.model.in_channels != 3:
        yield (
            f"`loss.alignment` is set, but `model.in_channels` is {config.model.in_channels}, and its "
            "networks need RGB images; use loss.alignment=null"
        )


def _equivariance_sizes(config: RunConfig) -> Iterator[str]:
    """The smallest images that equivariance decodes must be large enough for the other losses."""
    loss, factor = config.loss, _pixels_per_latent(config)
    if loss.equivariance is None:
        return
    shortest = shortest_side(config)
    needed = max(_perceptual_side(config), discriminator_side(config))
    least = max(1, round(loss.equivariance.min_scale * (shortest // factor))) * factor
    if least < needed:
        yield (
            f"`loss.equivariance.min_scale` is {loss.equivariance.min_scale:g}, which shrinks images of "
            f"{shortest} pixels to {least}, but the other losses need {needed}; raise it or "
            "`data.image_size`"
        )


def _spectral_sizes(config: RunConfig) -> Iterator[str]:
    """The smallest images that the spectral loss decodes must be large enough for the perceptual loss."""
    if config.loss.spectral is None:
        return
    shortest, factor = shortest_side(config), _pixels_per_latent(config)
    divisor = max(config.loss.spectral.factors)
    least = max(1, round(shortest // factor / divisor)) * factor
    if divisor > shortest // factor:
        yield (
            f"`loss.spectral.factors` has {divisor}, but images of {shortest} pixels have only "
            f"{shortest // factor} latents per side; use smaller factors or raise `data.image_size`"
        )
    elif least < _perceptual_side(config):
        yield (
            f"`loss.spectral.factors` has {divisor}, which shrinks images of {shortest} pixels to {least}, "
            f"but the perceptual loss needs {_perceptual_side(config)}; use smaller factors or raise "
            "`data.image_size`"
        )


def _perceptual_side(config: RunConfig) -> int:
    """Returns the image side that the perceptual loss needs; 1 without one."""
    return 1 if config.loss.perceptual is None else SMALLEST_IMAGE[config.loss.perceptual.trunk]


def _quantizer(config: RunConfig) -> Iterator[str]:
    if not isinstance(config.model, VQVAEConfig | VQGANConfig):
        return
    quantizer, path = config.model.quantizer, "model.quantizer"
    # Without a code_dim of its own, each group of channels needs the same number of latent channels.
    if isinstance(quantizer, GroupedQuantizerConfig):
        has_free_dim = getattr(quantizer.member, "code_dim", 0) is None
        if has_free_dim and config.model.latent_channels % quantizer.groups:
            yield (
                f"`model.quantizer.groups` is {quantizer.groups}, which does not divide "
                f"`model.latent_channels` ({config.model.latent_channels}); set "
                "`model.quantizer.member.code_dim`, or change one of them"
            )
    # There is a limit to the number of codes whose use can be counted.
    if isinstance(quantizer, ResidualQuantizerConfig | GroupedQuantizerConfig):
        quantizer, path = quantizer.member, f"{path}.member"
    if isinstance(quantizer, FSQConfig) and math.prod(quantizer.levels) > MOST_CODES:
        yield (
            f"`{path}.levels` is {show(quantizer.levels)}, which makes {math.prod(quantizer.levels)} codes, "
            f"more than the limit of {MOST_CODES}; use fewer levels, or `model.quantizer.type: grouped`"
        )


def _adversarial_warnings(config: RunConfig) -> Iterator[str]:
    adversarial = config.loss.adversarial
    if adversarial is None:
        return
    if adversarial.start_step >= config.max_steps:
        yield (
            f"`loss.adversarial.start_step` is {adversarial.start_step} and `max_steps` is "
            f"{config.max_steps}: the adversarial loss never starts"
        )
    elif adversarial.start_step + adversarial.ramp_steps > config.max_steps:
        yield (
            f"`loss.adversarial.ramp_steps` is {adversarial.ramp_steps}, from step {adversarial.start_step} "
            f"on, and `max_steps` is {config.max_steps}: the adversarial loss never reaches its full weight"
        )
    if adversarial.min_adaptive_weight > 0 and not adversarial.adaptive:
        yield (
            f"`loss.adversarial.min_adaptive_weight` is {adversarial.min_adaptive_weight:g}, but "
            "`loss.adversarial.adaptive` is false: there is no adaptive weight to limit"
        )


def _warmup_warnings(config: RunConfig) -> Iterator[str]:
    if config.optimizer.warmup_steps >= config.max_steps:
        yield (
            f"`optimizer.warmup_steps` is {config.optimizer.warmup_steps} and `max_steps` is "
            f"{config.max_steps}: the learning rate never reaches `optimizer.learning_rate`"
        )


def _kl_schedule_warnings(config: RunConfig) -> Iterator[str]:
    schedule = None if config.loss.kl is None else config.loss.kl.schedule
    if schedule is None:
        return
    if isinstance(schedule, LinearScheduleConfig):
        if schedule.warmup_steps >= config.max_steps:
            yield (
                f"`loss.kl.schedule.warmup_steps` is {schedule.warmup_steps} and `max_steps` is "
                f"{config.max_steps}: the divergence never reaches its full weight, `loss.kl.weight`"
            )
    elif schedule.cycle_steps * schedule.cycles > config.max_steps:
        yield (
            f"`loss.kl.schedule` has {schedule.cycles} cycles of {schedule.cycle_steps} steps and "
            f"`max_steps` is {config.max_steps}: the run ends within a cycle"
        )


def _equivariance_warnings(config: RunConfig) -> Iterator[str]:
    reconstruction = config.loss.reconstruction
    if config.loss.equivariance is not None and isinstance(reconstruction, LikelihoodConfig):
        yield (
            f"`loss.equivariance` is set and `loss.reconstruction.type` is {reconstruction.type}: "
            "`elbo_nats` and `bits_per_dimension` in the log include transformed images, so they are no bound"
        )


def _alpha_warnings(config: RunConfig) -> Iterator[str]:
    reconstruction = config.loss.reconstruction
    if config.data.alpha and isinstance(reconstruction, LikelihoodConfig):
        yield (
            f"`data.alpha` is true and `loss.reconstruction.type` is {reconstruction.type}: `elbo_nats` and "
            "`bits_per_dimension` in the log are of colours weighted by alpha, so they are no bound"
        )
