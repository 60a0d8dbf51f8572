"""Models under evaluation: their names, hashes and precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentae.console import FAMILIES
from latentae.models import ForeignAutoencoder, load_autoencoder
from latentae.models.decoders import downscale, reconstruct, upscale_of
from latentae.weights import hash_tensors

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
"""The precisions that models can run in; metrics are always computed in float32 or more."""

# Folders of the model in a run or a pipeline: their names do not tell models apart.
_INNER_FOLDERS = ("model", "vae", "vqvae")


@dataclass
class NamedModel:
    """An autoencoder with its name in a report and the precision in which it runs.

    Attributes:
        name: in the report.
        path: where the model comes from.
        autoencoder: in eval mode, called as ``autoencoder(images)``.
        autocast: reduced precision of its forward pass, such as ``torch.bfloat16``; None keeps its own.
        alpha: whether its images are RGBA, whose colours ``downscale`` weights by alpha.
        sha256: of the weights.
        identity: everything that its reconstructions depend on: weights, config, precision and, if it
            upscales, alpha.
    """

    name: str
    path: str
    autoencoder: nn.Module
    autocast: torch.dtype | None = None
    alpha: bool = False
    _warm: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.sha256 = weights_sha256(self.autoencoder)
        config = {k: v for k, v in getattr(self.autoencoder, "config", {}).items() if not k.startswith("_")}
        self.identity = f"{self.sha256} {json.dumps(config, sort_keys=True, default=str)} {self.autocast}"
        if self.alpha and self.upscale > 1:
            self.identity += " downscaled by alpha"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """Returns the ``AutoencoderOutput`` of images [B, C, H, W] in [−1, 1], its sample in float32.

        A model that upscales encodes the images downscaled, and its sample has their own size again.

        Raises:
            ValueError: the reconstruction is not finite, or has another size than the images.
        """
        with self._precision(images):
            output = reconstruct(self.autoencoder, images, alpha=self.alpha)
        output.sample = output.sample.float()
        if output.sample.shape != images.shape:
            made, taken = list(output.sample.shape), list(images.shape)
            raise ValueError(f"{self.name} makes {made} of images {taken}: they cannot be compared")
        if not output.sample.isfinite().all():
            raise ValueError(
                f"{self.name} makes images that hold NaN or infinity: its weights are damaged, or its "
                "training diverged"
            )
        return output

    def seen(self, images: Tensor) -> Tensor:
        """Returns what the encoder sees of images [B, C, H, W]: of a model that upscales smaller ones."""
        return downscale(images, self.upscale, alpha=self.alpha)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the unscaled latents [B, c, h, w] that a call decodes: the posterior's mode."""
        autoencoder: Any = self.autoencoder
        with self._precision(images):
            latents: Tensor = autoencoder.encode(images).latents
        return latents

    def normalise(self, latents: Tensor) -> Tensor:
        """Returns unscaled latents [B, c, h, w] in the units that a denoiser sees, in the same shape."""
        autoencoder: Any = self.autoencoder
        normalised: Tensor = autoencoder.normalise(latents.float())
        return normalised

    @torch.no_grad()
    def decode_normalised(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Decodes what ``normalise`` returns to images [B, C, H, W] of a size (H, W), in float32.

        Raises:
            ValueError: the images are not finite.
        """
        autoencoder: Any = self.autoencoder
        with self._precision(latents):
            images: Tensor = autoencoder.decode(autoencoder.denormalise(latents), size=size).sample.float()
        if not images.isfinite().all():
            raise ValueError(
                f"{self.name} decodes another model's latents to images that hold NaN or infinity"
            )
        return images

    @torch.no_grad()
    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Decodes unscaled latents [B, c, h, w], as ``encode`` returns them, to images of a size (H, W).

        Raises:
            ValueError: the images are not finite.
        """
        autoencoder: Any = self.autoencoder
        with self._precision(latents):
            images: Tensor = autoencoder.decode(latents).sample.float()[..., : size[0], : size[1]]
        if not images.isfinite().all():
            raise ValueError(f"{self.name} decodes interpolated latents to images that hold NaN or infinity")
        return images

    def _precision(self, inputs: Tensor) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(inputs.device.type, self.autocast)

    def warm_up(self, images: Tensor) -> None:
        """Runs the model once, so that no timed call includes its start."""
        if not self._warm:
            self(images)
            self._warm = True

    @property
    def upscale(self) -> int:
        """Ratio of the side of a reconstruction to the side of the image that the encoder sees."""
        return upscale_of(self.autoencoder)

    @property
    def fixed_size(self) -> int | None:
        """Side in pixels of the square images that the model takes; None: it takes any size."""
        return getattr(self.autoencoder, "fixed_size", None)

    @property
    def num_codes(self) -> int | None:
        """Number of codes per table; None for a model without codes."""
        return getattr(getattr(self.autoencoder, "quantize", None), "num_codes", None)


def open_models(
    models: Sequence[str],
    precision: str,
    device: torch.device,
    open_model: Callable[..., Any] = load_autoencoder,
    *,
    families: Sequence[str] = (),
    alpha: bool = False,
) -> list[NamedModel]:
    """Opens models. ``name=path`` names a model; otherwise its file or folder does.

    Args:
        models: what ``open_model`` opens, each with an optional ``name=`` before it.
        precision: one of ``PRECISIONS``.
        open_model: opens the model of a path in float32; called with ``family`` if the model has one.
        families: see ``choose_families``.
        alpha: whether images are RGBA. If not, diffusers' classes for RGBA get them with an opaque alpha.

    Raises:
        ValueError: a model cannot be opened, two models have the same name, models take different numbers of
            channels or make others than they take, or the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, but must be one of {', '.join(PRECISIONS)}")
    opened = []
    named = name_models(models)
    of_models = choose_families(named, families)
    for name, path in named.items():
        family = {"family": of_models[name]} if name in of_models else {}
        autoencoder = open_model(path, **family).to(device).eval()
        if isinstance(autoencoder, ForeignAutoencoder) and autoencoder.config.in_channels == 4 and not alpha:
            autoencoder.ignore_alpha()
        taken, made = autoencoder.config.in_channels, autoencoder.config.out_channels
        if taken != made:
            raise ValueError(f"{name} makes images of {made} channels from {taken}: they cannot be compared")
        opened.append(NamedModel(name, path, autoencoder, PRECISIONS[precision], alpha))
    if len({channels_of(model) for model in opened}) > 1:
        listed = ", ".join(f"{model.name} {channels_of(model)}" for model in opened)
        raise ValueError(f"models take different numbers of channels ({listed}): evaluate them apart")
    return opened


def name_models(models: Sequence[str]) -> dict[str, str]:
    """Returns name → path of each model, in order; raises ValueError for equal or invalid names."""
    named: dict[str, str] = {}
    for text in models:
        name, path = _name_and_path(text)
        if name in named:
            raise ValueError(
                f"{named[name]} and {path} are both called {name}: write another name before one of them, "
                f"as in other={path}"
            )
        named[name] = path
    if not named:
        raise ValueError("there is no model to evaluate: name one or more")
    return named


def add_teacher(models: Sequence[str], teacher: str) -> tuple[list[str], str]:
    """Returns the models to measure, the teacher among them, and the teacher's name.

    Args:
        models: as ``open_models`` takes them.
        teacher: the name of one of them, or another model, with an optional ``name=`` before it.

    Raises:
        ValueError: there is no model beside the teacher, or two models have the same name.
    """
    named = name_models(models)
    measured, name = list(models), teacher
    if teacher not in named:
        ((name, path),) = name_models([teacher]).items()
        has_own_name = path != teacher
        # The same path under another name is measured again only if the teacher was given a name of its own.
        listed = [
            other
            for other, place in named.items()
            if Path(place).resolve() == Path(path).resolve() and (other == name or not has_own_name)
        ]
        if listed:
            name = listed[0]
        else:
            measured.append(teacher)
            named = name_models(measured)
    if len(named) < 2:
        raise ValueError(
            f"teacher is {teacher!r}, which is the only model: name another one beside it, or give the "
            f"teacher a name of its own, as in --teacher teacher={named[name]}"
        )
    return measured, name


def group_models(names: Sequence[str], groups: Sequence[str]) -> dict[str, list[str]]:
    """Returns group → models, in the order in which a report shows them; empty without groups.

    Models in no group form the last one, ``others``.

    Args:
        names: of the models.
        groups: ``NAME=MODEL,MODEL`` each.

    Raises:
        ValueError: a group has no name or no models, a model is unknown or in two groups, or a name occurs
            twice.
    """
    found: dict[str, list[str]] = {}
    for text in groups:
        group, _, listed = text.partition("=")
        members = [name.strip() for name in listed.split(",") if name.strip()]
        if not group.strip() or not members:
            raise ValueError(f"group is {text!r}, but must be NAME=MODEL,MODEL")
        if group in found:
            raise ValueError(f"two groups are called {group}: write their models into one")
        for name in members:
            if name not in names:
                raise ValueError(f"group {text!r} names {name}, but the models are {', '.join(names)}")
            if members.count(name) > 1 or any(name in others for others in found.values()):
                raise ValueError(f"{name} is in two groups: name it once")
        found[group] = members
    rest = [name for name in names if not any(name in members for members in found.values())]
    return {**found, "others": rest} if found and rest else found


def choose_families(names: Collection[str], families: Sequence[str]) -> dict[str, str]:
    """Returns model name → family, for the models that get one.

    Args:
        names: of the models.
        families: ``family`` holds for all models, and ``name=family`` for one.

    Raises:
        ValueError: a family is unknown, a name is no model's, or a model has two families.
    """
    chosen: dict[str, str] = {}
    for text in families:
        name, equals, family = text.rpartition("=")
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}, but must be one of {', '.join(FAMILIES)}")
        if equals and name not in names:
            raise ValueError(f"family {text!r} names no model: the models are called {', '.join(names)}")
        for model in [name] if equals else names:
            if model in chosen:
                raise ValueError(
                    f"{model} has two families, {chosen[model]} and {family}: give each model one"
                )
            chosen[model] = family
    return chosen


def channels_of(model: NamedModel) -> int:
    """Returns the number of channels of the images that a model takes and makes."""
    autoencoder: Any = model.autoencoder
    return int(autoencoder.config.in_channels)


def factor_of(model: NamedModel) -> int:
    """Returns the pixels per latent position along each side."""
    autoencoder: Any = model.autoencoder
    return int(autoencoder.downsampling_factor)


def weights_sha256(model: nn.Module) -> str:
    """Returns a hash of a model's class and state, whatever file they came from."""
    return hash_tensors(model.state_dict(), type(model).__name__)


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and name and not Path(text).exists():
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"invalid model name {name!r}: use letters, digits, '.', '-' and '_'")
        return name, path
    place = Path(text).expanduser()
    last = place.resolve() if place.exists() else place
    own = last.parent if last.name in _INNER_FOLDERS else last
    return (own.stem if own.is_file() else own.name), text
