"""The networks of a run, built from its config and wrapped for its devices."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from latentae import build
from latentae.config import OptimizerConfig, RunConfig
from latentae.losses.objective import ReconstructionObjective
from latentae.models import KLVAE, VQVAE
from latentae.quantizers import CodebookQuantizer
from latentae.training.accelerator import Accelerator
from latentae.training.ema import EMA
from latentae.training.learner import Learner
from latentae.training.optim import OPTIMIZERS, LearningRate
from latentae.training.step import TrainingStep


@dataclass
class Networks:
    """What learns, and the step that gives it gradients.

    Attributes:
        autoencoder: the bare model.
        quantizer: its quantizer, where it has one.
        ema: the average of the model's weights, which is what is measured and exported.
        learners: the wrapped autoencoder, and the wrapped discriminator where there is one.
        step: one micro-batch.
    """

    autoencoder: KLVAE | VQVAE
    quantizer: CodebookQuantizer | None
    ema: EMA[KLVAE | VQVAE]
    learners: list[Learner]
    step: TrainingStep


def build_networks(
    config: RunConfig, accelerator: Accelerator, objective: ReconstructionObjective
) -> Networks:
    """Fresh networks that the seed determines; what a resume needs of them is known to the accelerator.

    Args:
        objective: on the accelerator's device.
    """
    seed_everything(config.seed)
    size = config.data.image_size
    autoencoder = build.build_autoencoder(config.model, size if isinstance(size, int) else max(size))
    if isinstance(autoencoder, KLVAE) and config.loss.kl is None:
        autoencoder.pin_posterior()
    autoencoder.to(accelerator.device)
    discriminator = build.build_discriminator(config)
    adversarial = build.build_adversarial_terms(config.loss)
    ema = EMA(autoencoder, config.ema_decay or 0.0)
    learners = [_learner("autoencoder", autoencoder, config.optimizer, config, accelerator)]
    if discriminator is not None and config.discriminator is not None:
        optimizer, first_step = config.discriminator.optimizer, adversarial.first_discriminator_step
        learners.append(_learner("discriminator", discriminator, optimizer, config, accelerator, first_step))
    quantizer = getattr(autoencoder, "quantize", None)
    accelerator.register_for_checkpointing(ema, _Upkeep(quantizer))
    step = TrainingStep(
        autoencoder=learners[0].module,
        last_layer=autoencoder.last_layer,
        objective=objective,
        discriminator=learners[1].module if discriminator is not None else None,
        adversarial=adversarial,
        regulariser=build.build_regulariser(config.loss),
        latents_shape=None if config.loss.kl is None else autoencoder.latents_shape,
        backward=accelerator.backward,
        reuse_discriminator_forward=not getattr(discriminator, "forward_has_state", False),
    )
    return Networks(autoencoder, quantizer, ema, learners, step)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, from which weights are drawn."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _learner(
    name: str,
    module: nn.Module,
    optimizer_config: OptimizerConfig,
    config: RunConfig,
    accelerator: Accelerator,
    first_step: int = 0,
) -> Learner:
    optimizer = OPTIMIZERS[optimizer_config.type](
        module.to(accelerator.device).parameters(),
        learning_rate=optimizer_config.learning_rate,
        betas=optimizer_config.betas,
        weight_decay=optimizer_config.weight_decay,
        epsilon=optimizer_config.epsilon,
    )
    rate = LearningRate(
        optimizer_config.learning_rate,
        schedule=optimizer_config.schedule,
        warmup_steps=optimizer_config.warmup_steps,
        final_scale=optimizer_config.final_scale,
        first_step=first_step,
        last_step=config.max_steps,
    )
    wrapped, _ = accelerator.prepare(module, optimizer)
    return Learner(name, wrapped, optimizer, rate, first_step)


class _Upkeep:
    """A codebook's upkeep, as something that accelerate saves and loads."""

    def __init__(self, quantizer: CodebookQuantizer | None) -> None:
        self.quantizer = quantizer

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.quantizer is None else self.quantizer.upkeep

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])
