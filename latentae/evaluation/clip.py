"""CLIP (arXiv 2103.00020) embeddings of images, as CMMD (arXiv 2401.09603) takes them.

The network is torch-fidelity's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentae.evaluation.features import check_rgb, download_weights, find_weights, resize_bicubic
from latentae.files import file_sha256, first_line
from latentae.models.checkpoints.reading import read_checkpoint
from latentae.weights import WeightsNotFoundError

PUBLISHED_DIMENSIONS = 768
"""Features of ViT-L/14 at 336 pixels, the network of CMMD."""

_NETWORK = "clip-vit-l-14-336px"  # torch-fidelity's name
_SHA256 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
FILE = f"{_NETWORK}-{_SHA256}.pt"
"""torch-fidelity's name of OpenAI's file."""
_SIZE = "934 MB"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def find_clip_weights(path: Path | None = None, *, download: bool = False) -> Path:
    """Returns the file of weights: ``path``, or OpenAI's in torch's hub cache.

    A file from the cache or the download must have OpenAI's hash.

    Args:
        download: whether a missing file is downloaded.

    Raises:
        WeightsNotFoundError: there is no such file, or it could not be downloaded.
    """
    fetch = _download if download else (lambda target: f"--weights clip downloads them, {_SIZE}")
    found, reason = find_weights(path, FILE, _SHA256, fetch)
    if reason:
        raise WeightsNotFoundError(
            f"CLIP's weights are not on this machine ({reason}); copy OpenAI's ViT-L-14-336px.pt to {found}, "
            "or give a file by --weights clip=FILE"
        )
    return found


def _download(target: Path) -> str:
    try:
        from torch_fidelity.feature_extractor_clip import MODEL_URLS
    except ImportError:
        return "torch-fidelity, which knows their address, is not installed: pip install torch-fidelity"
    return download_weights(MODEL_URLS[_NETWORK], target, _SHA256)


class CLIPFeatures:
    """CLIP's image embeddings, of unit length.

    The centre square of an image is resized to the network's size (336 pixels), bicubic and antialiased, as
    in CMMD's code. (torch-fidelity stretches the whole image bilinearly, as for Inception, and leaves the
    length; images of the network's size give the same directions.)

    Args:
        path: a file of its weights, OpenAI's own or a state dict under its names; None searches as
            ``find_clip_weights`` does.
        device: where it runs.
        download: whether a missing file is downloaded.

    Raises:
        WeightsNotFoundError: the weights are unavailable, or torch-fidelity is not installed.
        ValueError: the file does not hold a CLIP.
    """

    name = "CLIP"
    smallest_side = 1

    def __init__(
        self, path: Path | None = None, device: torch.device | str = "cpu", *, download: bool = False
    ) -> None:
        file = find_clip_weights(path, download=download)
        digest = file_sha256(file)
        network = _build(_read(file, digest), file)
        self.side = int(network.visual.input_resolution)
        self.dimensions = int(network.visual.output_dim)
        self.identity = f"clip-{self.side}px-{self.dimensions}-bicubic-{digest[:16]}"
        self.network = network.visual.to(device)
        self.mean = torch.tensor(_MEAN, device=device)[:, None, None]
        self.std = torch.tensor(_STD, device=device)[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns features as ``FeatureExtractor`` does, of length 1."""
        check_rgb(images)
        height, width = images.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = images[:, :, top : top + side, left : left + side]
        with torch.autocast(images.device.type, enabled=False):
            pixels = resize_bicubic(square, self.side) / 255
            embeddings: Tensor = self.network((pixels - self.mean) / self.std)
        return torch.nn.functional.normalize(embeddings, dim=1)


def _read(file: Path, digest: str) -> dict[str, Tensor]:
    """Returns the tensors of a file; a program is loaded only if it is OpenAI's own."""
    if digest == _SHA256:
        program = torch.jit.load(os.fspath(file), map_location="cpu")
        return dict(program.state_dict())
    return dict(read_checkpoint(file).tensors)


def _build(state: dict[str, Tensor], file: Path) -> Any:
    try:
        from torch_fidelity.feature_extractor_clip import build_model
    except ImportError as error:
        raise WeightsNotFoundError(
            "CLIP features need torch-fidelity, which is not installed: pip install torch-fidelity"
        ) from error
    if "visual.proj" not in state or "text_projection" not in state:
        raise ValueError(f"{file} does not hold a CLIP with a vision transformer under OpenAI's names")
    try:
        return build_model(state, torch.float32)
    except Exception as error:
        raise ValueError(f"{file} does not hold a CLIP under OpenAI's names: {first_line(error)}") from error
