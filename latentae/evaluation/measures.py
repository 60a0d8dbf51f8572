"""The networks that an evaluation judges with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from latentae.evaluation.features import FeatureExtractor, VGG16Features
from latentae.evaluation.inception import InceptionFeatures
from latentae.evaluation.models import weights_sha256
from latentae.losses.perceptual import LPIPS
from latentae.weights import WeightsNotFoundError, load_trunk


@dataclass
class Measures:
    """What is measured beside pixels.

    Attributes:
        lpips: metric → the distance.
        features: ``inception`` and ``vgg16`` → the extractor; what is missing is left out of the report.
        remarks: why something is missing, a sentence each.
    """

    lpips: dict[str, LPIPS] = field(default_factory=dict)
    features: dict[str, FeatureExtractor] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def identities(self) -> dict[str, str]:
        """What the networks' weights are, for a report."""
        heads = {
            name: f"lpips 0.1 heads on {distance.net}, {weights_sha256(distance)[:16]}"
            for name, distance in self.lpips.items()
        }
        return heads | {name: extractor.identity for name, extractor in self.features.items()}


def open_measures(
    device: torch.device,
    *,
    channels: int = 3,
    inception: Path | None = None,
    lpips: tuple[str, ...] = ("alex", "vgg"),
    features: bool = True,
) -> Measures:
    """Loads the networks; what cannot be had becomes a remark, never another network in its place.

    Args:
        channels: of the images; features are taken of grey, RGB and RGBA images only.
        inception: a file of Inception's weights; None looks in torch-fidelity's cache, or downloads them.
        lpips: trunks to measure LPIPS with.
        features: whether Fréchet and kernel distances are measured at all.

    Raises:
        ValueError: the file ``inception`` holds something else.
    """
    measures = Measures()
    for trunk in lpips:
        try:
            measures.lpips[f"lpips_{trunk}"] = LPIPS(load_trunk(trunk), net=trunk).to(device)
        except WeightsNotFoundError as error:
            measures.remarks.append(f"LPIPS ({trunk}) left out: {_first_line(error)}")
    if not features:
        return measures
    if channels not in (1, 3, 4):
        measures.remarks.append(
            f"rFID, KID and FD-VGG16 left out: their networks know photographs, not {channels} channels"
        )
        return measures
    try:
        measures.features["inception"] = InceptionFeatures(inception, device)
    except WeightsNotFoundError as error:
        if inception is not None:
            raise ValueError(str(error)) from error
        measures.remarks.append(f"rFID and KID left out: {_first_line(error)}")
    try:
        measures.features["vgg16"] = VGG16Features(device)
    except WeightsNotFoundError as error:
        measures.remarks.append(f"FD-VGG16 left out: {_first_line(error)}")
    return measures


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
