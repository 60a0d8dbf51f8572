"""The teacher of a run: the frozen model whose decodings, and maybe latents, the autoencoder imitates."""

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
    latent_distance,
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
    """The losses that the teacher adds to a micro-batch.

    Attributes:
        loss: the weighted distance of the images, a scalar without a gradient; 0 if they are not compared.
        gradient: [B, C, H, W] its gradient at the reconstruction.
        regularisers: weighted losses by name that have the autoencoder's own graph.
        numbers: the unweighted distances of the images and of the latents, for the log.
    """

    loss: Tensor
    gradient: Tensor
    regularisers: dict[str, Tensor]
    numbers: dict[str, Tensor]


@dataclass
class Teacher:
    """A frozen model and what the autoencoder learns from it.

    There are three ways to learn:

    - With ``shares_latents`` the encoder is frozen. The teacher decodes the very latents that the autoencoder
      decoded, noise included, and has no encoder any more.
    - With ``terms.latents_weight`` the encoder's latents (of a posterior: its mean) regress onto the
      teacher's (the mode), and the autoencoder decodes the teacher's latents, noise included, as does the
      teacher. No other loss reaches the encoder. That is how TAESD learned. Latents are compared after each
      model's own normalisation, and ``hand_over_scale`` gives the autoencoder the teacher's. So a perfect
      student's latents mean the same to the teacher's denoiser and pipeline.
    - Otherwise the teacher reconstructs the images by its own latents (the mode).

    Attributes:
        model: the teacher, in eval mode.
        terms: the weights of the losses.
        shares_latents: whether both have the same encoder.
        student: the autoencoder, unwrapped; only its scale and sizes matter here.
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
    student: Any = None
    upscale: int = 1
    levels: tuple[int, ...] = ()
    place: str = ""
    latents_hash: str = ""
    weights_hash: str = ""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    recorded: str | None = None
    _decoded: list[Tensor] = field(default_factory=list)
    _target: Tensor | None = None

    @property
    def gives_latents(self) -> bool:
        """Whether the autoencoder learns the teacher's latents, and decodes them."""
        return self.terms.latents_weight > 0

    @property
    def decodes(self) -> bool:
        """Whether anything that the teacher decodes is compared."""
        return self.terms.output_weight > 0 or self.terms.features_weight > 0

    def watch(self, prepared: PreparedStep) -> None:
        """Prepares the coming forward: what it decodes, and a memory of that if it is not what it encodes."""
        self._decoded.clear()
        change = prepared.arguments.get("change")
        if self.gives_latents:
            self._target = self._encode(prepared.images)
            given = self.student.denormalise(self._target)
        elif change is None or not self.shares_latents:
            return

        def changed(latents: Tensor) -> Tensor:
            if self.gives_latents:
                latents = given.to(latents.dtype)
            self._decoded.append(latents if change is None else change(latents))
            return self._decoded[0]

        prepared.arguments["change"] = changed

    def losses(self, prepared: PreparedStep, output: Any, reconstruction: Tensor) -> TeacherLosses:
        """Compares a micro-batch with the teacher's. ``watch`` has been called before the forward.

        Args:
            output: of the wrapped autoencoder.
            reconstruction: ``output.sample`` as a leaf that takes a gradient.
        """
        loss, gradient = reconstruction.new_zeros(()), torch.zeros_like(reconstruction)
        numbers, regularisers = dict[str, Tensor](), dict[str, Tensor]()
        # The latents.
        if self._target is not None:
            own = output.latents if output.mean is None else output.mean
            latents = latent_distance(self.student.normalise(_as_float(own)), self._target)
            numbers["teacher_latents"] = latents.detach()
            regularisers["teacher_latents"] = self.terms.latents_weight * latents
            self._target = None
        # The images, and the activations.
        if self.decodes:
            images, activations = self._decode(prepared, output)
            transparent = prepared.target if prepared.backgrounds is not None else None
            distance = output_distance(reconstruction, images, images=transparent)
            loss = self.terms.output_weight * distance
            (gradient,) = torch.autograd.grad(loss, reconstruction)
            numbers["teacher_output"] = distance.detach()
            if self.levels:
                features = feature_distance(output.activations, activations)
                regularisers["teacher_features"] = self.terms.features_weight * features
        return TeacherLosses(loss.detach(), gradient, regularisers, numbers)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Returns the teacher's latents [B, c, h, w], its posterior's mode, as its denoiser sees them."""
        model: Any = self.model
        with self.autocast():
            latents = model.encode(images).latents
        normalised: Tensor = model.normalise(_as_float(latents))
        return normalised

    @torch.no_grad()
    def _decode(self, prepared: PreparedStep, output: Any) -> tuple[Tensor, list[Tensor]]:
        """Returns the teacher's images [B, C, H, W], and its activations at the levels."""
        model: Any = self.model
        layers = decoder_levels(model.decoder, self.levels) if self.levels else []
        with self.autocast(), captured_outputs(layers) as activations:
            if self._decoded:  # latents that were changed decode to a size of their own
                latents, size = self._decoded.pop(), None
                if self.gives_latents:
                    latents = model.denormalise(self.student.normalise(_as_float(latents)))
            elif self.shares_latents:
                latents, size = output.latents, tuple(prepared.images.shape[-2:])
            else:
                is_rgba = prepared.backgrounds is not None
                encoded = downscale(prepared.target, self.upscale, alpha=is_rgba)
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

    def hand_over_scale(self, *models: Any) -> None:
        """Gives models the teacher's normalisation, if they learn its latents: the run and its average."""
        for model in models if self.gives_latents else ():
            model.take_scale(self.model)

    def describe(self) -> str:
        """Returns a sentence that says what the teacher is and what it does."""
        what = "decodes the same latents" if self.shares_latents else "encodes and decodes for itself"
        if self.gives_latents:
            what = "gives its latents: the encoder regresses onto them, and the decoder decodes them"
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
    terms = TeacherTerms(section.output_weight, section.features_weight, section.latents_weight)
    try:
        with distributed.main_first():  # the first rank downloads from the hub, the others find it
            model: Any = build.open_teacher(place, getattr(config.model, "norm_num_groups", None))
        _check_sizes(model, autoencoder, shares_latents=shares, gives_latents=terms.latents_weight > 0)
        if terms.latents_weight:
            _check_latents(model)
        if levels:
            decoder_levels(model.decoder, levels)
    except ValueError as error:
        key = "model.pretrained" if section.model is None else "loss.teacher.model"
        raise ValueError(f"the teacher is `{key}`, {place}, which cannot be used: {error}") from error
    state = model.state_dict()
    teacher = Teacher(
        model,
        terms,
        shares_latents=shares,
        student=autoencoder,
        upscale=upscale_of(autoencoder),
        levels=levels,
        place=place,
        latents_hash=_hash_of_latents(state),
        weights_hash=fingerprint(state),  # as the starting weights are recorded, to compare by eye
        autocast=autocast,
    )
    if shares:  # it is never asked to encode
        model.encoder = model.quant_conv = None
    if not teacher.decodes:
        model.decoder = model.post_quant_conv = None
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


