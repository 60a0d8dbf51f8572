"""What differs between two configs, and which differences a run may be continued over."""

from collections.abc import Callable, Mapping
from typing import Any

from latentae.config.schema import LikelihoodConfig, RunConfig
from latentae.config.yaml_text import show

RESUMABLE_KEYS = frozenset(
    {
        "output_dir",
        "max_steps",
        "resume",
        "batch_size",  # as long as batch size x processes stays, which the checkpoint is asked for
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
"""Keys that may change when a run continues: none of them changes what was learned up to its checkpoint."""

BRANCH_FIXED_KEYS = frozenset(
    {
        "freeze_encoder",
        "mixed_precision",  # only a change to fp16, whose loss scale other checkpoints do not hold
        "model.class",
        "model.in_channels",
        "model.out_channels",
        "model.block_out_channels",
        "model.layers_per_block",
        "model.norm_num_groups",
        "model.latent_channels",
        "model.attention_levels",
        "model.mid_block_attention",
        "model.pretrained",  # the start of the first run, as `init` is
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
        "optimizer.type",
        "loss.reconstruction.type",  # these four where a variance or scale is learned
        "loss.reconstruction.learned",
        "loss.reconstruction.log_variance",
        "loss.reconstruction.log_scale",
        "loss.alignment",  # with or without
        "loss.alignment.network",
        "loss.spectral",  # with or without, where it changes the names of the weights
        "loss.adversarial",  # with or without
        "discriminator",  # with or without
        "discriminator.type",
        "discriminator.base_channels",
        "discriminator.num_layers",
        "discriminator.norm",
        "discriminator.optimizer.type",
    }
)
"""Keys that a checkpoint also settles for a run that branches off from it: its tensors depend on them, or
they only count at the first step. All other keys take effect from the branch on."""

DATA_SPELLING_KEYS = frozenset({"data.name", "data.split", "data.dataset_config", "data.image_column"})
"""Keys that only say where the images are: another spelling of them may stand for the same images."""

_STREAM_KEYS = frozenset({"batch_size", "data.num_workers"})
"""Keys among them that a stream is divided by: where each process goes on follows from them and the step."""

NOT_SET = "(not set)"
"""Stands for the value of a key that one of two configs lacks, its section being of another type or null."""


def changed_keys(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, each with its old and its new value as plain YAML values."""
    before, after = (_flatten(config.model_dump(mode="json", by_alias=True)) for config in (old, new))
    return {
        key: (before.get(key, NOT_SET), after.get(key, NOT_SET))
        for key in dict.fromkeys((*before, *after))
        if before.get(key, NOT_SET) != after.get(key, NOT_SET)
    }


def refused_changes(old: RunConfig, new: RunConfig, allowed: frozenset[str] = frozenset()) -> list[str]:
    """The changes that a run cannot be continued over, as lines `data.image_size: 64 → 128`; empty: none.

    Args:
        allowed: further keys that may change.
    """
    resumable = RESUMABLE_KEYS - _STREAM_KEYS if new.data.streaming else RESUMABLE_KEYS
    if old.mixed_precision is None:  # written before runs recorded what their launcher had decided
        allowed |= {"mixed_precision"}
    if _both_pretrained(old, new):
        allowed |= {"model.pretrained"}
    return _lines(old, new, lambda key: key not in resumable and key not in allowed)


def refused_in_branch(old: RunConfig, new: RunConfig) -> list[str]:
    """The changes that a run cannot make when it branches off from a checkpoint of another; as above."""
    fixed = BRANCH_FIXED_KEYS
    if new.mixed_precision != "fp16" or old.mixed_precision is None:
        fixed -= {"mixed_precision"}
    if not (_learns_scale(old) or _learns_scale(new)):
        fixed -= {key for key in fixed if key.startswith("loss.reconstruction.")}
    if _wraps(old) == _wraps(new):
        fixed -= {"loss.spectral"}
    if _both_pretrained(old, new):
        fixed -= {"model.pretrained"}
    return _lines(old, new, lambda key: key.replace(".member.", ".") in fixed)


def _lines(old: RunConfig, new: RunConfig, refused: Callable[[str], bool]) -> list[str]:
    lines = []
    for key, values in changed_keys(old, new).items():
        if refused(key):
            # Where a section stands against null, its own keys have the values.
            before, after = (
                "{...}" if None in values and value == NOT_SET else show(value) for value in values
            )
            lines.append(f"{key}: {before} → {after}")
    return lines


def _both_pretrained(old: RunConfig, new: RunConfig) -> bool:
    """Whether both start from a pretrained model. It may have moved: the run compares its weights later."""
    return old.model.pretrained is not None and new.model.pretrained is not None


def _learns_scale(config: RunConfig) -> bool:
    """Whether the loss has a parameter of its own."""
    likelihood = config.loss.reconstruction
    return isinstance(likelihood, LikelihoodConfig) and likelihood.learned


def _wraps(config: RunConfig) -> bool:
    """Whether the autoencoder's weights have names that say they are part of a larger module."""
    return _learns_scale(config) or config.loss.alignment is not None or config.loss.spectral is not None


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
