"""The typed sections of a run's config."""

from latentae.config.schema.base import Section
from latentae.config.schema.data import DataConfig
from latentae.config.schema.discriminator import DiscriminatorConfig, PatchGANConfig
from latentae.config.schema.loss import (
    AdversarialConfig,
    KLConfig,
    LossConfig,
    PerceptualConfig,
    ReconstructionConfig,
)
from latentae.config.schema.model import (
    EMAQuantizerConfig,
    KLVAEConfig,
    ModelConfig,
    QuantizerConfig,
    VectorQuantizerConfig,
    VQGANConfig,
    VQVAEConfig,
)
from latentae.config.schema.optimizer import AdamWConfig, OptimizerConfig
from latentae.config.schema.run import RunConfig

__all__ = [
    "AdamWConfig",
    "AdversarialConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "EMAQuantizerConfig",
    "KLConfig",
    "KLVAEConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchGANConfig",
    "PerceptualConfig",
    "QuantizerConfig",
    "ReconstructionConfig",
    "RunConfig",
    "Section",
    "VQGANConfig",
    "VQVAEConfig",
    "VectorQuantizerConfig",
]
