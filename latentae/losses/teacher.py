"""Distillation: a model, the student, learns from another one, the teacher, which is trained and frozen.

Three distances: of the decoded images, of the activations inside both decoders (hints, FitNets, Romero et al.
2015, arXiv 1412.6550), and of the encoders' latents (as for TAESD, github.com/madebyollin/taesd).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.losses.compositing import opacity
from latentae.losses.reconstruction import l1

_SMALLEST_SQUARE = 1e-8  # below this mean square a level of the teacher counts as empty


@dataclass(frozen=True)
class TeacherTerms:
    """The weights of the terms.

    Attributes:
        output_weight: of ``output_distance``.
        features_weight: of ``feature_distance``; 0: the activations are not compared.
        latents_weight: of ``latent_distance``; 0: the encoder does not learn from the teacher.
    """

    output_weight: float = 1.0
    features_weight: float = 0.0
    latents_weight: float = 0.0


def output_distance(student: Tensor, teacher: Tensor, *, images: Tensor | None = None) -> Tensor:
    """Returns the mean absolute difference of two batches of images, a scalar.

    It has the unit of the reconstruction loss ``l1``. If one decoder makes images that are k times larger,
    their blocks of k×k pixels are averaged first.

    Args:
        student: [B, C, H, W], may have a gradient.
        teacher: [B, C, H', W'], without one.
        images: [B, 4, H, W] in [−1, 1], RGBA images of the student's size that both reconstruct; None: the
            channels are not RGBA. With them, colours are multiplied by the teacher's α, clamped to [0, 1], as
            ``weigh_by_alpha`` does: what the teacher makes of colours that nobody sees is no target. Within a
            block of a larger student, colours count by the images' α, as where ``downscale`` made the images
            that the teacher encodes.

    Raises:
        ValueError: one size is not a whole multiple of the other.
    """
    teacher = teacher.to(student.dtype)
    if images is not None:  # at the full size of each: an average would mix hidden colours into visible ones
        visible = opacity(teacher).clamp(0, 1)
        weights = _resized(visible, student) * _shares(opacity(images).clamp(0, 1), teacher)
        student, teacher = _weighted(student, weights), _weighted(teacher, visible)
    return l1(_averaged(student, teacher), _averaged(teacher, student)).mean()


def latent_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean squared difference of two batches of latents, a scalar.

    Args:
        student: [B, c, h, w] in the units that a denoiser sees, may have a gradient.
        teacher: [B, c, h, w] in the same units, without one.

    Raises:
        ValueError: they have two shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's latents are {list(student.shape)}, the teacher's {list(teacher.shape)}"
        )
    return (student - teacher.to(student.dtype)).square().mean()


def _resized(values: Tensor, images: Tensor) -> Tensor:
    """Returns values [B, 1, h, w] at the images' size."""
    size = images.shape[-2:]
    return values if values.shape[-2:] == size else F.interpolate(values, size=size, mode="area")


def _weighted(images: Tensor, weights: Tensor) -> Tensor:
    """Returns images [B, 4, H, W] with their colours multiplied by weights [B, 1, H, W]."""
    return torch.cat([images[:, :3] * weights, images[:, 3:]], dim=1)


def _shares(visible: Tensor, other: Tensor) -> Tensor:
    """Returns α [B, 1, H, W] over its mean in the pixel's block, or 1 where nothing of the block is visible.

    A block becomes one pixel of ``other``, if that is smaller.
    """
    means = _resized(_averaged(visible, other), visible)
    return torch.where(means > 0, visible / torch.where(means > 0, means, 1), 1)


def _averaged(images: Tensor, other: Tensor) -> Tensor:
    """Returns the images at the other's size if they are larger."""
    (height, width), (least, narrowest) = images.shape[-2:], other.shape[-2:]
    if height <= least and width <= narrowest:
        return images
    factor = height // least
    if (height, width) != (factor * least, factor * narrowest):
        raise ValueError(
            f"images of {height}x{width} pixels cannot be averaged to {least}x{narrowest}: the larger side "
            "must be a whole multiple of the smaller one"
        )
    return F.avg_pool2d(images, factor)


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Returns the relative squared error of the student's activations, a scalar.

    With the activations s and t of an image at a level, it is mean (s − t)² / mean t²: FitNets' squared error
    in units of the teacher's, so that levels of small and of large activations count alike. 0 is perfect; 1
    is what zeros would get. The means are per image and level, and then over both, so a batch may be split.

    Args:
        student: [B, d, h, w] per level, projected to the teacher's widths.
        teacher: [B, d, h, w] per level, without a gradient.

    Raises:
        ValueError: a level has two shapes.
    """
    total = student[0].new_zeros((), dtype=torch.promote_types(student[0].dtype, torch.float32))
    with torch.autocast(student[0].device.type, enabled=False):
        for own, target in zip(student, teacher, strict=True):
            if own.shape != target.shape:
                raise ValueError(
                    f"the student's activations are {list(own.shape)} and the teacher's {list(target.shape)}"
                )
            own, target = own.to(total.dtype), target.to(total.dtype)
            errors = (own - target).square().mean(dim=(1, 2, 3))
            scales = target.square().mean(dim=(1, 2, 3)).clamp_min(_SMALLEST_SQUARE)
            total = total + (errors / scales).mean()
    return total / len(student)


def decoder_levels(decoder: nn.Module, levels: Sequence[int]) -> list[nn.Module]:
    """Returns the last block of each level of a diffusers ``Decoder``, before it is upsampled.

    Args:
        levels: 0 is the level of the lowest resolution, that of the latents. Each further level doubles it.

    Raises:
        ValueError: a level that the decoder lacks, or a decoder without such levels.
    """
    blocks = getattr(decoder, "up_blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"a {type(decoder).__name__} has no levels whose activations could be compared")
    if max(levels) >= len(blocks):
        raise ValueError(f"there is no level {max(levels)}: its decoder has levels 0 to {len(blocks) - 1}")
    found: list[nn.Module] = []
    for level in levels:
        block = blocks[level]
        assert isinstance(block.resnets, nn.ModuleList)
        attentions = getattr(block, "attentions", None)  # after each residual block, if there are any
        found.append((attentions if isinstance(attentions, nn.ModuleList) else block.resnets)[-1])
    return found


def level_widths(decoder: nn.Module, levels: Sequence[int]) -> list[int]:
    """Returns the number of channels at each of these levels, which ``decoder_levels`` has found."""
    found: Any = decoder.up_blocks
    blocks = [found[level] for level in levels]
    return [int(block.resnets[-1].conv2.out_channels) for block in blocks]


@contextmanager
def captured_outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list that the first forward pass in its body fills with the layers' outputs, in this order."""
    seen: dict[int, Tensor] = {}
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        for number, layer in enumerate(layers):

            def keep(module: nn.Module, given: object, output: Tensor, number: int = number) -> None:
                seen.setdefault(number, output)

            stack.callback(layer.register_forward_hook(keep).remove)
        yield outputs
        outputs.extend(seen[number] for number in range(len(layers)))


class MatchedLevels(nn.Module):
    """The student's activations in the teacher's widths: FitNets' regressor, a 1×1 convolution per level.

    A level that is as wide as the teacher's has no convolution: its activations are compared as they are.

    Args:
        decoder: the student's. Its layers are watched; they do not become a part of this module.
        levels: which levels, as in ``decoder_levels``.
        widths: the teacher's number of channels at each of them.

    Raises:
        ValueError: as in ``decoder_levels``.
    """

    def __init__(self, decoder: nn.Module, levels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = decoder_levels(decoder, levels)  # in a list, so they are no submodules
        self.projections = nn.ModuleList(
            nn.Identity() if own == width else nn.Conv2d(own, width, 1)
            for own, width in zip(level_widths(decoder, levels), widths, strict=True)
        )

    def forward(self, activations: Sequence[Tensor]) -> list[Tensor]:
        """Maps the activations [B, d, h, w] of each level to the teacher's widths."""
        return [project(x) for project, x in zip(self.projections, activations, strict=True)]
