"""The options of a probe, and the images that they select."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentae.data import DataSelection, ImageSource, open_sources, take_evenly
from latentae.data.annotations import read_annotations
from latentae.evaluation.blocks import ImageBlocks, Protocol, protocol_called
from latentae.evaluation.models import choose_families, name_models
from latentae.probe.denoiser import DenoiserSize
from latentae.probe.folder import ProbeFolder

_MOST_HELD_OUT = 512


@dataclass(frozen=True)
class ProbeRequest:
    """The options of a probe.

    Attributes:
        models: paths or names that ``load_autoencoder`` opens; ``name=path`` gives one a name.
        data: the name of the data: ``photos``, a path, or a dataset of the hub.
        out: folder of the report.
        steps: optimizer steps of each denoiser.
        batch_size: images per step.
        image_size: pixels per side: the shorter side is resized to it, and the central square is taken.
        seed: of every random number.
        split: of the data to train on. The held-out images are those of its validation split, or about
            5 % of the training images.
        image_column, dataset_config, value_range, max_pixels: how to read the data; see ``open_source``.
        samples: images to generate and measure for each model.
        sampling_steps: of the sampler.
        guidance_scale: of classifier-free guidance for labelled data; 1 turns it off.
        unconditional: ignore the labels of the data.
        flips: mirror half of the images in training, left and right.
        alpha: whether images are RGBA. Pictures then show a checkerboard, features are those of composites
            over white, and reconstructions are measured as ``Evaluation`` measures RGBA images. Colours are
            resized by alpha: see ``resize_window``.
        learning_rate: the highest one.
        size: of the denoiser.
        reference_images: the largest number of training images to measure against, evenly spread.
        inception: file of Inception's weights; None: search for it.
        num_workers: processes that decode images.
        families: for models that do not record their scale: ``FAMILY`` for all of them, ``NAME=FAMILY`` for
            one.
    """

    models: Sequence[str]
    data: str
    out: Path
    steps: int = 2000
    batch_size: int = 32
    image_size: int = 64
    seed: int = 0
    split: str = "train"
    image_column: str | None = None
    dataset_config: str | None = None
    value_range: tuple[float, float] | None = None
    max_pixels: int | None = None
    samples: int = 512
    sampling_steps: int = 25
    guidance_scale: float = 1.0
    unconditional: bool = False
    flips: bool = True
    alpha: bool = False
    learning_rate: float = 1e-3
    size: DenoiserSize = field(default_factory=DenoiserSize)
    reference_images: int = 10_000
    inception: Path | None = None
    num_workers: int = 0
    families: Sequence[str] = ()

    def check(self) -> None:
        """Refuses wrong options before models or data are opened; nothing is written.

        Raises:
            ValueError: an option has a value that is not allowed, or the folder holds other files.
        """
        names = name_models(self.models)
        choose_families(names, self.families)
        for name in names:
            if name.startswith("."):
                raise ValueError(
                    f"invalid model name {name!r}: its folder may not start with '.'; write name=PATH"
                )
        lowest = {
            "steps": 1,
            "batch_size": 1,
            "image_size": 1,
            "seed": 0,
            "samples": 2,
            "sampling_steps": 1,
            "guidance_scale": 1,
            "reference_images": 4,
            "num_workers": 0,
        }
        for name, least in lowest.items():
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"{name} is {value}, but must be {least} or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, but must be more than 0")
        if self.inception is not None and not self.inception.is_file():
            raise ValueError(f"inception is {self.inception}, but there is no such file")
        ProbeFolder(self.out).check()

    def settings(self) -> dict[str, Any]:
        """Returns the options, besides the models, that results depend on; a continued probe keeps them."""
        settings = asdict(self)
        for name in ("models", "families", "out", "num_workers", "inception"):
            del settings[name]
        if self.alpha:
            settings["resized_by_alpha"] = True  # older probes with alpha are not
        else:
            del settings["alpha"]  # it appears only if given, so that older probes open
        return settings


@dataclass(frozen=True)
class ProbeImages:
    """The images of a probe; no image is both trained on and held out.

    Attributes:
        training, held_out: the sources.
        reference: training images to measure generated images against, evenly spread.
        measured: held-out images to measure reconstructions on.
        protocol: prepares these images.
        description: splits, folders and left out images, for people.
    """

    training: ImageSource
    held_out: ImageSource
    reference: ImageBlocks
    measured: ImageBlocks
    protocol: Protocol
    description: str = ""


def open_images(request: ProbeRequest, channels: int) -> ProbeImages:
    """Opens the images of a probe.

    Raises:
        ValueError: no such data, none of them readable, fewer than a batch, or no labels for guidance.
    """
    reading = (request.image_column, request.dataset_config, request.value_range, request.max_pixels)
    sources = open_sources(**vars(DataSelection(request.data, request.split, *reading)))
    training, held_out = sources.train, take_evenly(sources.validation, _MOST_HELD_OUT)
    if len(training) < max(request.batch_size, 4):
        raise ValueError(
            f"{request.data} has {len(training)} training images, fewer than a batch of "
            f"{request.batch_size}: choose a smaller --batch-size, or more images (4 at least)"
        )
    if request.guidance_scale > 1 and (request.unconditional or read_annotations(training).labels is None):
        raise ValueError(
            f"guidance_scale is {request.guidance_scale:g}, but there are no labels to be guided by: leave "
            "it out"
        )
    protocol = protocol_called(f"resize-{request.image_size}")
    reference = ImageBlocks(training, protocol, channels, request.reference_images, alpha=request.alpha)
    reference.check()
    measured = ImageBlocks(held_out, protocol, channels, alpha=request.alpha)
    measured.check()
    return ProbeImages(training, held_out, reference, measured, protocol, sources.description)
