"""The typed sections of a run's config."""

from latentae.config.schema.adversarial import AdversarialConfig, LeCAMConfig
from latentae.config.schema.base import Section
from latentae.config.schema.data import DataConfig
from latentae.config.schema.discriminator import DiscriminatorConfig, PatchGANConfig, R1Config
from latentae.config.schema.guard import GuardConfig
from latentae.config.schema.kl import KLConfig
from latentae.config.schema.loss import LossConfig, PerceptualConfig
from latentae.config.schema.model import (
    KLVAEConfig,
    ModelConfig,
    VQGANConfig,
    VQVAEConfig,
)
from latentae.config.schema.optimizer import AdamW8bitConfig, AdamWConfig, OptimizerConfig
from latentae.config.schema.quantizer import (
    BSQConfig,
    CosineQuantizerConfig,
    EMAQuantizerConfig,
    FSQConfig,
    GroupedQuantizerConfig,
    IBQConfig,
    LFQConfig,
    MemberConfig,
    QuantizerConfig,
    ResidualQuantizerConfig,
    SimVQConfig,
    VectorQuantizerConfig,
)
from latentae.config.schema.reconstruction import LikelihoodConfig, ReconstructionConfig
from latentae.config.schema.run import RunConfig

__all__ = [
    "AdamW8bitConfig",
    "AdamWConfig",
    "AdversarialConfig",
    "BSQConfig",
    "CosineQuantizerConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "EMAQuantizerConfig",
    "FSQConfig",
    "GroupedQuantizerConfig",
    "GuardConfig",
    "IBQConfig",
    "KLConfig",
    "KLVAEConfig",
    "LFQConfig",
    "LeCAMConfig",
    "LikelihoodConfig",
    "LossConfig",
    "MemberConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchGANConfig",
    "PerceptualConfig",
    "QuantizerConfig",
    "R1Config",
    "ReconstructionConfig",
    "ResidualQuantizerConfig",
    "RunConfig",
    "Section",
    "SimVQConfig",
    "VQGANConfig",
    "VQVAEConfig",
    "VectorQuantizerConfig",
]
