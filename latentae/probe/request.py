"""What is asked of a probe, and whether it can be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentae.evaluation.subject import choose_families, name_models
from latentae.probe.denoiser import DenoiserSize
from latentae.probe.folder import ProbeFolder

DEFAULT_STEPS = 2000


@dataclass(frozen=True)
class ProbeRequest:
    """Which models to probe, on what, for how long, and where to write it.

    Attributes:
        models: what ``load_autoencoder`` opens, each perhaps with a name before it: ``name=path``.
        data: the name of the data: ``photos``, a path, or a dataset of the hub.
        out: folder of the report.
        steps: optimizer steps of each denoiser; None: what ``seconds`` allow, else 2000.
        seconds: of training for each denoiser: the speed is measured once, and all take as many steps.
        batch_size: images a step.
        image_size: pixels a side: the shorter side is resized to it, and the central square taken.
        seed: of every random number.
        split: of the data, to train on. The held-out images are those of its validation split, or about
            5 % of the training images.
        image_column, dataset_config, value_range, max_pixels: how to read the data, as ``open_source`` takes
            them.
        samples: pictures to generate and measure for each model.
        sampling_steps: of the sampler.
        guidance_scale: of classifier-free guidance, where the data have labels; 1 is none.
        unconditional: whether labels are left alone where the data have some.
        flips: whether half of the images are seen mirrored, left and right.
        learning_rate: at its highest.
        size: of the denoiser.
        reference_images: training images to measure against at most, spread evenly.
        inception: file of Inception's weights; None looks for them.
        num_workers: processes that decode images.
        families: for models that do not record their scale: ``FAMILY`` for all of them, ``NAME=FAMILY`` for
            one.
    """

    models: Sequence[str]
    data: str
    out: Path
    steps: int | None = None
    seconds: float | None = None
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
    learning_rate: float = 1e-3
    size: DenoiserSize = field(default_factory=DenoiserSize)
    reference_images: int = 10_000
    inception: Path | None = None
    num_workers: int = 0
    families: Sequence[str] = ()

    def check(self) -> None:
        """What can be known without opening models or data; nothing is written.

        Raises:
            ValueError: one of them cannot be, or the folder is not the probe's.
        """
        names = name_models(self.models)
        choose_families(names, self.families)
        for name in names:
            if name.startswith("."):
                raise ValueError(
                    f"{name!r} is no name for a folder: write another one before the model, name=PATH"
                )
        if self.steps is not None and self.seconds is not None:
            raise ValueError("--steps and --seconds are two ways to say how long: give one of them")
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
            if value is not None and not value >= least:
                raise ValueError(f"{name} is {value}, but must be {least} or more")
        for name in ("seconds", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, but must be more than 0")
        if self.inception is not None and not self.inception.is_file():
            raise ValueError(f"inception is {self.inception}, but there is no such file")
        ProbeFolder(self.out).check()

    def settings(self) -> dict[str, Any]:
        """All that results depend on besides the models, and that a continued probe must have the same."""
        settings = asdict(self)
        for name in ("models", "families", "out", "num_workers", "inception"):
            del settings[name]
        return settings
