"""The networks of a run: built from its config, frozen in part if it says so, wrapped for its devices."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from latentae import build, distributed
from latentae.config import DiscriminatorConfig, LikelihoodConfig, MuonConfig, OptimizerConfig, RunConfig
from latentae.discriminators import DiffAugment
from latentae.losses.adversarial import R1, LeCAM
from latentae.losses.feature_maps import FeatureMaps
from latentae.losses.kl import PosteriorReport
from latentae.losses.latents import Alignment, Equivariance, LatentNoise, Spectral
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.losses.teacher import MatchedLevels
from latentae.models import KLVAE, Autoencoder
from latentae.quantizers import Quantizer
from latentae.training.accelerator import Accelerator
from latentae.training.adversary import Adversary
from latentae.training.ema import EMA
from latentae.training.latent_losses import AlignedFeatures, LatentLosses, TrainableAutoencoder
from latentae.training.optimizers import OPTIMIZERS
from latentae.training.pretrained import Pretrained
from latentae.training.speed import compile_networks, set_float32_precision, tune, use_channels_last
from latentae.training.step import TrainingStep
from latentae.training.teacher import create_teacher, match_levels
from latentae.training.update import Learner, LearningRate
from latentae.weights import hash_tensors

Part = TypeVar("Part")


@dataclass
class Networks:
    """The networks that learn, and the step that gives them gradients.

    Attributes:
        autoencoder: the bare model.
        quantizer: its quantizer, if it has one that learns.
        ema: the average of the model's weights, which is measured and exported.
        learners: the wrapped autoencoder, and the wrapped discriminator if there is one.
        step: one micro-batch.
        pretrained: the model that the first weights come from, unless the run is resumed; or None.
        frozen: the part of the model that does not learn, or None.
        pinned: whether the posterior of a KLVAE is held certain, as a plain autoencoder's is.
        performance: sentences about what was chosen to save time and memory.
    """

    autoencoder: Autoencoder
    quantizer: Quantizer | None
    ema: EMA[Autoencoder]
    learners: list[Learner]
    step: TrainingStep
    pretrained: Pretrained | None = None
    frozen: Frozen | None = None
    pinned: bool = False
    performance: tuple[str, ...] = ()

    def after_update(self, step: int, generator: torch.Generator, accepted: Tensor | bool = True) -> None:
        """Updates everything that has state besides its weights. Every rank calls it after an update.

        Args:
            step: counted from 1.
            generator: on the CPU, in the same state on every rank.
            accepted: whether the update was made; a boolean scalar on the device, or a bool.
        """
        if self.pinned and isinstance(self.autoencoder, KLVAE):
            self.autoencoder.pin_posterior()  # no loss moves it, but weight decay does
        if self.step.adversary is not None and self.step.adversary.lecam is not None:
            self.step.adversary.lecam.commit(accepted)
        if self.quantizer is not None:
            self.quantizer.commit(step, generator, accepted)
        self.ema.update(self.autoencoder, accepted)

    def describe(self) -> list[str]:
        """Returns sentences: where the weights come from, which of them learn, and what was tuned."""
        pretrained = [] if self.pretrained is None else self.pretrained.describe()
        frozen = [] if self.frozen is None else [str(self.frozen)]
        teacher = [] if self.step.teacher is None else [self.step.teacher.describe()]
        return [*pretrained, *frozen, *teacher, *self.performance]


def build_networks(
    config: RunConfig, accelerator: Accelerator, objective: ReconstructionObjective
) -> Networks:
    """Builds fresh networks from the seed, and registers with the accelerator what a resume needs of them.

    Args:
        objective: on the accelerator's device.
    """
    # The autoencoder, with what of it does not learn.
    seed_everything(config.seed)
    upscale = 1 if config.decoder is None else config.decoder.upscale
    size = max(config.data.height_and_width) // upscale
    autoencoder = build.build_autoencoder(config.model, size, config.decoder)
    frozen = freeze_encoder(autoencoder) if config.freeze_encoder else None
    pinned = isinstance(autoencoder, KLVAE) and config.loss.kl is None and frozen is None
    if pinned:
        autoencoder.pin_posterior()
    elif isinstance(autoencoder, KLVAE) and config.loss.kl is not None:
        start = config.loss.kl.initial_log_variance
        if start is not None:
            autoencoder.set_log_variance(start)
    autoencoder.to(accelerator.device)
    # The discriminator, the average of the weights, and the frozen networks of the losses.
    with distributed.main_first():
        discriminator = build.build_discriminator(config)
    ema = EMA(autoencoder, config.ema_decay or 0.0, () if frozen is None else frozen.parts)
    performance = _tune(config, autoencoder, objective, discriminator, accelerator.device)
    with distributed.main_first():
        features = build.build_feature_maps(config, bfloat16=accelerator.mixed_precision == "bf16")
    if features is not None and features.precision != "float32":
        performance += (f"the network of loss.alignment computes in {features.precision}",)
    teacher = create_teacher(config, autoencoder, accelerator.device, accelerator.autocast)
    # Wrap and register, always in this order: checkpoints number what they hold.
    matched = match_levels(teacher, autoencoder)
    trainable = _with_learned_loss(autoencoder, objective, features, matched, config)
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
    if teacher is not None:
        accelerator.register_for_checkpointing(teacher)
    # The step.
    regulariser = None if frozen else build.build_regulariser(config.loss)
    likelihood = isinstance(config.loss.reconstruction, LikelihoodConfig)
    samples = isinstance(autoencoder, KLVAE) and (frozen is not None or config.loss.kl is not None)
    step = TrainingStep(
        autoencoder=learners[0].module,
        last_layer=autoencoder.last_layer,
        objective=objective,
        adversary=adversary,
        regulariser=regulariser,
        latent_losses=_latent_losses(autoencoder, features, config, accelerator.device),
        teacher=teacher,
        report=None if regulariser is None else PosteriorReport(regulariser, likelihood=likelihood),
        latents_shape=autoencoder.latents_shape if samples else None,
        alpha=config.data.alpha,
        output_gain=autoencoder.output_gain,
        backward=accelerator.backward,
    )
    return Networks(autoencoder, quantizer, ema, learners, step, pretrained, frozen, pinned, performance)


def _optional(make: Callable[..., Part], section: Any, exclude: set[str] | None = None) -> Part | None:
    """Returns the object that a section of the config describes by its arguments; None without a section."""
    return None if section is None else make(**section.model_dump(exclude=exclude))


def _tune(
    config: RunConfig,
    autoencoder: Autoencoder,
    objective: ReconstructionObjective,
    discriminator: nn.Module | None,
    device: torch.device,
) -> tuple[str, ...]:
    """Makes the networks fast and lean as the config asks. Returns sentences about what was done."""
    done = []
    # Whether steps draw the sizes of their images or latents. Those that a spectral loss adds are few.
    sizes_differ = config.loss.equivariance is not None or len(set(config.data.training_sizes)) > 1
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
                sizes_differ=sizes_differ,
            )
        )
    if config.channels_last:
        done.append(use_channels_last(autoencoder, objective.perceptual, discriminator))
    if config.compile:
        # A penalty on gradients differentiates a gradient, which compiled code cannot do.
        twice = config.discriminator is not None and config.discriminator.r1 is not None
        done.append(compile_networks(autoencoder, objective.perceptual, None if twice else discriminator))
    return tuple(done)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, from which weights are drawn."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Frozen:
    """The part of a model that does not learn.

    Attributes:
        parts: the names of its modules that were frozen.
        parameters, total: how many numbers do not learn, and how many there are.
    """

    parts: tuple[str, ...]
    parameters: int
    total: int

    def __str__(self) -> str:
        share = f"{self.parameters / 1e6:.2f} of {self.total / 1e6:.2f} M parameters"
        return (
            f"frozen: {', '.join(self.parts)} ({share}); the latents and their scale stay as they are, and "
            "the losses on them (KL, codebook, commitment) are left out"
        )


def freeze_encoder(autoencoder: Autoencoder) -> Frozen:
    """Freezes everything that computes the latents and codes. Only what decodes them still learns.

    No graph is recorded in the encoder, so its activations are freed at once, and DDP and optimizers do not
    see its weights. A codebook observes nothing any more; its ``start`` and ``commit`` must not be called.
    """
    found = {name: getattr(autoencoder, name, None) for name in ("encoder", "quant_conv", "quantize")}
    modules = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    for module in modules.values():
        module.requires_grad_(False)
        if isinstance(module, Quantizer):
            module.frozen = True
    counts = [(p.numel(), p.requires_grad) for p in autoencoder.parameters()]
    total = sum(count for count, _ in counts)
    return Frozen(tuple(modules), total - sum(count for count, learns in counts if learns), total)


def _with_learned_loss(
    autoencoder: Autoencoder,
    objective: ReconstructionObjective,
    features: FeatureMaps | None,
    matched: MatchedLevels | None,
    config: RunConfig,
) -> nn.Module:
    """Returns the module to wrap: the autoencoder, with what its losses learn and decode, if anything."""
    likelihood = config.loss.reconstruction
    learned = isinstance(likelihood, LikelihoodConfig) and likelihood.learned
    if not learned and features is None and matched is None and config.loss.spectral is None:
        return autoencoder
    projection = None
    if features is not None:
        projection = nn.Conv2d(autoencoder.latents_channels, features.channels, 1, bias=False)
    scale = likelihood.learning_rate_scale if isinstance(likelihood, LikelihoodConfig) else 1.0
    return TrainableAutoencoder(
        autoencoder, objective, learning_rate_scale=scale, projection=projection, matched=matched
    )


def _latent_losses(
    autoencoder: Autoencoder, features: FeatureMaps | None, config: RunConfig, device: torch.device
) -> LatentLosses:
    loss = config.loss
    alignment = _optional(Alignment, loss.alignment, {"network", "precision"})
    aligned = None
    if alignment is not None and features is not None:
        aligned = AlignedFeatures(alignment, features.to(device), autoencoder.last_encoder_layer)
    return LatentLosses(
        autoencoder.downsampling_factor,
        autoencoder.upscale,
        equivariance=_optional(Equivariance, loss.equivariance),
        noise=_optional(LatentNoise, loss.latent_noise),
        spectral=_optional(Spectral, loss.spectral),
        alignment=aligned,
    )


def _adversary(
    discriminator: nn.Module, section: DiscriminatorConfig, config: RunConfig, accelerator: Accelerator
) -> tuple[Adversary, Learner]:
    terms = build.build_adversarial_terms(config)
    learner = _learner(
        "discriminator", discriminator, section.optimizer, config, accelerator, terms.first_discriminator_step
    )
    learner.learns = terms.discriminator_learns
    adversarial = config.loss.adversarial
    lecam = None if adversarial is None else _optional(LeCAM, adversarial.lecam)
    trunk = getattr(discriminator, "trunk", None)
    adversary = Adversary(
        learner.module,
        terms,
        augmentation=DiffAugment(section.augment) if section.augment else None,
        lecam=None if lecam is None else lecam.to(accelerator.device),
        r1=_optional(R1, section.r1),
        reuse_forward=not getattr(discriminator, "forward_has_state", False),
        alpha=config.data.alpha,
        loss_scale=None if accelerator.scaler is None else accelerator.scaler.scale,
        trunk_hash=None if trunk is None else hash_tensors(trunk.state_dict()),
    )
    return adversary, learner


def _learner(
    name: str,
    module: nn.Module,
    section: OptimizerConfig,
    config: RunConfig,
    accelerator: Accelerator,
    first_step: int = 0,
) -> Learner:
    settings: dict[str, Any] = {
        "lr": section.learning_rate,
        "betas": section.betas,
        "weight_decay": section.weight_decay,
        "eps": section.epsilon,
    }
    if isinstance(section, MuonConfig):
        settings |= {"momentum": section.momentum, "update_rms": section.update_rms}
    optimizer = OPTIMIZERS[section.type](module.to(accelerator.device), **settings)
    if isinstance(module, TrainableAutoencoder):
        module.set_apart(optimizer)
    rate = LearningRate(
        section.learning_rate,
        schedule=section.schedule,
        warmup_steps=section.warmup_steps,
        decay_share=section.decay_share,
        final_scale=section.final_scale,
        first_step=first_step,
        last_step=config.max_steps,
    )
    wrapped, _ = accelerator.prepare(module, optimizer)
    return Learner(name, wrapped, optimizer, rate)


class _Upkeep:
    """The state of a codebook besides its weights, as accelerate saves and loads it."""

    def __init__(self, quantizer: Quantizer | None) -> None:
        self.quantizer = quantizer

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.quantizer is None else self.quantizer.upkeep

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])
