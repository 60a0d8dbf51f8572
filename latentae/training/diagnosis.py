"""Where in a network numbers stop being finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae.training.guard import SkippedStep

_LARGEST_SHOWN = 3

RETRY = (
    "Try a lower optimizer.learning_rate, max_grad_norm=1.0 or mixed_precision=no from a checkpoint of it, "
    "with resume=PATH and another output_dir"
)
"""What to do about a run that diverged."""


@dataclass(frozen=True)
class Diagnosis:
    """What a forward pass showed.

    Attributes:
        weights: names of the parameters and buffers that hold a value that is not finite.
        layer: the first module without children whose output was not finite, or None.
        largest: (name, largest absolute output) of the modules with the largest outputs before it.
    """

    weights: list[str]
    layer: str | None
    largest: list[tuple[str, float]]

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {value:.3g}" for name, value in self.largest)
        lines = [
            f"weights: {'not finite are ' + ', '.join(self.weights[:5]) if self.weights else 'all finite'}",
            f"activations: {f'not finite from {self.layer} on' if self.layer else 'all finite'}; "
            f"the largest before that: {largest or 'none'}",
        ]
        return "\n".join(lines)


@torch.no_grad()
def diagnose(network: nn.Module, *arguments: Tensor) -> Diagnosis:
    """Runs ``network`` once, in the mode it is in, and looks at the output of modules without children."""
    weights = [name for name, value in network.state_dict().items() if not _finite(value)]
    outputs: list[tuple[str, bool, float]] = []
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.extend(
                (name, _finite(output), output.abs().max().item())
                for output in [output]
                if isinstance(output, Tensor) and output.numel()
            )
        )
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        network(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    first = next((i for i, (_, finite, _) in enumerate(outputs) if not finite), len(outputs))
    layer = outputs[first][0] if first < len(outputs) else None
    before = sorted(((name, value) for name, _, value in outputs[:first]), key=lambda pair: -pair[1])
    return Diagnosis(weights, layer, before[:_LARGEST_SHOWN])


def explain(skipped: Sequence[SkippedStep], diagnoses: Sequence[str], scaler: Any) -> str:
    """Why updates were not made: the losses, the layer, the loss scale.

    Args:
        skipped: the updates.
        diagnoses: each rank's. One whose own batch did no harm has nothing to tell.
        scaler: the gradient scaler of float16 training, or None.
    """
    causes = sorted({cause for step in skipped for cause in step.causes})
    telling = next((text for text in diagnoses if "not finite" in text), diagnoses[0])
    scale = "none" if scaler is None else scaler.get_scale()
    return f"not finite: {', '.join(causes)}\n{telling}\nloss scale: {scale}"


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
