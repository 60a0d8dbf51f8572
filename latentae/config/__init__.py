"""Typed run configs: reads YAML files and `key=value` overrides into a validated, frozen `RunConfig`.

Imports only the standard library, pydantic and yaml, so that `--help` and a misspelt key are answered before
torch is imported.
"""

from latentae.config.command_line import help_text, load_config
from latentae.config.compare import (
    BRANCH_FIXED_KEYS,
    DATA_SPELLING_KEYS,
    RESUMABLE_KEYS,
    changed_keys,
    refused_changes,
    refused_in_branch,
)
from latentae.config.files import FAMILIES, config_from_mapping, dump_config, read_config, shipped_configs
from latentae.config.schema import RunConfig
from latentae.config.schema.checks import config_warnings
from latentae.config.schema.data import DataConfig
from latentae.config.schema.loss import (
    AdversarialConfig,
    KLConfig,
    LeCAMConfig,
    LikelihoodConfig,
    LossConfig,
    LPIPSConfig,
    LPIPSLogitsConfig,
    PerceptualConfig,
    ReconstructionConfig,
)
from latentae.config.schema.model import (
    BSQConfig,
    CosineQuantizerConfig,
    DecoderConfig,
    EMAQuantizerConfig,
    Flux2VAEConfig,
    FSQConfig,
    GroupedQuantizerConfig,
    IBQConfig,
    KLVAEConfig,
    LFQConfig,
    ModelConfig,
    QuantizerConfig,
    ResidualQuantizerConfig,
    SimVQConfig,
    TinyAutoencoderConfig,
    VectorQuantizerConfig,
    VQGANConfig,
    VQVAEConfig,
)
from latentae.config.schema.run import (
    AdamW8bitConfig,
    AdamWConfig,
    DiscriminatorConfig,
    FrozenFeaturesConfig,
    MuonConfig,
    OptimizerConfig,
    PatchGANConfig,
    R1Config,
    WaveletConfig,
)
from latentae.config.yaml_text import ConfigError

__all__ = [
    "BRANCH_FIXED_KEYS",
    "DATA_SPELLING_KEYS",
    "FAMILIES",
    "RESUMABLE_KEYS",
    "AdamW8bitConfig",
    "AdamWConfig",
    "AdversarialConfig",
    "BSQConfig",
    "ConfigError",
    "CosineQuantizerConfig",
    "DataConfig",
    "DecoderConfig",
    "DiscriminatorConfig",
    "EMAQuantizerConfig",
    "FSQConfig",
    "Flux2VAEConfig",
    "FrozenFeaturesConfig",
    "GroupedQuantizerConfig",
    "IBQConfig",
    "KLConfig",
    "KLVAEConfig",
    "LFQConfig",
    "LPIPSConfig",
    "LPIPSLogitsConfig",
    "LeCAMConfig",
    "LikelihoodConfig",
    "LossConfig",
    "ModelConfig",
    "MuonConfig",
    "OptimizerConfig",
    "PatchGANConfig",
    "PerceptualConfig",
    "QuantizerConfig",
    "R1Config",
    "ReconstructionConfig",
    "ResidualQuantizerConfig",
    "RunConfig",
    "SimVQConfig",
    "TinyAutoencoderConfig",
    "VQGANConfig",
    "VQVAEConfig",
    "VectorQuantizerConfig",
    "WaveletConfig",
    "changed_keys",
    "config_from_mapping",
    "config_warnings",
    "dump_config",
    "help_text",
    "load_config",
    "read_config",
    "refused_changes",
    "refused_in_branch",
    "shipped_configs",
]
