"""Training a denoiser by rectified flow on one device; every random number is a function of (seed, step)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor

from latentae.probe.batches import LatentBatch
from latentae.probe.denoiser import NULL_LABEL
from latentae.probe.flow import NUM_TRAIN_TIMESTEPS, logit_normal_times, noisy_latents, velocity
from latentae.probe.randomness import generator
from latentae.probe.validation import FlowValidation


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how a denoiser is trained.

    Attributes:
        steps: optimizer steps.
        seed: of all random numbers.
        learning_rate: of AdamW (β 0.9 and 0.99, no weight decay): risen to linearly, then falling to zero
            along half a cosine.
        warmup_steps: in which it rises; never more than a tenth of all steps.
        max_grad_norm: to which gradients are clipped.
        ema_decay: of the averaged weights, which are what is measured and saved; (1 + n) / (10 + n) in step
            n while that is less.
        label_dropout: share of labels replaced by none, for classifier-free guidance (Ho and Salimans 2022,
            arXiv 2207.12598).
        points: how often a run is measured, evenly spread.
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
    """A run at one step.

    Attributes:
        step: optimizer steps done.
        seconds: of training so far, without measuring.
        training_loss: mean since the last point, of the weights as they were.
        validation_loss, relative_loss: of the averaged weights, as ``FlowValidation`` measures them.
    """

    step: int
    seconds: float
    training_loss: float
    validation_loss: float
    relative_loss: float


@dataclass
class DenoiserTraining:
    """A run that can be stopped after any step and goes on as if it had not been.

    Attributes:
        denoiser: trained in place, in eval mode; see ``build_denoiser``.
        batches: step, from 0 → its batch.
        validation: what it is measured by.
        settings: how.
        device: where the denoiser is.
        has_labels: whether labels mean anything; without, none is dropped.
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
        """Trains so many steps, or to the end."""
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
        """Whether all steps are done."""
        return self.step >= self.settings.steps

    def use_average(self) -> None:
        """Puts the averaged weights into the denoiser, for good."""
        self.average.copy_to(self._parameters)

    def loss(self, step: int) -> Tensor:
        """The loss of a step's batch: the squared error of the velocity, a scalar."""
        batch, seed = self.batches(step), self.settings.seed
        latents = batch.latents.to(self.device)
        draws = generator(seed, "step", step)
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
        """Everything that a continued run needs."""
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
        """Continues where ``state_dict`` was called."""
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
        if not torch.isfinite(torch.tensor(training_loss)):
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
