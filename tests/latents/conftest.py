import pytest
import torch

from latentae import KLVAE, VQGAN
from tests.training.conftest import draw_images

SHAPE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}


def make_kl(**changes):
    """A KL-VAE of two levels whose channels differ in mean and spread, with noise worth the name."""
    torch.manual_seed(0)
    model = KLVAE(**{**SHAPE, **changes}).eval()
    with torch.no_grad():
        last = model.quant_conv if model.quant_conv is not None else model.encoder.conv_out
        last.weight[:4] *= torch.tensor([1.0, 3.0, 0.5, 2.0])[:, None, None, None]
        last.bias[:4] += torch.tensor([0.5, -3.0, 0.0, 20.0])
        last.bias[4:] += torch.tensor([-2.0, -1.0, -3.0, 0.0])
    return model


def make_vq(**changes):
    """A VQGAN of two levels, its codes among the latents of its images."""
    torch.manual_seed(0)
    model = VQGAN(**{**SHAPE, "num_vq_embeddings": 32, **changes}).eval()
    with torch.no_grad():
        model.quant_conv.bias += torch.tensor([0.5, -3.0, 0.0, 2.0])[: len(model.quant_conv.bias)]
        model.quantize.start(model.encode(draw_tensors(8)).latents, torch.manual_seed(0))
    return model


def draw_tensors(count, size=16, seed=0):
    """Images [count, 3, size, size] in [−1, 1], each with a brightness and contrast of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, size, size, generator=generator)
    look = torch.rand(count, 2, 1, 1, 1, generator=generator)
    return (noise * 0.6 * look[:, 0] + 1.2 * look[:, 1] - 0.6).clamp(-1, 1)


def batches_of(images, size, first=0):
    """Batches as the loaders yield them."""
    return [
        {"images": part, "indices": torch.arange(start, start + len(part)) + first}
        for start, part in zip(range(0, len(images), size), images.split(size), strict=True)
    ]


@pytest.fixture
def picture_folder(tmp_path):
    draw_images(tmp_path / "images", count=12, size=24)
    return tmp_path / "images"


@pytest.fixture
def classes(tmp_path):
    """Two classes of five pictures each, with a caption beside the first of them."""
    for name in ("cat", "dog"):
        draw_images(tmp_path / "classes" / name, count=5, size=24)
    first = sorted((tmp_path / "classes/cat").iterdir())[0]
    first.with_suffix(".txt").write_text("a cat\non a mat\n")
    return tmp_path / "classes"
