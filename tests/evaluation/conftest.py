import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from latentae.data.folder import FolderSource
from latentae.evaluation.features import Measures
from latentae.models import KLVAE, VQVAE
from latentae.weights import load_trunk, trunk_path


class MeanFeatures:
    """Seven numbers of an image, in the place of a network."""

    name = "means"
    dimensions = 7
    smallest_side = 1
    identity = "means-1"

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        shades = images.float().mean(dim=(2, 3))
        edges = images.float().diff(dim=3).abs().mean(dim=(2, 3))
        return torch.cat([shades, edges, (shades * edges).mean(dim=1, keepdim=True)], dim=1)


class MeanDistance(nn.Module):
    """A distance in the place of LPIPS."""

    net = "alex"

    def forward(self, reconstruction, images):
        return (reconstruction - images).square().mean(dim=(1, 2, 3))


@pytest.fixture
def measures():
    return Measures(lpips={"lpips_alex": MeanDistance()}, features={"inception": MeanFeatures()})


@pytest.fixture
def image_folder(tmp_path):
    """70 pictures of 32 pixels a side: two blocks and a part of a third."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(70):
        shade = generator.uniform(40, 210, 3)
        pixels = (shade + generator.normal(0, 15, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def source(image_folder):
    return FolderSource(image_folder)


def tiny_model(kind, seed=0, **changes):
    torch.manual_seed(seed)
    backbone = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "layers_per_block": 1,
        "mid_block_add_attention": False,
        **changes,
    }
    model = KLVAE(**backbone) if kind == "kl" else VQVAE(**backbone, num_vq_embeddings=16)
    return model.eval()


@pytest.fixture
def models():
    return {kind: tiny_model(kind) for kind in ("kl", "vq")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own, with nothing in it."""
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def trunk_files():
    """The trunks of LPIPS in the user's own cache; the first session ever fetches them (64 MB)."""
    for name in ("alex", "vgg"):
        load_trunk(name)
    return [path for path in map(trunk_path, ("alex", "vgg")) if path.is_file()]


@pytest.fixture
def own_cache_with_trunks(trunk_files, own_cache):
    own_cache.mkdir()
    for path in trunk_files:
        (own_cache / path.name).symlink_to(path)


@pytest.fixture
def one_thread():
    """Computes as processes do that are started with one thread, to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
