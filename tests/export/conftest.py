"""Models small enough for a test that latent diffusion's layout can hold: 32 groups, so widths from 32 on."""

import pytest
import torch

from latentae import KLVAE, VQGAN

LEVELS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def make_kl(**changes):
    torch.manual_seed(0)
    return KLVAE(
        **{**LEVELS, "latent_channels": 4, "scaling_factor": 0.7, "shift_factor": 0.3, **changes}
    ).eval()


def make_vq(cls=VQGAN, **changes):
    """Its codes lie where its latents are."""
    torch.manual_seed(0)
    model = cls(
        **{**LEVELS, "latent_channels": 4, "num_vq_embeddings": 32, "scaling_factor": 0.7, **changes}
    ).eval()
    model.quantize.start(model.encode(torch.rand(2, 3, 16, 16) * 2 - 1).latents, torch.manual_seed(0))
    return model


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def all_files(folder):
    """Relative paths of everything below a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
