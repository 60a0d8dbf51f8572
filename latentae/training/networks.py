"""The networks of a run, built from its config and wrapped for its devices."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from latentae import build, distributed
from latentae.config import DiscriminatorConfig, LikelihoodConfig, OptimizerConfig, RunConfig
from latentae.losses.feature_maps import FeatureMaps
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.models import KLVAE, VQVAE
from latentae.quantizers import Quantizer
from latentae.training.accelerator import Accelerator
from latentae.training.adversary import Adversary
from latentae.training.ema import EMA
from latentae.training.freezing import Frozen, freeze_encoder
from latentae.training.latent_losses import AlignedFeatures, LatentLosses
from latentae.training.learner import Learner
from latentae.training.optim import OPTIMIZERS, LearningRate
from latentae.training.pretrained import Pretrained
from latentae.training.speed import compile_networks, set_float32_precision, tune, use_channels_last
from latentae.training.step import TrainingStep
from latentae.training.trainable import TrainableAutoencoder


@dataclass
class Networks:
    """What learns, and the step that gives it gradients.

    Attributes:
        autoencoder: the bare model.
        quantizer: its quantizer, where it has one that learns.
        ema: the average of the model's weights, which is what is measured and exported.
        learners: the wrapped autoencoder, and the wrapped discriminator where there is one.
        step: one micro-batch.
        pretrained: the model that the first weights are of, taken up unless the run is resumed, or None.
        frozen: what does not learn, or None where all does.
        pinned: whether the posterior of a KLVAE is held certain, as a plain autoencoder's is.
        performance: what was chosen for the sake of speed and memory, in sentences.
    """

    autoencoder: KLVAE | VQVAE
    quantizer: Quantizer | None
    ema: EMA[KLVAE | VQVAE]
    learners: list[Learner]
    step: TrainingStep
    pretrained: Pretrained | None = None
    frozen: Frozen | None = None
    pinned: bool = False
    performance: tuple[str, ...] = ()

    def commit(self, step: int, generator: torch.Generator, accepted: Tensor | bool = True) -> None:
        """Upkeep after an optimizer step, of all that has state beside its weights; on every rank.

        Args:
            step: counted from 1.
            generator: on the CPU, in the same state on every rank.
            accepted: whether the step was made; a boolean scalar on the device, or a bool.
        """
        if self.pinned and isinstance(self.autoencoder, KLVAE):
            self.autoencoder.pin_posterior()  # no loss moves it, but weight decay does
        self.step.commit(accepted)
        if self.quantizer is not None:
            self.quantizer.commit(step, generator, accepted)
        self.ema.update(self.autoencoder, accepted)

    def describe(self) -> list[str]:
        """What a person should know of where the weights come from, and of which of them learn."""
        pretrained = [] if self.pretrained is None else self.pretrained.describe()
        frozen = [] if self.frozen is None else [str(self.frozen)]
        return [*pretrained, *frozen, *self.performance]


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
    frozen = freeze_encoder(autoencoder) if config.freeze_encoder else None
    pinned = isinstance(autoencoder, KLVAE) and config.loss.kl is None and frozen is None
    if pinned:
        autoencoder.pin_posterior()
    autoencoder.to(accelerator.device)
    discriminator = build.build_discriminator(config)
    ema = EMA(autoencoder, config.ema_decay or 0.0)
    performance = _tune(config, autoencoder, objective, discriminator, accelerator.device)
    with distributed.main_first():
        features = build.build_feature_maps(config, bfloat16=accelerator.mixed_precision == "bf16")
    if features is not None and features.precision != "float32":
        performance += (f"the network of loss.alignment computes in {features.precision}",)
    trainable = _with_learned_loss(autoencoder, objective, features, config)
    learners = [_learner("autoencoder", trainable, config.optimizer, config, accelerator)]
    adversary = None
    if discriminator is not None and config.discriminator is not None:
        adversary, learner = _adversary(discriminator, config.discriminator, config, accelerator)
        learners.append(learner)
    quantizer = None if frozen else getattr(autoencoder, "quantize", None)
    accelerator.register_for_checkpointing(ema, _Upkeep(quantizer))
    pretrained = None if config.model.pretrained is None else Pretrained(config, autoencoder, ema)
    if pretrained is not None:
        accelerator.register_for_checkpointing(pretrained)
    if adversary is not None:
        accelerator.register_for_checkpointing(adversary)
    regulariser = None if frozen else build.build_regulariser(config.loss)
    samples = isinstance(autoencoder, KLVAE) and (frozen is not None or config.loss.kl is not None)
    step = TrainingStep(
        autoencoder=learners[0].module,
        last_layer=autoencoder.last_layer,
        objective=objective,
        adversary=adversary,
        regulariser=regulariser,
        latent_losses=_latent_losses(autoencoder, features, config, accelerator.device),
        report=build.build_report(config.loss, regulariser),
        latents_shape=autoencoder.latents_shape if samples else None,
        backward=accelerator.backward,
    )
    return Networks(autoencoder, quantizer, ema, learners, step, pretrained, frozen, pinned, performance)


def _tune(
    config: RunConfig,
    autoencoder: KLVAE | VQVAE,
    objective: ReconstructionObjective,
    discriminator: nn.Module | None,
    device: torch.device,
) -> tuple[str, ...]:
    """Makes the networks fast and lean as the config asks; what was done, in sentences."""
    done = []
    if config.float32_precision is not None:
        done.append(set_float32_precision(config.float32_precision, device))
    if config.performance != "off":
        done.append(
            tune(
                autoencoder,
                objective,
                max(config.data.training_sizes, key=math.prod),
                device,
                performance=config.performance,
                sizes_differ=_sizes_differ(config),
            )
        )
    if config.channels_last:
        done.append(use_channels_last(autoencoder, objective.perceptual, discriminator))
    if config.compile:
        # A penalty on gradients takes the gradient of a gradient, which compiled code does not have.
        twice = config.discriminator is not None and config.discriminator.r1 is not None
        done.append(compile_networks(autoencoder, objective.perceptual, None if twice else discriminator))
    return tuple(done)


def _sizes_differ(config: RunConfig) -> bool:
    """Whether steps draw the sizes of their images or latents. Those that a spectral loss adds are few."""
    return config.loss.equivariance is not None or len(set(config.data.training_sizes)) > 1


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, from which weights are drawn."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _with_learned_loss(
    autoencoder: KLVAE | VQVAE,
    objective: ReconstructionObjective,
    features: FeatureMaps | None,
    config: RunConfig,
) -> nn.Module:
    """What is wrapped: the autoencoder, and with it what its losses learn and what else they decode."""
    likelihood = config.loss.reconstruction
    learned = isinstance(likelihood, LikelihoodConfig) and likelihood.learned
    if not learned and features is None and config.loss.spectral is None:
        return autoencoder
    projection = None
    if features is not None:
        projection = nn.Conv2d(autoencoder.latents_channels, features.channels, 1, bias=False)
    scale = likelihood.learning_rate_scale if isinstance(likelihood, LikelihoodConfig) else 1.0
    return TrainableAutoencoder(autoencoder, objective, learning_rate_scale=scale, projection=projection)


def _latent_losses(
    autoencoder: KLVAE | VQVAE, features: FeatureMaps | None, config: RunConfig, device: torch.device
) -> LatentLosses:
    alignment = build.build_alignment(config.loss)
    aligned = None
    if alignment is not None and features is not None:
        aligned = AlignedFeatures(alignment, features.to(device), autoencoder.encoder.conv_out)
    return LatentLosses(
        autoencoder.downsampling_factor,
        equivariance=build.build_equivariance(config.loss),
        noise=build.build_latent_noise(config.loss),
        spectral=build.build_spectral(config.loss),
        alignment=aligned,
    )


def _adversary(
    discriminator: nn.Module,
    discriminator_config: DiscriminatorConfig,
    config: RunConfig,
    accelerator: Accelerator,
) -> tuple[Adversary, Learner]:
    terms = build.build_adversarial_terms(config)
    learner = _learner(
        "discriminator",
        discriminator,
        discriminator_config.optimizer,
        config,
        accelerator,
        terms.first_discriminator_step,
        terms.update_every,
    )
    lecam = build.build_lecam(config.loss)
    adversary = Adversary(
        learner.module,
        terms,
        augmentation=build.build_augmentation(discriminator_config),
        lecam=None if lecam is None else lecam.to(accelerator.device),
        r1=build.build_r1(discriminator_config),
        reuse_forward=not getattr(discriminator, "forward_has_state", False),
        loss_scale=None if accelerator.scaler is None else accelerator.scaler.scale,
    )
    return adversary, learner


def _learner(
    name: str,
    module: nn.Module,
    optimizer_config: OptimizerConfig,
    config: RunConfig,
    accelerator: Accelerator,
    first_step: int = 0,
    every: int = 1,
) -> Learner:
    optimizer = OPTIMIZERS[optimizer_config.type](
        [p for p in module.to(accelerator.device).parameters() if p.requires_grad],
        learning_rate=optimizer_config.learning_rate,
        betas=optimizer_config.betas,
        weight_decay=optimizer_config.weight_decay,
        epsilon=optimizer_config.epsilon,
    )
    if isinstance(module, TrainableAutoencoder):
        module.set_apart(optimizer)
    rate = LearningRate(
        optimizer_config.learning_rate,
        schedule=optimizer_config.schedule,
        warmup_steps=optimizer_config.warmup_steps,
        decay_share=optimizer_config.decay_share,
        final_scale=optimizer_config.final_scale,
        first_step=first_step,
        last_step=config.max_steps,
    )
    wrapped, _ = accelerator.prepare(module, optimizer)
    return Learner(name, wrapped, optimizer, rate, first_step, every)


class _Upkeep:
    """A codebook's upkeep, as something that accelerate saves and loads."""

    def __init__(self, quantizer: Quantizer | None) -> None:
        self.quantizer = quantizer

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.quantizer is None else self.quantizer.upkeep

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])
