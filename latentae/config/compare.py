"""Differences between two configs, and which of them allow a run to be resumed or branched off."""

from collections.abc import Callable, Mapping
from typing import Any

from latentae.config.schema import RunConfig
from latentae.config.schema.loss import LikelihoodConfig
from latentae.config.yaml_text import show

RESUMABLE_KEYS = frozenset(
    {
        "output_dir",
        "max_steps",
        "resume",
        "batch_size",  # if batch size x processes stays the same, which is checked against the checkpoint
        "performance",
        "channels_last",
        "compile",
        "cpu_threads",
        "process_group_timeout_hours",
        "checkpoint_every",
        "keep_checkpoints",
        "best_metric",
        "guard.max_consecutive",
        "guard.min_codebook_usage",
        "sample_every",
        "log_every",
        "validate_every",
        "trackers",
        "data.num_workers",
        "data.max_pixels",
        "data.max_broken",
        "data.check_images",
        "data.cache_megabytes",
    }
)
"""Keys that may change when a run is resumed: none of them affects what it learned up to its checkpoint."""

BRANCH_FIXED_KEYS = frozenset(
    {
        "freeze_encoder",
        "data.alpha",  # decides what the discriminator takes
        "mixed_precision",  # only a change to fp16, because other checkpoints have no loss scale
        "model.class",
        "model.in_channels",
        "model.out_channels",
        "model.block_out_channels",
        "model.layers_per_block",
        "model.norm_num_groups",
        "model.latent_channels",
        "model.attention_levels",
        "model.mid_block_attention",
        "model.pretrained",  # only counts at the first step, as does `init`
        "model.decoder_block_out_channels",
        "model.pooled_blocks",
        "model.pixel_shuffle",
        "model.use_quant_conv",
        "model.backbone",
        "model.quantizer.type",
        "model.quantizer.num_codes",
        "model.quantizer.code_dim",
        "model.quantizer.init",
        "model.quantizer.levels",
        "model.quantizer.bits",
        "model.quantizer.depth",
        "model.quantizer.groups",
        "model.quantizer.scale",
        "decoder",  # with or without
        "decoder.widths",
        "decoder.layers_per_block",
        "decoder.upscale",
        "optimizer.type",
        "loss.kl.initial_log_variance",  # as does `init`, while there is a KL term
        "loss.reconstruction.type",  # these four where a variance or scale is learned
        "loss.reconstruction.learned",
        "loss.reconstruction.log_variance",
        "loss.reconstruction.log_scale",
        "loss.alignment",  # with or without
        "loss.alignment.network",
        "loss.spectral",  # with or without, if that changes the names of the weights
        "loss.teacher",  # with or without
        "loss.teacher.model",
        "loss.teacher.levels",
        "loss.teacher.features_weight",  # with or without
        "loss.adversarial",  # with or without
        "discriminator",  # with or without
        "discriminator.type",
        "discriminator.base_channels",
        "discriminator.num_layers",
        "discriminator.norm",
        "discriminator.network",
        "discriminator.head_channels",
        "discriminator.optimizer.type",
    }
)
"""Keys that a run cannot change when it branches off from a checkpoint: the tensors there depend on them,
or they only count at the first step. All other keys take effect from the branch on."""

DATA_SPELLING_KEYS = frozenset(
    {"data.name", "data.split", "data.dataset_config", "data.image_column", "data.latents"}
)
"""Keys that only say where the images and latents are. Different values may mean the same ones."""

_STREAM_KEYS = frozenset({"batch_size", "data.num_workers"})
"""Resumable keys that may not change with streaming, because they divide the stream among processes."""

NOT_SET = "(not set)"
"""The value of a key that one of two configs lacks because its section has another type or is null."""


def changed_keys(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the dotted keys whose values differ, with their old and new values as plain YAML values."""
    before, after = (_flatten(config.model_dump(mode="json", by_alias=True)) for config in (old, new))
    return {
        key: (before.get(key, NOT_SET), after.get(key, NOT_SET))
        for key in dict.fromkeys((*before, *after))
        if before.get(key, NOT_SET) != after.get(key, NOT_SET)
    }


def refused_changes(old: RunConfig, new: RunConfig, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Returns the changes that prevent a resume, as lines `data.image_size: 64 → 128`.

    Args:
        allowed: additional keys that may change.
    """
    resumable = RESUMABLE_KEYS - _STREAM_KEYS if new.data.streaming else RESUMABLE_KEYS
    # Written before runs recorded the setting of their launcher, or what the run has recorded will be kept.
    if old.mixed_precision is None or new.mixed_precision == "auto":
        allowed |= {"mixed_precision"}
    if _both_pretrained(old, new):
        allowed |= {"model.pretrained"}
    return _lines(old, new, lambda key: key not in resumable and key not in allowed)


def refused_in_branch(old: RunConfig, new: RunConfig) -> list[str]:
    """Returns the changes that prevent branching off from another run's checkpoint, as lines like above."""
    fixed = BRANCH_FIXED_KEYS
    if new.mixed_precision != "fp16" or old.mixed_precision is None:
        fixed -= {"mixed_precision"}
    if not (_learns_scale(old) or _learns_scale(new)):
        fixed -= {key for key in fixed if key.startswith("loss.reconstruction.")}
    if old.loss.kl is None or new.loss.kl is None:
        fixed -= {"loss.kl.initial_log_variance"}
    if _wraps(old) == _wraps(new):
        fixed -= {"loss.spectral"}
    if _matches_features(old) == _matches_features(new):
        fixed -= {"loss.teacher.features_weight"}
    if not (_matches_features(old) or _matches_features(new)):
        fixed -= {"loss.teacher.levels"}
    if _both_pretrained(old, new):
        fixed -= {"model.pretrained"}
    return _lines(old, new, lambda key: key.replace(".member.", ".") in fixed)


def _lines(old: RunConfig, new: RunConfig, refused: Callable[[str], bool]) -> list[str]:
    lines = []
    for key, values in changed_keys(old, new).items():
        if refused(key):
            # If a section was null before or after, show it as {...}: its keys have lines of their own.
            before, after = (
                "{...}" if None in values and value == NOT_SET else show(value) for value in values
            )
            lines.append(f"{key}: {before} → {after}")
    return lines


def _both_pretrained(old: RunConfig, new: RunConfig) -> bool:
    """Whether both start from a pretrained model. It may have moved: the run compares its weights later."""
    return old.model.pretrained is not None and new.model.pretrained is not None


def _learns_scale(config: RunConfig) -> bool:
    """Whether the loss has a learned parameter."""
    likelihood = config.loss.reconstruction
    return isinstance(likelihood, LikelihoodConfig) and likelihood.learned


def _matches_features(config: RunConfig) -> bool:
    """Whether the decoder's activations are compared with a teacher's."""
    return config.loss.teacher is not None and config.loss.teacher.features_weight > 0


def _wraps(config: RunConfig) -> bool:
    """Whether the autoencoder is wrapped in a larger module, which changes the names of its weights."""
    loss = config.loss
    more = loss.alignment is not None or loss.spectral is not None
    return more or _learns_scale(config) or _matches_features(config)


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
