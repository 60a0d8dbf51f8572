import pytest
import torch

from latentae import KLVAE, VQGAN, VQVAE


def make(cls=VQGAN, **changes):
    """A model of two levels with random weights, small enough for a test."""
    arguments = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    if cls is not KLVAE:
        arguments["num_vq_embeddings"] = 32
    model = cls(**{**arguments, **changes}).eval()
    if cls is not KLVAE and hasattr(model.quantize, "embedding"):
        torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


@pytest.fixture(params=[VQGAN, VQVAE])
def model(request):
    torch.manual_seed(0)
    return make(request.param)


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
