"""The best checkpoint by a validation metric: which it is, protected from deletion and marked for people."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentae.files import write_json
from latentae.training.folder import RunFolder, step_of

PROGRESS = "progress.json"
_LOWER_IS_BETTER = {"validation_psnr": False, "validation_ssim": False, "validation_lpips": True}


@dataclass(frozen=True)
class BestCheckpoint:
    """The contents of ``checkpoints/best.json``.

    Attributes:
        step: of the checkpoint.
        metric: such as ``validation_psnr``.
        value: measured at that very step.
    """

    step: int
    metric: str
    value: float


def find_best(folder: RunFolder, metric: str) -> BestCheckpoint | None:
    """The best of the checkpoints that stand in ``folder``, the earlier one where two are equal.

    Each checkpoint says in its own progress.json what was measured at its step, so that nothing has to be
    remembered between runs. One whose step was not measured, or not as a finite number, takes no part.
    """
    measured = [(step_of(path), _measured(path).get(metric, math.nan)) for path in folder.all_checkpoints()]
    finite = [(step, value) for step, value in measured if math.isfinite(value)]
    if not finite:
        return None
    sign = 1 if _LOWER_IS_BETTER[metric] else -1
    step, value = min(finite, key=lambda pair: (sign * pair[1], pair[0]))
    return BestCheckpoint(step, metric, value)


def mark_best(folder: RunFolder, metric: str | None) -> Path | None:
    """Writes ``checkpoints/best.json``, or removes it where none is the best; returns the best one's path."""
    best = None if metric is None else find_best(folder, metric)
    file = folder.checkpoints / "best.json"
    if best is None:
        file.unlink(missing_ok=True)
        return None
    write_json(file, asdict(best))
    return folder.checkpoint(best.step)


def _measured(checkpoint: Path) -> dict[str, Any]:
    try:
        validation: dict[str, Any] = json.loads((checkpoint / PROGRESS).read_text())["validation"]
    except (OSError, ValueError, KeyError):
        return {}  # written without validation, or damaged: no candidate
    return validation
