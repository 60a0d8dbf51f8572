"""Typed run configs: YAML files and `key=value` overrides in, validated frozen `RunConfig` out.

Knows the standard library, pydantic and yaml only, so that `--help` and a misspelt key are answered before
torch is imported.
"""

from latentae.config.compare import RESUMABLE_KEYS, changed_keys, refused_changes
from latentae.config.errors import ConfigError
from latentae.config.families import FAMILIES
from latentae.config.help import help_text
from latentae.config.load import config_from_mapping, dump_config, load_config, read_config
from latentae.config.schema import (
    AdamW8bitConfig,
    AdamWConfig,
    AdversarialConfig,
    BSQConfig,
    CosineQuantizerConfig,
    DataConfig,
    DiscriminatorConfig,
    EMAQuantizerConfig,
    FSQConfig,
    GroupedQuantizerConfig,
    IBQConfig,
    KLConfig,
    KLVAEConfig,
    LeCAMConfig,
    LFQConfig,
    LikelihoodConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PatchGANConfig,
    PerceptualConfig,
    QuantizerConfig,
    R1Config,
    ReconstructionConfig,
    ResidualQuantizerConfig,
    RunConfig,
    SimVQConfig,
    VectorQuantizerConfig,
    VQGANConfig,
    VQVAEConfig,
)
from latentae.config.schema.checks import config_warnings
from latentae.config.shipped import shipped_configs

__all__ = [
    "FAMILIES",
    "RESUMABLE_KEYS",
    "AdamW8bitConfig",
    "AdamWConfig",
    "AdversarialConfig",
    "BSQConfig",
    "ConfigError",
    "CosineQuantizerConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "EMAQuantizerConfig",
    "FSQConfig",
    "GroupedQuantizerConfig",
    "IBQConfig",
    "KLConfig",
    "KLVAEConfig",
    "LFQConfig",
    "LeCAMConfig",
    "LikelihoodConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchGANConfig",
    "PerceptualConfig",
    "QuantizerConfig",
    "R1Config",
    "ReconstructionConfig",
    "ResidualQuantizerConfig",
    "RunConfig",
    "SimVQConfig",
    "VQGANConfig",
    "VQVAEConfig",
    "VectorQuantizerConfig",
    "changed_keys",
    "config_from_mapping",
    "config_warnings",
    "dump_config",
    "help_text",
    "load_config",
    "read_config",
    "refused_changes",
    "shipped_configs",
]
