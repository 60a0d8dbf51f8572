"""A few of a run's steps, made in memory, to see what they need."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional

from latentae.data import Batch
from latentae.training.memory import ActivationMeter, MemoryUse, gradient_bytes, module_bytes, tensor_bytes
from latentae.training.meter import Meter
from latentae.training.trainer import Trainer

_TIMED_STEPS = 2


@dataclass
class Stage:
    """A stretch of the run in which the same networks learn.

    Attributes:
        first, last: its optimizer steps, from 0; ``last`` is the next stage's first.
        seconds: what one of them takes.
    """

    first: int
    last: int
    seconds: float = 0.0


def measure_memory(trainer: Trainer, batches: Iterator[Batch]) -> MemoryUse:
    """One whole optimizer step, the costliest of the run, and what it kept in memory."""
    networks = trainer.networks
    modules = [learner.module for learner in networks.learners]
    judges = [networks.step.objective, *networks.step.latent_losses.networks, trainer.validation_lpips]
    weights = [
        tensor for module in [*modules, *judges] for tensor in (*module.parameters(), *module.buffers())
    ]
    trainer.step = _costliest_step(trainer)
    largest = max(trainer.config.data.training_sizes, key=math.prod)
    perceptual = networks.step.objective.perceptual
    with ExitStack() as stack:
        activations = stack.enter_context(ActivationMeter(weights))
        stack.enter_context(networks.step.latent_losses.at_full_size())
        if perceptual is not None:  # LPIPS goes backwards within its forward
            stack.enter_context(activations.during(perceptual))
        trainer.optimizer_step(_resized(batches, largest), Meter())
    return MemoryUse(
        weights=module_bytes(*modules),
        gradients=gradient_bytes(*modules),
        optimizer=tensor_bytes([dict(learner.optimizer.state) for learner in networks.learners]),
        average=module_bytes(networks.ema.model),
        losses=module_bytes(*judges),
        activations=activations.peak,
    )


def measure_time(trainer: Trainer, batches: Iterator[Batch]) -> list[Stage]:
    """The stages of the run, with what a step takes in each; after a first step that warms up."""
    config, networks = trainer.config, trainer.networks
    starts = {0, *(learner.first_step for learner in networks.learners)}
    if networks.step.adversary is not None:
        starts.add(networks.step.adversary.terms.start_step)
    bounds = [*sorted(start for start in starts if start < config.max_steps), config.max_steps]
    stages = [Stage(first, last) for first, last in pairwise(bounds)]
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    meter = Meter()
    for stage in stages:
        trainer.step = stage.first
        _wait_for(trainer.device)
        began = time.perf_counter()
        for _ in range(_TIMED_STEPS):
            trainer.optimizer_step(batches, meter)
        _wait_for(trainer.device)
        stage.seconds = (time.perf_counter() - began) / _TIMED_STEPS
    return stages


def _costliest_step(trainer: Trainer) -> int:
    """The first step in which all that ever learns learns at once."""
    adversary = trainer.networks.step.adversary
    if adversary is None:
        return 0
    terms, every = adversary.terms, 1 if adversary.r1 is None else adversary.r1.every
    for step in range(terms.start_step, terms.start_step + terms.update_every * every):
        updates = terms.discriminator_updates(step)
        if terms.discriminator_learns(step) and updates % every == 0 and step < trainer.config.max_steps:
            return step
    return min(terms.first_discriminator_step, trainer.config.max_steps - 1)


def _resized(batches: Iterator[Batch], size: tuple[int, int]) -> Iterator[Batch]:
    """The batches as if all images had this height and width: memory has to do for the largest."""
    for batch in batches:
        if batch["images"].shape[-2:] != size:
            batch["images"] = functional.interpolate(batch["images"], size)
        yield batch


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
