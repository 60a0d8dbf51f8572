import numpy as np
import pytest
import torch
from PIL import Image

from latentae.evaluation.features import Measures
from latentae.models import KLVAE, VQVAE


class ColourFeatures:
    """Twelve numbers of an image, in the place of a network: the mean colours of its four quarters."""

    name = "quarters"
    dimensions = 12
    smallest_side = 2
    identity = "quarters-1"

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


@pytest.fixture
def measures():
    return Measures(features={"vgg16": ColourFeatures()})


def draw_images(folder, count, seed=0, size=32):
    """Two classes: a red disc on blue, and a green stripe on grey, each somewhere."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    for number in range(count):
        kind = ("disc", "stripe")[number % 2]
        place = folder / kind / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        x, y = rng.uniform(0.3, 0.7, 2) * size
        if kind == "disc":
            inside = (columns - x) ** 2 + (rows - y) ** 2 < (0.22 * size) ** 2
            colours = np.array([[40, 60, 170], [210, 50, 40]])
        else:
            inside = abs(columns - x) < 0.13 * size
            colours = np.array([[130, 130, 130], [40, 190, 70]])
        shade = colours[inside.astype(int)] + rng.normal(0, 8, 3)
        Image.fromarray(shade.clip(0, 255).astype(np.uint8)).save(place)


@pytest.fixture
def image_folder(tmp_path):
    """48 pictures of 32 pixels a side to train on, and 12 held out, in two classes."""
    folder = tmp_path / "images"
    draw_images(folder / "train", 48)
    draw_images(folder / "val", 12, seed=1)
    return folder


def tiny_model(kind="kl", seed=0, **changes):
    """Two levels, 4 latent channels, random weights, and a scale that is measured nowhere."""
    torch.manual_seed(seed)
    config = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "layers_per_block": 1,
        "mid_block_add_attention": False,
        "scaling_factor": 0.8,
        **changes,
    }
    model = KLVAE(**config) if kind == "kl" else VQVAE(**{"num_vq_embeddings": 16, **config})
    return model.eval()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own, with nothing in it."""
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def one_thread():
    """Computes alike however many threads other tests use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
