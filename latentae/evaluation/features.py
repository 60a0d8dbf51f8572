"""Feature networks of an evaluation, never with random weights: VGG16, Inception, and what all share."""

from __future__ import annotations

import hashlib
import io
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from latentae.evaluation.models import weights_sha256
from latentae.files import file_sha256, first_line
from latentae.losses.feature_maps import IMAGENET_MEAN, IMAGENET_STD
from latentae.losses.perceptual import LPIPS
from latentae.weights import WeightsNotFoundError, load_trunk

# The convolutions before which VGG16 halves its features.
_VGG16_POOLS = (2, 4, 7, 10)
FILE = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's name of the file; it ends in the first eight digits of its SHA-256."""
_HASH = "6726825d"
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
# The parts of torch-fidelity's network, in the order in which an image passes them.
_INCEPTION_STAGES = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d"),
    *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)
_INCEPTION_SIDE = 299


class FeatureExtractor(Protocol):
    """Maps 8-bit images to feature vectors.

    Attributes:
        name: the readable name, such as ``InceptionV3``.
        dimensions: d.
        smallest_side: pixels that the shorter side of an image must have.
        identity: a hash of the weights and of how they are applied. Equal identities mean equal features.
    """

    name: str
    dimensions: int
    smallest_side: int
    identity: str

    def __call__(self, images: Tensor) -> Tensor:
        """Returns features [B, d] float32, on the images' device, of RGB images [B, 3, H, W] uint8."""


class VGG16Features:
    """The last convolutions (relu5_3) of torchvision's VGG16, averaged over positions: 512 features.

    They are available wherever LPIPS is. The Fréchet distance between them rises with blur and noise as FID
    does, but has another scale, so it is called FD-VGG16.

    Args:
        device: where it runs.

    Raises:
        WeightsNotFoundError: the trunk is unavailable.
    """

    name = "VGG16 relu5_3"
    dimensions = 512
    smallest_side = 16

    def __init__(self, device: torch.device | str = "cpu") -> None:
        trunk = load_trunk("vgg")
        digest = hashlib.sha256(b"".join(trunk[key].numpy().tobytes() for key in sorted(trunk)))
        self.identity = f"vgg16-relu5_3-{digest.hexdigest()[:16]}"
        layers: list[nn.Module] = []
        # Sorted by number: files list "10" before "2".
        names = sorted(
            (name for name in trunk if name.endswith("weight")), key=lambda n: int(n.split(".")[1])
        )
        for index, key in enumerate(names):
            weight = trunk[key]
            if index in _VGG16_POOLS:
                layers.append(nn.MaxPool2d(2))
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            convolution.weight, convolution.bias = (
                nn.Parameter(trunk[key.replace("weight", kind)], requires_grad=False)
                for kind in ("weight", "bias")
            )
            layers += [convolution, nn.ReLU(inplace=True)]
        self.network = nn.Sequential(*layers).to(device).to(memory_format=torch.channels_last)
        self.mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns features as ``FeatureExtractor`` does; images are not resized."""
        check_rgb(images)
        with torch.autocast(images.device.type, enabled=False):
            normalised = (images.float() / 255 - self.mean) / self.std
            hidden = self.network(normalised.contiguous(memory_format=torch.channels_last))
        return F.adaptive_avg_pool2d(hidden, 1).flatten(1)


def to_rgb(images: Tensor) -> Tensor:
    """Converts images [B, C, H, W] to [B, 3, H, W]: grey is repeated, and alpha is dropped.

    Raises:
        ValueError: another number of channels, for which networks trained on photographs are meaningless.
    """
    channels = images.shape[1]
    if channels not in (1, 3, 4):
        raise ValueError(f"images have {channels} channels; features are of grey, RGB or RGBA ones")
    return images.expand(-1, 3, -1, -1) if channels == 1 else images[:, :3]


def check_rgb(images: Tensor) -> None:
    """Raises a ValueError unless images are [B, 3, H, W] uint8."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are [B, 3, H, W] uint8; got {list(images.shape)} {images.dtype}")


def resize_bicubic(images: Tensor, side: int) -> Tensor:
    """Resizes images [B, 3, H, W] uint8 to side × side pixels as Pillow does: bicubic, antialiased.

    Returns:
        [B, 3, side, side] float32, whole numbers from 0 to 255. Pillow rounds between the axes, too, so a
        few values differ from its by a level, rarely by two.
    """
    pixels = images.float()
    if pixels.shape[2:] == (side, side):
        return pixels
    resized = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255)


def find_inception_weights(path: Path | None = None) -> Path:
    """Returns the file of weights: ``path``, or torch-fidelity's in torch's hub cache, downloaded if missing.

    A file from the cache or the download must have the published hash. A given file need not, so that other
    weights can be used.

    Raises:
        WeightsNotFoundError: there is no such file, and it could not be downloaded.
    """
    found, reason = find_weights(path, FILE, _HASH, _download)
    if reason:
        raise WeightsNotFoundError(
            f"FID's Inception weights are not on this machine ({reason}); copy {FILE}, which torch-fidelity "
            f"releases, to {found} or give its path"
        )
    return found


