"""The teacher of a run: the frozen model whose decodings the autoencoder learns to imitate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentae import build, distributed
from latentae.config import RunConfig
from latentae.losses.teacher import (
    MatchedLevels,
    TeacherTerms,
    captured_outputs,
    decoder_levels,
    feature_distance,
    level_widths,
    output_distance,
)
from latentae.models.decoders import downscale, upscale_of
from latentae.training.latent_losses import PreparedStep
from latentae.training.pretrained import fingerprint
from latentae.weights import hash_tensors

_LATENT_PARTS = ("encoder.", "quant_conv.", "quantize.")


@dataclass
class TeacherLosses:
    """What the teacher adds to a micro-batch.

    Attributes:
        loss: the weighted distance of the images, a scalar without a gradient.
        gradient: [B, C, H, W] its gradient at the reconstruction.
        regularisers: weighted losses by name that have the autoencoder's own graph.
        numbers: the unweighted distance of the images, for the log.
    """

    loss: Tensor
    gradient: Tensor
    regularisers: dict[str, Tensor]
    numbers: dict[str, Tensor]


@dataclass
class Teacher:
    """A frozen model and what the autoencoder learns from it.

    With ``shares_latents`` the teacher decodes the very latents that the autoencoder decoded, noise included,
    and has no encoder any more. Otherwise it reconstructs the images by its own latents (the mode).

    Attributes:
        model: the teacher, in eval mode.
        terms: the weights of the losses.
        shares_latents: whether both have the same encoder.
        upscale: how many times as large as what its encoder sees the autoencoder's images are.
        levels: the decoder levels whose activations are compared; empty: none.
        place: where it came from.
        latents_hash: of the weights that compute its latents.
        weights_hash: of all its weights.
        autocast: a context in which the run's mixed precision applies.
        recorded: the hash of the teacher that a checkpoint was made with, or None.
    """

    model: nn.Module
    terms: TeacherTerms
    shares_latents: bool
    upscale: int = 1
    levels: tuple[int, ...] = ()
    place: str = ""
    latents_hash: str = ""
    weights_hash: str = ""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    recorded: str | None = None
    _decoded: list[Tensor] = field(default_factory=list)

    def watch(self, prepared: PreparedStep) -> None:
        """Remembers the latents that the coming forward decodes, if they are changed on their way."""
        self._decoded.clear()
        change = prepared.arguments.get("change")
        if change is None or not self.shares_latents:
            return

        def changed(latents: Tensor) -> Tensor:
            self._decoded.append(change(latents))
            return self._decoded[0]

        prepared.arguments["change"] = changed

    def losses(self, prepared: PreparedStep, output: Any, reconstruction: Tensor) -> TeacherLosses:
        """Compares a micro-batch with the teacher's. ``watch`` has been called before the forward.

        Args:
            output: of the wrapped autoencoder.
            reconstruction: ``output.sample`` as a leaf that takes a gradient.
        """
        images, activations = self._decode(prepared, output)
        distance = output_distance(reconstruction, images)
        loss = self.terms.output_weight * distance
        (gradient,) = torch.autograd.grad(loss, reconstruction)
        numbers, regularisers = {"teacher_output": distance.detach()}, dict[str, Tensor]()
        if self.levels:
            features = feature_distance(output.activations, activations)
            regularisers["teacher_features"] = self.terms.features_weight * features
        return TeacherLosses(loss.detach(), gradient, regularisers, numbers)

    @torch.no_grad()
    def _decode(self, prepared: PreparedStep, output: Any) -> tuple[Tensor, list[Tensor]]:
        """Returns the teacher's images [B, C, H, W], and its activations at the levels."""
        model: Any = self.model
        layers = decoder_levels(model.decoder, self.levels) if self.levels else []
        with self.autocast(), captured_outputs(layers) as activations:
            if self._decoded:  # latents that were changed decode to a size of their own
                latents, size = self._decoded.pop(), None
            elif self.shares_latents:
                latents, size = output.latents, tuple(prepared.images.shape[-2:])
            else:
                encoded = downscale(prepared.target, self.upscale)
                latents, size = model.encode(encoded).latents, tuple(encoded.shape[-2:])
            images: Tensor = model.decode(latents.detach(), size=size).sample
        return images, activations

    def check(self, autoencoder: nn.Module) -> None:
        """Checks the teacher against the weights that the run begins or continues with.

        Raises:
            ValueError: the teacher has other latents than the autoencoder, or is not the one that a resumed
                run had.
        """
        if self.recorded not in (None, self.weights_hash):
            raise ValueError(
                f"the teacher {self.place} has other weights than when this run was saved: bring the former "
                "ones back, or start a new run with this teacher: resume=never output_dir=NEW_FOLDER"
            )
        if self.shares_latents and _hash_of_latents(autoencoder.state_dict()) != self.latents_hash:
            raise ValueError(
                f"{self.place} is a teacher of other latents: its encoder has other weights than the run's, "
                "which freeze_encoder keeps; name a model in loss.teacher.model of which only the decoder "
                "was trained, or use freeze_encoder=false, with which the teacher encodes for itself"
            )

    def describe(self) -> str:
        """Returns a sentence that says what the teacher is and what it decodes."""
        what = "decodes the same latents" if self.shares_latents else "encodes and decodes for itself"
        return f"teacher: {self.place} (sha256 {self.weights_hash[:12]}), which {what}"

    def state_dict(self) -> dict[str, str]:
        """Returns the hash of its weights, for a checkpoint. The weights themselves are not saved."""
        return {"sha256": self.weights_hash}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Remembers the hash in a checkpoint, which ``check`` compares."""
        self.recorded = state["sha256"]


def create_teacher(
    config: RunConfig,
    autoencoder: nn.Module,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Teacher | None:
    """Opens the teacher of a run, or returns None. Every rank must call it.

    Args:
        autoencoder: the model that learns; only its sizes matter here.

    Raises:
        ValueError: the model cannot be opened, or is no teacher for this autoencoder.
    """
    section = config.loss.teacher
    if section is None:
        return None
    place, shares = section.model or config.model.pretrained, config.freeze_encoder
    assert place is not None
    levels = section.levels if section.features_weight else ()
    try:
        with distributed.main_first():  # the first rank downloads from the hub, the others find it
            model: Any = build.open_teacher(place, getattr(config.model, "norm_num_groups", None))
        _check_sizes(model, autoencoder, shares_latents=shares)
        if levels:
            decoder_levels(model.decoder, levels)
    except ValueError as error:
        key = "model.pretrained" if section.model is None else "loss.teacher.model"
        raise ValueError(f"the teacher is `{key}`, {place}, which cannot be used: {error}") from error
    state = model.state_dict()
    teacher = Teacher(
        model,
        TeacherTerms(section.output_weight, section.features_weight),
        shares_latents=shares,
        upscale=upscale_of(autoencoder),
        levels=levels,
        place=place,
        latents_hash=_hash_of_latents(state),
        weights_hash=fingerprint(state),  # as the starting weights are recorded, to compare by eye
        autocast=autocast,
    )
    if shares:  # it is never asked to encode
        model.encoder = model.quant_conv = None
    model.requires_grad_(False).eval().to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    return teacher


def match_levels(teacher: Teacher | None, autoencoder: nn.Module) -> MatchedLevels | None:
    """Returns what maps the autoencoder's activations to the teacher's, or None if they are not compared.

    Raises:
        ValueError: the autoencoder lacks a level.
    """
    if teacher is None or not teacher.levels:
        return None
    model: Any = teacher.model
    decoder: Any = autoencoder.decoder
    try:
        return MatchedLevels(decoder, teacher.levels, level_widths(model.decoder, teacher.levels))
    except ValueError as error:
        raise ValueError(f"loss.teacher.features_weight cannot be used with this model: {error}") from error


def _check_sizes(model: Any, autoencoder: Any, *, shares_latents: bool) -> None:
    """Raises ValueError unless the teacher can take part: by its latents or by its images."""
    own, its = autoencoder.config, model.config
    if its.out_channels != own.out_channels:
        raise ValueError(f"it makes images of {its.out_channels} channels, and the run of {own.out_channels}")
    if not shares_latents:
        if its.in_channels != own.in_channels:
            raise ValueError(f"it takes images of {its.in_channels} channels, and the run {own.in_channels}")
        return
    for name, ours, theirs in (
        ("latent channels", autoencoder.latents_channels, model.latents_channels),
        ("pixels per latent", autoencoder.downsampling_factor, model.downsampling_factor),
    ):
        if ours != theirs:
            raise ValueError(
                f"it is a teacher of other latents: it has {theirs} {name}, and the run has {ours}; name a "
                "model with the run's encoder, or use freeze_encoder=false, with which it encodes for itself"
            )


def _hash_of_latents(state: Mapping[str, Tensor]) -> str:
    """Returns the hash of all weights that images and decoder inputs depend on before ``post_quant_conv``."""
    return hash_tensors({name: value for name, value in state.items() if name.startswith(_LATENT_PARTS)})
