"""The Inception features of FID and KID, as torch-fidelity computes them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from latentae.evaluation.features import check_rgb
from latentae.evaluation.inception_weights import find_inception_weights
from latentae.weights import WeightsNotFoundError

# The parts of torch-fidelity's network that an image goes through, in order.
_STAGES = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d"),
    *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)
_SIDE = 299


class InceptionFeatures:
    """torch-fidelity's InceptionV3 of 2015, its 2048 pooled features: those of FID and KID.

    The network is torch-fidelity's. Its batch normalisations are folded into the convolutions, it runs in
    channels-last order, and images are stretched one axis after the other: together 1.6 times as fast on a
    CPU. Features agree to 1e-6 of their size.

    Args:
        path: a file of its weights; None looks where ``find_inception_weights`` says.
        device: where it runs.

    Raises:
        WeightsNotFoundError: the weights are not to be had, or torch-fidelity is not installed.
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
        stages = nn.Sequential(*(getattr(network, name) for name in _STAGES), nn.Flatten())
        self.network = stages.to(device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """As ``FeatureExtractor``; images of any size, which are stretched to 299×299."""
        check_rgb(images)
        with torch.autocast(images.device.type, enabled=False):
            stretched = (stretch(images.float(), _SIDE) - 128) / 128
            features: Tensor = self.network(stretched.contiguous(memory_format=torch.channels_last))
        return features


def stretch(images: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] at side × side pixels, bilinear as TensorFlow 1 has it: the network saw such ones.

    Output position i lies at i · H / side of the input, whose last row is repeated; nothing is antialiased.
    """
    for _ in range(2):
        # The axis that is stretched comes before the last, so that whole rows are copied: first the width.
        images = images.transpose(2, 3).contiguous()
        length = images.shape[2]
        # In float32 like TensorFlow's, which decides between neighbours where a position is almost whole.
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
