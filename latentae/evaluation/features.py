"""Features of images, between whose distributions Fréchet and kernel distances are taken."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.weights import load_trunk


class FeatureExtractor(Protocol):
    """Maps 8-bit images to feature vectors.

    Attributes:
        name: for people, such as ``InceptionV3``.
        dimensions: d.
        smallest_side: pixels that the shorter side of an image must have.
        identity: a hash of the weights and of how they are applied; equal identities, equal features.
    """

    name: str
    dimensions: int
    smallest_side: int
    identity: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, d] float32, on the images' device, of RGB images [B, 3, H, W] uint8."""


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
    smallest_side = 16

    def __init__(self, device: torch.device | str = "cpu") -> None:
        trunk = load_trunk("vgg")
        digest = hashlib.sha256(b"".join(trunk[key].numpy().tobytes() for key in sorted(trunk)))
        self.identity = f"vgg16-relu5_3-{digest.hexdigest()[:16]}"
        layers: list[nn.Module] = []
        # By number: files keep names in an order of their own, "10" before "2".
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
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """As ``FeatureExtractor``; at the images' own size."""
        check_rgb(images)
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


def check_rgb(images: Tensor) -> None:
    """Raises ValueError for images that are not [B, 3, H, W] uint8."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are [B, 3, H, W] uint8; got {list(images.shape)} {images.dtype}")
