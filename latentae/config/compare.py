"""What differs between two configs, and which differences a run may be continued over."""

from collections.abc import Mapping
from typing import Any

from latentae.config.schema import RunConfig
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


def refused_changes(old: RunConfig, new: RunConfig) -> list[str]:
    """The changes that a run cannot be continued over, as lines `data.image_size: 64 → 128`; empty: none."""
    resumable = RESUMABLE_KEYS - _STREAM_KEYS if new.data.streaming else RESUMABLE_KEYS
    return [
        f"{key}: {show(before)} → {show(after)}"
        for key, (before, after) in changed_keys(old, new).items()
        if key not in resumable
    ]


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