def _check_sizes(model: Any, autoencoder: Any, *, shares_latents: bool, gives_latents: bool) -> None:
    """Raises ValueError unless the teacher can take part: by its latents or by its images."""
    own, its = autoencoder.config, model.config
    if its.out_channels != own.out_channels:
        raise ValueError(f"it makes images of {its.out_channels} channels, and the run of {own.out_channels}")
    if its.in_channels != own.in_channels:
        raise ValueError(f"it takes images of {its.in_channels} channels, and the run {own.in_channels}")
    if not (shares_latents or gives_latents):
        return
    remedy = (
        "name a model with the run's encoder, or use freeze_encoder=false, with which it encodes for itself"
    )
    if gives_latents:
        remedy = "name a model with latents of the run's size, or use loss.teacher.latents_weight=0"
    for name, ours, theirs in (
        ("latent channels", autoencoder.latents_channels, model.latents_channels),
        ("pixels per latent", autoencoder.downsampling_factor, model.downsampling_factor),
    ):
        if ours != theirs:
            raise ValueError(
                f"it is a teacher of other latents: it has {theirs} {name}, and the run has {ours}; {remedy}"
            )


def _check_latents(model: Any) -> None:
    """Raises ValueError unless an encoder can learn the teacher's latents."""
    if getattr(model, "quantize", None) is not None:
        raise ValueError(
            "it decodes the nearest codes of its codebook, which the run's model lacks; name a model without "
            "a codebook, or use loss.teacher.latents_weight=0"
        )
    if not model.has_known_scale:
        raise ValueError(
            "the scale of its latents is not known, and loss.teacher.latents_weight needs it; name a folder "
            "that load_autoencoder(file, family=...).save_pretrained(folder) writes, or measure the scale "
            "with scripts/latent_stats.py"
        )


def _as_float(values: Tensor) -> Tensor:
    """Returns values in float32, or in their own precision if that is higher."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _hash_of_latents(state: Mapping[str, Tensor]) -> str:
    """Returns the hash of all weights that images and decoder inputs depend on before ``post_quant_conv``."""
    return hash_tensors({name: value for name, value in state.items() if name.startswith(_LATENT_PARTS)})
