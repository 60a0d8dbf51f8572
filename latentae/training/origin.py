"""What the model is that a run starts from, asked while its config is read; torch is loaded only to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentae.config import RunConfig, read_config
from latentae.training.folder import RunFolder, checkpoint_config, exists


def describe_pretrained(data: Mapping[str, Any]) -> dict[str, Any]:
    """The model section that the pretrained model of a run has, as plain YAML values.

    A run that has learned something is asked itself, since it does not need the pretrained model any more.

    Args:
        data: the run's plain values, not yet validated, with ``model.pretrained``.

    Raises:
        ValueError: there is no such model, or one that cannot be trained.
    """
    place, groups = data["model"]["pretrained"], data["model"].get("norm_num_groups")
    folder = RunFolder(Path(str(data.get("output_dir", RunConfig.model_fields["output_dir"].default))))
    recorded = _recorded(folder, str(data.get("resume", "auto")), place)
    if recorded is not None:
        return recorded

    from latentae.build import open_pretrained
    from latentae.models.adapting import describe_architecture

    is_number = isinstance(groups, int) and groups > 0
    return describe_architecture(open_pretrained(place, groups if is_number else None))


def _recorded(folder: RunFolder, resume: str, place: str) -> dict[str, Any] | None:
    """The model section of the run that goes on, here or from a checkpoint, if it started from that place."""
    config = None
    if resume not in ("auto", "never") and exists(Path(resume)):
        config = checkpoint_config(Path(resume))
    elif exists(folder.config) and (folder.all_checkpoints() or folder.model.is_dir()):
        config = read_config(folder.config)
    if config is None or config.model.pretrained != place:
        return None
    return config.model.model_dump(mode="json", by_alias=True)
