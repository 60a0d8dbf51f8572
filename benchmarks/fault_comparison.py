"""What one run has lost against another: every tensor of the last checkpoint, the model, and the log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_CLOCK = frozenset({"images_per_second"})  # what depends on the clock


def newest_checkpoint(run: Path) -> Path:
    """The finished checkpoint with the highest step."""
    found = [
        path for path in (run / "checkpoints").glob("step_*") if path.name.removeprefix("step_").isdigit()
    ]
    return max(found, key=lambda path: int(path.name.removeprefix("step_")))


def losses(whole: Path, run: Path) -> str:
    """`nothing`, with the number of values compared, or what differs first."""
    expected, found = (dict(_leaves(_states(newest_checkpoint(path)))) for path in (whole, run))
    if newest_checkpoint(whole).name != newest_checkpoint(run).name or expected.keys() != found.keys():
        return "the last checkpoint is of another step or shape"
    for name, value in expected.items():
        if not _equal(value, found[name]):
            return f"{name} differs"
    model = "model/diffusion_pytorch_model.safetensors"
    if (whole / model).read_bytes() != (run / model).read_bytes():
        return "the exported model differs"
    if _log(whole) != _log(run):
        return "the log differs"
    return f"nothing: {len(expected)} tensors and numbers, the model and the log are equal bit by bit"


def _states(checkpoint: Path) -> dict[str, Any]:
    states: dict[str, Any] = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            states[path.name] = load_file(path)
        elif path.suffix != ".json":
            states[path.name] = torch.load(path, weights_only=False)
    return states


def _leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, dict | list | tuple):
            yield from _leaves(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first.tobytes() == second.tobytes() if hasattr(first, "tobytes") else first == second)


def _log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _CLOCK} for line in lines]
