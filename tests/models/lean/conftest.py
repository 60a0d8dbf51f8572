"""Pairs of equal models, one of them lean."""

import copy

import pytest
import torch

from latentae import KLVAE, VQGAN
from latentae.models.lean import make_lean

KINDS = {
    "KL": (KLVAE, {}),
    "VQ": (VQGAN, {"num_vq_embeddings": 16}),
    "VQ, normalised by its codes": (VQGAN, {"num_vq_embeddings": 16, "norm_type": "spatial"}),
}


def make_pair(kind="KL", dtype=torch.float64):
    """(stock, lean): attention at the lowest level and in the middle; no parameter at its initial 0 or 1."""
    torch.manual_seed(0)
    model_class, arguments = KINDS[kind]
    # Normalisation by the codes comes in groups of 32.
    channels = (32, 32) if arguments.get("norm_type") == "spatial" else (8, 16)
    stock = model_class(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        **arguments,
    ).to(dtype)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.normal_()
    lean = copy.deepcopy(stock)
    make_lean(lean)
    return stock, lean


def gradients(model, images, forward=None):
    """The output's, by name, and the images'; of a random weighting of the reconstruction plus its losses."""
    images = images.clone().requires_grad_()
    output = (model if forward is None else forward)(images)
    weights = torch.randn(output.sample.shape, generator=torch.Generator().manual_seed(1)).to(output.sample)
    loss = (output.sample * weights).sum() + sum((output.losses or {}).values())
    named = [*model.named_parameters()]
    found = torch.autograd.grad(loss, [images, *(parameter for _, parameter in named)])
    return dict(zip(["images", *(name for name, _ in named)], found, strict=True))


@pytest.fixture
def images():
    return torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
