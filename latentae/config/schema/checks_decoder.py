"""Contradictions between the keys that train a decoder for given latents; ``checks`` has all others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.loss import LikelihoodConfig
from latentae.config.schema.model import TinyAutoencoderConfig, VQGANConfig, VQVAEConfig
from latentae.config.yaml_text import show

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def check_decoder_training(config: RunConfig) -> Iterator[str]:
    """Yields the contradictions in ``freeze_encoder``, ``decoder``, ``loss.teacher`` and ``data.latents``."""
    for check in (_frozen_encoder, _decoder, _teacher, _teacher_latents, _cached_latents):
        yield from check(config)


def decoder_training_warnings(config: RunConfig) -> Iterator[str]:
    """Yields what is allowed in ``loss.teacher`` but probably not meant, one line each."""
    teacher, loss = config.loss.teacher, config.loss
    if teacher is None or teacher.latents_weight == 0 or loss.kl is None:
        return
    yield (
        f"`loss.teacher.latents_weight` is {teacher.latents_weight:g} and `loss.kl` is set: nothing but the "
        "divergence trains the posterior's variance, which approaches 1, so samples of the posterior are "
        "noisy; loss.kl=null makes a posterior without noise"
    )
    if isinstance(loss.reconstruction, LikelihoodConfig):
        yield (
            f"`loss.teacher.latents_weight` is {teacher.latents_weight:g} and `loss.reconstruction.type` is "
            f"{loss.reconstruction.type}: `elbo_nats` and `bits_per_dimension` in the log are of images "
            "decoded from the teacher's latents, so they are no bound"
        )


def _frozen_encoder(config: RunConfig) -> Iterator[str]:
    if config.freeze_encoder and config.model.pretrained is None:
        yield (
            "`freeze_encoder` is true, but `model.pretrained` is null, so the encoder would keep its random "
            "initial weights; set `model.pretrained` to a trained model, or use freeze_encoder=false"
        )


def _decoder(config: RunConfig) -> Iterator[str]:
    """A decoder of its own needs a class that can have one, and a width per level for its group norms."""
    decoder, model = config.decoder, config.model
    if decoder is None:
        return
    if isinstance(model, VQVAEConfig | VQGANConfig):
        yield (
            f"`decoder` is set, but `model.class: {model.class_}` has the mirror of its encoder; set it to "
            "null or use `model.class: KLVAE`, `Flux2VAE` or `TinyAutoencoder`"
        )
        return
    if decoder.widths is None:
        return
    older = getattr(model, "decoder_block_out_channels", None)
    if older not in (None, decoder.widths):
        yield (
            f"`decoder.widths` is {show(list(decoder.widths))}, and `model.decoder_block_out_channels`, its "
            f"older name, is {show(list(older))}; set the latter to null"
        )
    levels = len(model.block_out_channels)
    if len(decoder.widths) != levels:
        yield (
            f"`decoder.widths` is {show(list(decoder.widths))}; it needs one number for each of the {levels} "
            "levels of `model.block_out_channels`"
        )
    if isinstance(model, TinyAutoencoderConfig):
        return  # its blocks have no normalisation that would limit their widths
    groups = model.norm_num_groups
    offending = sorted({width for width in decoder.widths if width % groups})
    if offending:
        nearest = show([math.ceil(width / groups) * groups for width in decoder.widths])
        yield (
            f"`decoder.widths` is {show(list(decoder.widths))}, but `model.norm_num_groups: {groups}` does "
            f"not divide {' and '.join(map(str, offending))}; use {nearest}"
        )


def _teacher(config: RunConfig) -> Iterator[str]:
    """A teacher must be named, must teach something, and its features need common latents and levels."""
    teacher, levels = config.loss.teacher, len(config.model.block_out_channels)
    if teacher is None:
        return
    if teacher.model is None and config.model.pretrained is None:
        yield (
            "`loss.teacher.model` and `model.pretrained` are both null, so there is no teacher; set "
            "`loss.teacher.model` to a trained model, or use loss.teacher=null"
        )
    if teacher.output_weight == teacher.features_weight == teacher.latents_weight == 0:
        yield (
            "`loss.teacher.output_weight`, `loss.teacher.features_weight` and `loss.teacher.latents_weight` "
            "are all 0, so the teacher has no effect; raise one of them, or use loss.teacher=null"
        )
    if teacher.features_weight == 0:
        return
    matches = f"`loss.teacher.features_weight` is {teacher.features_weight:g}"
    if not config.freeze_encoder and teacher.latents_weight == 0:
        yield (
            f"{matches}, but `freeze_encoder` is false: the teacher then decodes latents of its own, whose "
            "features are others; use loss.teacher.features_weight=0, freeze_encoder=true, or "
            "loss.teacher.latents_weight=1, with which both decode the teacher's latents"
        )
    if config.compile:
        yield (
            f"{matches}, but `compile` is true, and compiled blocks do not show their activations; use "
            "compile=false or loss.teacher.features_weight=0"
        )
    if isinstance(config.model, TinyAutoencoderConfig):
        yield (
            f"{matches}, but the decoder of `model.class: TinyAutoencoder` has no such levels; use "
            "loss.teacher.features_weight=0"
        )
        return
    backbone = getattr(config.model, "backbone", "stock")
    if backbone != "stock":
        yield (
            f"{matches}, but the decoder of `model.backbone: {backbone}` has no such levels; use "
            "loss.teacher.features_weight=0"
        )
    elif max(teacher.levels) >= levels or len(set(teacher.levels)) < len(teacher.levels):
        yield (
            f"`loss.teacher.levels` is {show(list(teacher.levels))}; name each level once, from 0 to "
            f"{levels - 1}, as `model.block_out_channels` has {levels} levels"
        )


def _teacher_latents(config: RunConfig) -> Iterator[str]:
    """An encoder can learn a teacher's latents if it learns, has no codebook, and learns nothing else."""
    teacher, loss = config.loss.teacher, config.loss
    if teacher is None or teacher.latents_weight == 0:
        return
    matches = f"`loss.teacher.latents_weight` is {teacher.latents_weight:g}"
    if config.freeze_encoder:
        yield (
            f"{matches}, but `freeze_encoder` is true, and a frozen encoder cannot learn other latents; use "
            "freeze_encoder=false or loss.teacher.latents_weight=0"
        )
    if isinstance(config.model, VQVAEConfig | VQGANConfig):
        yield (
            f"{matches}, but `model.class: {config.model.class_}` has a codebook, and the decoder would "
            "receive latents that are not codes; use a model without one or loss.teacher.latents_weight=0"
        )
    for name in ("equivariance", "alignment", "spectral"):
        if getattr(loss, name) is not None:
            yield (
                f"{matches}, but `loss.{name}` is set, which wants other latents than the teacher's; use "
                f"loss.{name}=null or loss.teacher.latents_weight=0"
            )


