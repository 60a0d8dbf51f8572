import numpy as np
import pytest
import torch
from PIL import Image

from latentae import VQGAN
from tests.latents.conftest import SHAPE, draw_tensors, make_kl, make_vq


@pytest.fixture
def kl():
    return make_kl(scaling_factor=0.5)


@pytest.fixture
def vq():
    return make_vq()


def make_quantized(**changes):
    """A VQGAN with another quantizer, untrained."""
    torch.manual_seed(0)
    return VQGAN(**{**SHAPE, **changes}).eval()


def ink(picture):
    """How many pixels of a picture are not white."""
    return int((np.asarray(picture) < 250).any(axis=-1).sum())


def save_pictures(folder, count, size=24):
    folder.mkdir(parents=True, exist_ok=True)
    images = ((draw_tensors(count, size) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder
