"""Trains a denoiser by rectified flow on one device; every random number is a function of (seed, step)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from diffusers import DiTTransformer2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor

from latentae.data.seeding import DENOISER_STEP, ORDER, torch_generator
from latentae.probe.denoiser import (
    NULL_LABEL,
    NUM_TRAIN_TIMESTEPS,
    FlowValidation,
    LatentBatch,
    logit_normal_times,
    noisy_latents,
    velocity,
)


class Latents(Protocol):
    """The interface of cached latents; ``LatentDataset`` implements it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns ``latents`` [c, h, w] scaled for a denoiser and, where the data has labels, ``label``."""

    def set_epoch(self, epoch: int) -> None:
        """Selects the samples of the posteriors and the flipped images of an epoch."""


class LatentBatches:
    """Batches in a random order per epoch, a function of (seed, step).

    The last images of an epoch are left out where they do not fill a batch.

    Args:
        dataset: the latents.
        batch_size: images per batch.
        seed: of the order.
        offset: [c] added to the latents; see ``PipelineAutoencoder``.

    Raises:
        ValueError: fewer images than a batch.
    """

    def __init__(self, dataset: Latents, batch_size: int, seed: int, offset: Tensor | None = None) -> None:
        if len(dataset) < batch_size:
            raise ValueError(
                f"there are {len(dataset)} training images, fewer than a batch of {batch_size}: choose a "
                "smaller --batch-size"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.offset = offset
        self._epoch = -1
        self._order = torch.zeros(0, dtype=torch.int64)

    def __call__(self, step: int) -> LatentBatch:
        """Returns the batch of a step; steps count from 0."""
        per_epoch = len(self.dataset) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(
                len(self.dataset), generator=torch_generator(self.seed, ORDER, epoch)
            )
            self.dataset.set_epoch(epoch)
        chosen = self._order[position * self.batch_size :][: self.batch_size]
        return collect(self.dataset, chosen.tolist(), self.offset)


def collect(dataset: Latents, indices: list[int], offset: Tensor | None = None) -> LatentBatch:
    """Returns the latents of some images, in this order; ``offset`` [c] is added to them."""
    samples = [dataset[index] for index in indices]
    latents = torch.stack([sample["latents"] for sample in samples]).float()
    if offset is not None:
        latents = latents + offset[:, None, None].to(latents)
    return LatentBatch(latents, torch.tensor([int(sample.get("label", 0)) for sample in samples]))


@dataclass(frozen=True)
class TrainingSettings:
    """The length of a denoiser's training, and its hyperparameters.

    Attributes:
        steps: optimizer steps.
        seed: of all random numbers.
        learning_rate: the highest of AdamW (β 0.9 and 0.99, no weight decay). It rises linearly, then falls
            to zero along half a cosine.
        warmup_steps: steps of the rise; at most a tenth of all steps.
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: of the averaged weights, which are measured and saved; in step n it is (1 + n) / (10 + n)
            while that is less.
        label_dropout: share of labels that are dropped for classifier-free guidance (Ho and Salimans 2022,
            arXiv 2207.12598).
        points: the number of measurements, evenly spread.
    """

    steps: int
    seed: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    label_dropout: float = 0.1
    points: int = 20


@dataclass(frozen=True)
class CurvePoint:
    """The losses of a training at one step.

    Attributes:
        step: optimizer steps done.
        seconds: of training so far, without measurements.
        training_loss: mean since the last point, of the weights at each step.
        validation_loss, relative_loss: of the averaged weights, measured by ``FlowValidation``.
    """

    step: int
    seconds: float
    training_loss: float
    validation_loss: float
    relative_loss: float


@dataclass
class DenoiserTraining:
    """A training that can be stopped after any step; it continues with the same numbers.

    Attributes:
        denoiser: trained in place, in eval mode; see ``build_denoiser``.
        batches: returns the batch of a step, from 0.
        validation: measures the denoiser.
        settings: length and hyperparameters.
        device: of the denoiser.
        has_labels: whether the data has labels; only then are labels dropped.
        curve: the measurements so far.
        step: optimizer steps done.
    """

    denoiser: DiTTransformer2DModel
    batches: Callable[[int], LatentBatch]
    validation: FlowValidation
    settings: TrainingSettings
    device: torch.device
    has_labels: bool = False
    curve: list[CurvePoint] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        settings = self.settings
        self._parameters = list(self.denoiser.parameters())
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        warmup = min(settings.warmup_steps, settings.steps // 10)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warmup, settings.steps)
        self.average = EMAModel(self._parameters, decay=settings.ema_decay, foreach=True)
        self.seconds = 0.0
        self._losses: list[Tensor] = []

    def advance(self, steps: int) -> None:
        """Trains for this many steps, or to the end."""
        started = time.monotonic()
        for _ in range(min(steps, self.settings.steps - self.step)):
            self._losses.append(self._train_step())
            self.step += 1
            if self._is_point(self.step):
                self.seconds += time.monotonic() - started
                self._add_point()
                started = time.monotonic()
        self.seconds += time.monotonic() - started

    @property
    def is_done(self) -> bool:
        """True once all steps are done."""
        return self.step >= self.settings.steps

    def use_average(self) -> None:
        """Replaces the denoiser's weights by the averaged ones."""
        self.average.copy_to(self._parameters)

    def loss(self, step: int) -> Tensor:
        """Returns the loss of a step's batch: the mean squared error of the velocity."""
        batch, seed = self.batches(step), self.settings.seed
        latents = batch.latents.to(self.device)
        draws = torch_generator(seed, DENOISER_STEP, step)
        noise = torch.randn(latents.shape, generator=draws).to(self.device)
        times = logit_normal_times(torch.randn(len(latents), generator=draws)).to(self.device)
        labels = batch.labels
        if self.has_labels:
            dropped = torch.rand(len(labels), generator=draws) < self.settings.label_dropout
            labels = torch.where(dropped, NULL_LABEL, labels)
        predicted = self.denoiser(
            noisy_latents(latents, noise, times),
            timestep=times * NUM_TRAIN_TIMESTEPS,
            class_labels=labels.to(self.device),
        ).sample
        return (predicted - velocity(latents, noise)).square().mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a continued training needs."""
        return {
            "denoiser": self.denoiser.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "curve": [asdict(point) for point in self.curve],
            "losses": [loss.cpu() for loss in self._losses],
            "step": self.step,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.denoiser.load_state_dict(state["denoiser"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])
        self.average.to(self.device)
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        self._losses = [loss.to(self.device) for loss in state["losses"]]
        self.step, self.seconds = state["step"], state["seconds"]

    def _train_step(self) -> Tensor:
        loss = self.loss(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.average.step(self._parameters)
        return loss.detach()

    def _is_point(self, step: int) -> bool:
        steps, points = self.settings.steps, self.settings.points
        return step * points // steps > (step - 1) * points // steps

    def _add_point(self) -> None:
        training_loss = torch.stack(self._losses).mean().item()
        if not math.isfinite(training_loss):
            raise ValueError(
                f"the denoiser's loss is {training_loss} by step {self.step}: choose a lower "
                "--learning-rate, and another --out"
            )
        self._losses = []
        self.average.store(self._parameters)
        self.average.copy_to(self._parameters)
        measured = self.validation(self.denoiser)
        self.average.restore(self._parameters)
        self.curve.append(
            CurvePoint(self.step, self.seconds, training_loss, measured.loss, measured.relative_loss)
        )
