"""Features of images, between whose distributions Fréchet and kernel distances are taken."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from latentae.evaluation.inception_weights import find_inception_weights
from latentae.weights import load_trunk


class FeatureExtractor(Protocol):
    """Maps 8-bit images to feature vectors.

    Attributes:
        name: for people, such as ``InceptionV3``.
        dimensions: d.
        identity: a hash of the weights and of how they are applied; equal identities, equal features.
    """

    name: str
    dimensions: int
    identity: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, d] float32, on the images' device, of RGB images [B, 3, H, W] uint8."""


class InceptionFeatures:
    """torch-fidelity's InceptionV3 of 2015, its 2048 pooled features: those of FID and KID.

    The network is torch-fidelity's; its batch normalisations are folded into the convolutions, and it runs in
    channels-last order, together about 1.5 times as fast on a CPU. Features agree to 1e-6 of their size.

    Args:
        path: a file of its weights; None looks where ``find_inception_weights`` says.
        device: where it runs.

    Raises:
        WeightsNotFoundError: the weights are not to be had.
        ValueError: the file does not hold this network's weights, or torch-fidelity is not installed.
    """

    name = "InceptionV3"
    dimensions = 2048

    def __init__(self, path: Path | None = None, device: torch.device | str = "cpu") -> None:
        file = find_inception_weights(path)
        data = file.read_bytes()
        self.identity = f"inception-v3-{hashlib.sha256(data).hexdigest()[:16]}"
        network = _inception(data, file)
        for block in network.modules():
            if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
                block.conv = fuse_conv_bn_eval(block.conv, block.bn)
                block.bn = nn.Identity()
        self.network = network.to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """As ``FeatureExtractor``; images of any size, which the network stretches to 299×299."""
        _check_rgb(images)
        with torch.autocast(images.device.type, enabled=False):
            features: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))[0]
        return features


class VGG16Features:
    """The last convolutions (relu5_3) of torchvision's VGG16, averaged over positions: 512 features.

    Available wherever LPIPS is. The Fréchet distance between these rises with blur and noise as FID does, but
    is another number on another scale: it is called FD-VGG16.

    Args:
        device: where it runs.

    Raises:
        WeightsNotFoundError: the trunk is not to be had.
    """

    name = "VGG16 relu5_3"
    dimensions = 512

    def __init__(self, device: torch.device | str = "cpu") -> None:
        trunk = load_trunk("vgg")
        digest = hashlib.sha256(b"".join(trunk[key].numpy().tobytes() for key in sorted(trunk)))
        self.identity = f"vgg16-relu5_3-{digest.hexdigest()[:16]}"
        layers: list[nn.Module] = []
        for index, key in enumerate(name for name in trunk if name.endswith("weight")):
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
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """As ``FeatureExtractor``; at the images' own size, 16 pixels a side or more."""
        _check_rgb(images)
        with torch.autocast(images.device.type, enabled=False):
            normalised = (images.float() / 255 - self.mean) / self.std
            hidden = self.network(normalised.contiguous(memory_format=torch.channels_last))
        return F.adaptive_avg_pool2d(hidden, 1).flatten(1)


# The convolutions before which VGG16 halves its features.
_VGG16_POOLS = (2, 4, 7, 10)


def to_rgb(images: Tensor) -> Tensor:
    """[B, 3, H, W] of images [B, C, H, W]: grey is repeated, of RGBA the colours are kept.

    Raises:
        ValueError: another number of channels, of which a network trained on photographs says nothing.
    """
    channels = images.shape[1]
    if channels not in (1, 3, 4):
        raise ValueError(f"images have {channels} channels; features are of grey, RGB or RGBA ones")
    return images.expand(-1, 3, -1, -1) if channels == 1 else images[:, :3]


def _check_rgb(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are [B, 3, H, W] uint8; got {list(images.shape)} {images.dtype}")


def _inception(data: bytes, file: Path) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError("Inception features need torch-fidelity: pip install torch-fidelity") from error
    # torch-fidelity unpickles whatever the file holds; only tensors get through here, and those it is handed.
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        tensors = io.BytesIO()
        torch.save(state, tensors)
        tensors.seek(0)
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=tensors
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} does not hold torch-fidelity's InceptionV3: {reason}") from error
