"""DINOv2 (arXiv 2304.07193): the vision transformer behind FD-DINOv2 (arXiv 2306.04675)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from latentae.evaluation.features import check_rgb, resize_bicubic
from latentae.files import file_sha256
from latentae.losses.feature_maps import IMAGENET_MEAN, IMAGENET_STD
from latentae.models.checkpoints.reading import read_checkpoint
from latentae.weights import WeightsNotFoundError

PUBLISHED_DIMENSIONS = 1024
"""Features of ViT-L/14, the size that published distances are of."""

_FILE = "dinov2_vitl14_pretrain.pth"  # as Meta releases it and torch.hub keeps it
_HUB_ID = "facebook/dinov2-large"
_SIDE = 224
_HEAD_WIDTH = 64
# Meta's models add it to the number of patches when they stretch the position embedding.
_POSITION_OFFSET = 0.1

# transformers' names → Meta's, as patterns.
_RENAMED = {
    r"^embeddings\.(cls_token|mask_token)$": r"\1",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^layernorm\.": "norm.",
    r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$": r"blocks.\1.ls\2.gamma",
    r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"blocks.\1.attn.proj.",
    r"^encoder\.layer\.(\d+)\.attention\.attention\.": r"blocks.\1.attn.",
    r"^encoder\.layer\.(\d+)\.": r"blocks.\1.",
}


def find_dinov2_weights(path: Path | None = None) -> Path:
    """Returns the file of weights: ``path``, or that of ViT-L/14 in torch's or the hub's cache.

    Nothing is downloaded, since no hash of the file is published.

    Raises:
        WeightsNotFoundError: there is no such file.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsNotFoundError(f"{path} is not there: give the path of {_FILE}")
        return path
    cached = Path(torch.hub.get_dir(), "checkpoints", _FILE)
    if cached.is_file():
        return cached
    from_hub = try_to_load_from_cache(_HUB_ID, "model.safetensors")
    if isinstance(from_hub, str):
        return Path(from_hub)
    raise WeightsNotFoundError(
        f"DINOv2's weights are not on this machine; copy {_FILE}, which Meta releases, to {cached}, or give "
        f"a file by --weights dinov2=FILE (model.safetensors of {_HUB_ID} is read, too)"
    )


class DINOv2Features:
    """The class token of DINOv2 after the last normalisation: the features of FD-DINOv2.

    Images are resized to 224 × 224 pixels, bicubic and antialiased, as in the paper's code. (torch-fidelity
    resizes bilinearly, as for Inception; at 224 pixels both agree.) The position embedding is stretched as
    Meta's models do it.

    Args:
        path: a file of its weights, under Meta's or transformers' names; None searches as
            ``find_dinov2_weights`` does.
        device: where it runs.

    Raises:
        WeightsNotFoundError: the weights are unavailable.
        ValueError: the file does not hold a DINOv2.
    """

    name = "DINOv2"
    smallest_side = 1

    def __init__(self, path: Path | None = None, device: torch.device | str = "cpu") -> None:
        file = find_dinov2_weights(path)
        state = to_meta_names(read_checkpoint(file).tensors)
        try:
            network = VisionTransformer(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{file} does not hold a DINOv2 without registers: {error}") from error
        self.dimensions = network.width
        self.identity = f"dinov2-{self.dimensions}-bicubic-{file_sha256(file)[:16]}"
        self.network = network.to(device).eval().requires_grad_(False)
        self.mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns features as ``FeatureExtractor`` does; images of any size are resized to 224×224."""
        check_rgb(images)
        with torch.autocast(images.device.type, enabled=False):
            pixels = resize_bicubic(images, _SIDE) / 255
            features: Tensor = self.network((pixels - self.mean) / self.std)
        return features


def to_meta_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights under Meta's names, whichever of the two kinds of names they had."""
    if "cls_token" in state:
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = name.removeprefix("dinov2.")
        for pattern, replacement in _RENAMED.items():
            own, count = re.subn(pattern, replacement, own)
            if count:
                break
        renamed[own] = tensor
    # Query, key and value are one matrix there.
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return renamed


class VisionTransformer(nn.Module):
    """Meta's ViT with LayerScale, in the size that its weights have.

    Args:
        state: the weights, under Meta's names.

    Raises:
        KeyError, RuntimeError: a weight is missing, unknown, or has another shape.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        state = {name: tensor.float() for name, tensor in state.items() if name != "mask_token"}
        self.width, channels, self.patch, _ = state["patch_embed.proj.weight"].shape
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        self.cls_token = nn.Parameter(torch.empty_like(state["cls_token"]))
        self.pos_embed = nn.Parameter(torch.empty_like(state["pos_embed"]))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(channels, self.width, self.patch, stride=self.patch)}
        )
        self.blocks = nn.Sequential(*(_Block(self.width, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        self.load_state_dict(state)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the class token [B, width] of normalised images [B, 3, H, W] of whole patches."""
        patches = self.patch_embed["proj"](images)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        hidden = self.blocks(tokens + self._positions(patches.shape[2], patches.shape[3]))
        normalised: Tensor = self.norm(hidden[:, 0])
        return normalised

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Returns the position embedding [1, 1 + rows · columns, width], stretched if necessary."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = math.isqrt(grid.shape[1])
        if (rows, columns) == (side, side):
            return self.pos_embed
        maps = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = ((rows + _POSITION_OFFSET) / side, (columns + _POSITION_OFFSET) / side)
        stretched = F.interpolate(maps, scale_factor=scale, mode="bicubic")
        return torch.cat([first, stretched.flatten(2).transpose(1, 2)], dim=1)


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and scaled after."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))}) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens [B, n, width] to the same shape."""
        tokens = tokens + self.ls1["gamma"] * self._attend(self.norm1(tokens))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.ls2["gamma"] * self.mlp["fc2"](hidden)

    def _attend(self, tokens: Tensor) -> Tensor:
        width = tokens.shape[2]
        heads = self.attn["qkv"](tokens).unflatten(2, (3, width // _HEAD_WIDTH, _HEAD_WIDTH))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return attended
