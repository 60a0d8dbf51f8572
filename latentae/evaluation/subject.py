"""A model under evaluation."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Subject:
    """A model, what it is called in a report, and in which precision it runs.

    Attributes:
        name: in the report.
        path: where it came from.
        model: in eval mode, called as ``model(images)``.
        autocast: a reduced precision for its forward pass, such as ``torch.bfloat16``; None runs it as it is.
    """

    name: str
    path: str
    model: nn.Module
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.sha256 = weights_sha256(self.model)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """The model's ``AutoencoderOutput`` of images [B, C, H, W] in [−1, 1], its sample in float32."""
        device = images.device.type
        with nullcontext() if self.autocast is None else torch.autocast(device, self.autocast):
            output = self.model(images)
        output.sample = output.sample.float()
        return output

    @property
    def num_codes(self) -> int | None:
        """The length of a table of codes; None for a model without."""
        return getattr(getattr(self.model, "quantize", None), "num_codes", None)


def weights_sha256(model: nn.Module) -> str:
    """A hash of a model's class and of every value of its state, whatever file it came from."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
