"""Opens the networks of the metrics by name: found, given as files, or downloaded on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from latentae.evaluation.clip import PUBLISHED_DIMENSIONS as CLIP_DIMENSIONS
from latentae.evaluation.clip import CLIPFeatures
from latentae.evaluation.dinov2 import PUBLISHED_DIMENSIONS as DINOV2_DIMENSIONS
from latentae.evaluation.dinov2 import DINOv2Features
from latentae.evaluation.features import FeatureExtractor, InceptionFeatures, Measures, VGG16Features
from latentae.files import first_line
from latentae.losses.perceptual import LPIPS
from latentae.weights import WeightsNotFoundError, load_trunk

METRICS_OF = {
    "inception": "rFID, KID, precision and recall",
    "vgg16": "FD-VGG16",
    "dinov2": "FD-DINOv2",
    "clip": "CLIP-MMD",
}
"""Network → the metrics that need it."""

WITH_FILES = ("inception", "dinov2", "clip")
"""The networks whose weights can be given."""

_PUBLISHED = {"dinov2": DINOV2_DIMENSIONS, "clip": CLIP_DIMENSIONS}


def choose_weights(weights: Sequence[str], inception: Path | None = None) -> dict[str, Path | None]:
    """Returns network → file of weights, or None where the network shall be found or downloaded.

    Args:
        weights: ``NAME=FILE`` or ``NAME`` each, of the networks in ``WITH_FILES``.
        inception: file of Inception's weights; the same as ``inception=FILE``.

    Raises:
        ValueError: a name is unknown or occurs twice, or a file does not exist.
    """
    chosen: dict[str, Path | None] = {} if inception is None else {"inception": inception}
    if inception is not None and not inception.is_file():
        raise ValueError(f"inception is {inception}, but there is no such file")
    for text in weights:
        name, equals, path = text.partition("=")
        if name not in WITH_FILES:
            names = ", ".join(WITH_FILES)
            raise ValueError(f"weights is {text!r}, but must be NAME or NAME=FILE, with NAME one of {names}")
        if name in chosen:
            raise ValueError(f"weights names {name} twice: give one file for each network")
        chosen[name] = Path(path).expanduser() if equals else None
        if equals and not Path(path).expanduser().is_file():
            raise ValueError(f"weights is {text}, but there is no such file")
    return chosen


def open_measures(
    device: torch.device,
    *,
    channels: int = 3,
    inception: Path | None = None,
    lpips: tuple[str, ...] = ("alex", "vgg"),
    features: bool = True,
    networks: Sequence[str] = ("inception", "vgg16"),
    weights: Sequence[str] = (),
) -> Measures:
    """Loads the networks. A network whose weights are unavailable is skipped and noted; nothing replaces it.

    Args:
        channels: of the images; features are taken of grey, RGB and RGBA images only.
        inception: a file of Inception's weights; None looks in torch-fidelity's cache, or downloads them.
        lpips: trunks to measure LPIPS with.
        features: whether distances between feature distributions are measured.
        networks: names in ``METRICS_OF``.
        weights: see ``choose_weights``. CLIP is downloaded only if it is named there, since it is large.

    Raises:
        ValueError: a given file is missing, or does not hold the network's weights; a named network cannot
            be had.
    """
    # LPIPS.
    measures = Measures()
    for trunk in lpips:
        try:
            measures.lpips[f"lpips_{trunk}"] = LPIPS(load_trunk(trunk), net=trunk).to(device)
        except WeightsNotFoundError as error:
            measures.remarks.append(f"LPIPS ({trunk}) left out: {first_line(error)}")

    # Features.
    if not features:
        return measures
    if channels not in (1, 3, 4):
        *others, last = (METRICS_OF[name] for name in networks)
        listed = f"{', '.join(others)} and {last}" if others else last
        measures.remarks.append(
            f"{listed} left out: their networks take photographs, not {channels} channels"
        )
        return measures
    given = choose_weights(weights, inception)
    for name in networks:
        try:
            extractor = _open(name, given, device)
        except WeightsNotFoundError as error:
            if name in given:
                raise ValueError(str(error)) from error
            measures.remarks.append(f"{METRICS_OF[name]} left out: {first_line(error)}")
            continue
        measures.features[name] = extractor
        published = _PUBLISHED.get(name, extractor.dimensions)
        if extractor.dimensions != published:
            measures.remarks.append(
                f"{METRICS_OF[name]} is of a network with {extractor.dimensions} features, and published "
                f"numbers are of one with {published}: do not compare them"
            )
    return measures


def _open(name: str, given: Mapping[str, Path | None], device: torch.device) -> FeatureExtractor:
    path = given.get(name)
    if name == "inception":
        return InceptionFeatures(path, device)
    if name == "dinov2":
        return DINOv2Features(path, device)
    if name == "clip":
        return CLIPFeatures(path, device, download=name in given)
    return VGG16Features(device)
