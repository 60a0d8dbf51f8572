"""What one channel of the latents means: the same latents decoded with that channel moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.latents.inspection.encoding import Autoencoder, decoded
from latentae.report.grids import Figure, image_grid

ABOUT = (
    "One image's latents decoded with one channel moved, at all positions alike, by some of its standard "
    "deviations. Beside each row stands how much the pixels change for one of them. Rows in which nothing "
    "changes are channels that the decoder hardly reads. A VQ model quantizes the moved latents first."
)


@dataclass(frozen=True, eq=False)
class Traversal:
    """One image's latents with one channel moved at a time.

    Attributes:
        channels: which, one a row.
        offsets: [steps] in standard deviations of the channel.
        images: [channels, steps, C, H, W] in about [−1, 1], on the CPU.
        std: [channels] those standard deviations; 0 for a channel that does not vary.
        changes: [channels, steps] root mean square of the pixels' change from offset 0, in the images' units.
    """

    channels: list[int]
    offsets: Tensor
    images: Tensor
    std: Tensor
    changes: Tensor

    @property
    def sensitivity(self) -> Tensor:
        """[channels] pixel change for one standard deviation: the slope of ``changes`` through zero."""
        steps = self.offsets.abs()
        return (self.changes @ steps) / steps.square().sum()

    def figure(self) -> Figure:
        """One row a channel, one column an offset."""
        rows = [
            f"channel {channel}\n{f'change {change:.3f}' if std > 0 else 'constant'}"
            for channel, change, std in zip(
                self.channels, self.sensitivity.tolist(), self.std.tolist(), strict=True
            )
        ]
        columns = [f"{offset:+.3g}" if offset else "0" for offset in self.offsets.tolist()]
        return image_grid(
            "One channel moved at a time",
            self.images,
            rows=rows,
            columns=columns,
            column_title="offset in standard deviations of the channel",
        )

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "channels": self.channels,
            "offsets": self.offsets.tolist(),
            "std": self.std.tolist(),
            "pixel_change": self.changes.tolist(),
            "pixel_change_per_std": self.sensitivity.tolist(),
        }


def traverse(
    model: Autoencoder,
    latents: Tensor,
    std: Tensor,
    *,
    channels: Sequence[int] | None = None,
    reach: float = 3.0,
    steps: int = 7,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Traversal:
    """Moves one channel at a time by up to ±``reach`` standard deviations, at all positions alike.

    Args:
        model: in eval mode.
        latents: [c, h, w] raw latents of one image.
        std: [c] of each channel, such as ``fit_gaussian(…).std``.
        channels: which, in this order; None: all.
        reach: the largest offset, in standard deviations.
        steps: an odd number of 3 or more, so that the middle one is the image itself.
        size: (H, W) to crop the images to.
        batch_size: latents decoded at a time.

    Raises:
        ValueError: latents of another shape, a channel that is not there, an even number of steps, or a reach
            that is not positive.
    """
    if latents.ndim != 3 or len(std) != len(latents):
        raise ValueError(
            f"latents are {list(latents.shape)} with {len(std)} standard deviations, but must be [c, h, w] "
            "with c of them"
        )
    if steps < 3 or steps % 2 == 0:
        raise ValueError(f"steps is {steps}, but must be odd and 3 or more: the middle one is the image")
    if not reach > 0:
        raise ValueError(f"reach is {reach}, but must be positive")
    chosen = list(range(len(latents)) if channels is None else channels)
    missing = [channel for channel in chosen if not 0 <= channel < len(latents)]
    if missing or not chosen:
        raise ValueError(
            f"channels are {chosen}, but must be one or more of the {len(latents)}, counted from 0"
        )
    base = to_float64_on_cpu(latents.detach())
    deviations = to_float64_on_cpu(std.detach())[chosen]
    offsets = torch.linspace(-reach, reach, steps, dtype=torch.float64)
    moved = base.repeat(len(chosen), steps, 1, 1, 1)
    for row, channel in enumerate(chosen):
        moved[row, :, channel] += (offsets * deviations[row])[:, None, None]
    images = decoded(model, moved.flatten(0, 1), size=size, batch_size=batch_size)
    images = images.view(len(chosen), steps, *images.shape[1:])
    change = (images.double() - images[:, steps // 2 : steps // 2 + 1].double()).flatten(2)
    return Traversal(chosen, offsets, images, deviations, change.square().mean(dim=2).sqrt())