def _cached_latents(config: RunConfig) -> Iterator[str]:
    """Cached latents stay true for an encoder that is frozen, and for crops that are always the same."""
    data = config.data
    if data.latents is None:
        return
    given = f"`data.latents` is {data.latents}"
    if not config.freeze_encoder:
        yield (
            f"{given}, but `freeze_encoder` is false, and an encoder that learns changes its latents; use "
            "freeze_encoder=true or data.latents=null"
        )
    if data.streaming:
        yield (
            f"{given}, but `data.streaming` is true, and a stream has no fixed order of images to match; use "
            "data.streaming=false or data.latents=null"
        )
    for key in ("downscale", "resolutions"):
        if getattr(data, key) is not None:
            yield (
                f"{given}, but `data.{key}` draws crops at random, and latents are of one crop per image; "
                f"use data.{key}=null or data.latents=null"
            )
    if data.color_jitter is not None:
        yield (
            f"{given}, but `data.color_jitter` changes the colours at random, and latents are of the true "
            "colours; use data.color_jitter=null or data.latents=null"
        )
    if config.decoder is not None and config.decoder.upscale > 1:
        yield (
            f"{given}, but `decoder.upscale` is {config.decoder.upscale}: the encoder then sees means of "
            "pixels, and the latents are of images that were resized; use decoder.upscale=1 or "
            "data.latents=null"
        )
