"""From one noise to another along a great circle, and what is generated on the way."""

from __future__ import annotations

import torch
from diffusers import DiTPipeline
from torch import Tensor

from latentae.probe.sampling import images_of_noise, picture_noise


def spherical(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at ``share`` of the way from one tensor to another of the same shape (Shoemake 1985).

    sin((1 − s) θ) / sin θ · a + sin(s θ) / sin θ · b, where θ is the angle between them; a straight line
    where they are parallel. Between two draws of normal noise it stays as likely a draw, which a straight
    line does not.
    """
    a, b = first.flatten().double(), second.flatten().double()
    cosine = (a @ b / (a.norm() * b.norm())).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if not bool(angle.sin().abs() > 1e-6):
        return torch.lerp(first, second, share)
    one, other = torch.sin((1 - share) * angle) / angle.sin(), torch.sin(share * angle) / angle.sin()
    return (one.to(first) * first + other.to(first) * second).to(first.dtype)


def interpolations(
    pipeline: DiTPipeline, labels: list[int], *, seed: int, columns: int, steps: int
) -> Tensor:
    """Pictures [rows, columns, C, H, W] uint8: a row runs from picture 2r to picture 2r + 1 of the samples.

    Args:
        labels: of each row: both its ends have the same.
        columns: pictures in a row, both ends included; two or more.
    """
    rows = []
    for row, label in enumerate(labels):
        first, second = (picture_noise(pipeline, seed, 2 * row + end) for end in (0, 1))
        noise = [spherical(first, second, column / (columns - 1)) for column in range(columns)]
        rows.append(images_of_noise(pipeline, torch.stack(noise), [label] * columns, steps))
    return torch.stack(rows)