def find_weights(path: Path | None, file: str, sha256: str, fetch: Callable[[Path], str]) -> tuple[Path, str]:
    """Returns where a network's weights are, and why they cannot be used, or "".

    Args:
        path: a given file, whose hash is not checked; None searches torch's hub cache.
        file: the name of the published file.
        sha256: with which its SHA-256 begins.
        fetch: puts a missing file there, and returns the reason of a failure, or "".

    Raises:
        WeightsNotFoundError: the given file is not there.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsNotFoundError(f"{path} is not there: give the path of {file}")
        return path, ""
    cached = Path(torch.hub.get_dir(), "checkpoints", file)
    if not cached.is_file():
        return cached, fetch(cached)
    if file_sha256(cached).startswith(sha256):
        return cached, ""
    return cached, f"{cached} is damaged: its SHA-256 is not {sha256[:8]}…; remove it"


def _download(target: Path) -> str:
    """Downloads torch-fidelity's file; returns the reason of a failure, or ""."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        return "torch-fidelity, which knows their address, is not installed: pip install torch-fidelity"
    return download_weights(URL_INCEPTION_V3, target, _HASH)


def download_weights(url: str, target: Path, sha256: str) -> str:
    """Downloads a file whose SHA-256 begins with ``sha256``; returns the reason of a failure, or ""."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set, so nothing was downloaded"
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)  # torch.hub would wait forever
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=sha256, progress=False)
    except (OSError, RuntimeError) as error:
        return f"the download failed: {error}"
    finally:
        socket.setdefaulttimeout(patience)
    return ""


class InceptionFeatures:
    """The 2048 pooled features of torch-fidelity's InceptionV3 of 2015: those of FID and KID.

    The network is torch-fidelity's. Its batch normalisations are folded into the convolutions, it runs in
    channels-last order, and images are stretched one axis after the other. Together this is 1.6 times as fast
    on a CPU. Features agree to 1e-6 of their size.

    Args:
        path: a file of its weights; None searches as ``find_inception_weights`` does.
        device: where it runs.

    Raises:
        WeightsNotFoundError: the weights are unavailable, or torch-fidelity is not installed.
        ValueError: the file does not hold this network's weights.
    """

    name = "InceptionV3"
    dimensions = 2048
    smallest_side = 1

    def __init__(self, path: Path | None = None, device: torch.device | str = "cpu") -> None:
        file = find_inception_weights(path)
        data = file.read_bytes()
        self.identity = f"inception-v3-{hashlib.sha256(data).hexdigest()[:16]}"
        network = _load(data, file)
        for block in network.modules():
            if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
                block.conv = fuse_conv_bn_eval(block.conv, block.bn)
                block.bn = nn.Identity()
        stages = nn.Sequential(*(getattr(network, name) for name in _INCEPTION_STAGES), nn.Flatten())
        self.network = stages.to(device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns features as ``FeatureExtractor`` does; images of any size are stretched to 299×299."""
        check_rgb(images)
        with torch.autocast(images.device.type, enabled=False):
            stretched = (stretch(images.float(), _INCEPTION_SIDE) - 128) / 128
            features: Tensor = self.network(stretched.contiguous(memory_format=torch.channels_last))
        return features


def stretch(images: Tensor, side: int) -> Tensor:
    """Resizes images [B, C, H, W] to side × side pixels, bilinear as in TensorFlow 1.

    The network was trained on such images. Output position i lies at i · H / side of the input, whose last
    row is repeated. Nothing is antialiased.
    """
    for _ in range(2):
        # The stretched axis comes before the last, so that whole rows are copied; the width comes first.
        images = images.transpose(2, 3).contiguous()
        length = images.shape[2]
        # In float32 like TensorFlow, which decides between neighbours where a position is almost whole.
        position = torch.arange(side, dtype=torch.float32, device=images.device) * torch.tensor(length / side)
        below = position.long()
        above = (below + 1).clamp(max=length - 1)
        first, second = images.index_select(2, below), images.index_select(2, above)
        images = first + (second - first) * (position - below)[:, None]
    return images


def _load(data: bytes, file: Path) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise WeightsNotFoundError(
            "Inception features need torch-fidelity, which is not installed: pip install torch-fidelity"
        ) from error
    # torch-fidelity unpickles whatever a file holds, so only tensors are loaded here and passed on.
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        tensors = io.BytesIO()
        torch.save(state, tensors)
        tensors.seek(0)
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=tensors
        )
    except Exception as error:
        raise ValueError(f"{file} does not hold torch-fidelity's InceptionV3: {first_line(error)}") from error


@dataclass
class Measures:
    """The networks of the metrics.

    Attributes:
        lpips: metric → the distance.
        features: ``inception``, ``vgg16``, ``dinov2`` or ``clip`` → the extractor. Metrics of missing
            networks are left out.
        remarks: one sentence per missing network, with the reason.
    """

    lpips: dict[str, LPIPS] = field(default_factory=dict)
    features: dict[str, FeatureExtractor] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def identities(self) -> dict[str, str]:
        """Network → identity of its weights, for a report."""
        heads = {
            name: f"lpips 0.1 heads on {distance.net}, {weights_sha256(distance)[:16]}"
            for name, distance in self.lpips.items()
        }
        return heads | {name: extractor.identity for name, extractor in self.features.items()}
