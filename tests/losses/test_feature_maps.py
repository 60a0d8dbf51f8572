from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from latentae.losses.feature_maps import VGG16Maps, ViTMaps
from latentae.losses.resizing import resize


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return vgg16(weights=None).features


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("factor", "layers", "channels", "grid"),
    [(4, 16, 256, (8, 12)), (8, 23, 512, (4, 6)), (32, 30, 512, (2, 3))],
)
def test_the_stage_that_fits_the_latents(classifier, images, factor, layers, channels, grid):
    trunk = {f"features.{name}": value for name, value in classifier.state_dict().items()}
    network = VGG16Maps(trunk, factor)
    assert network.channels == channels
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = classifier[:layers](((images + 1) / 2 - mean) / std)
    assert expected.shape[-2:] == grid
    torch.testing.assert_close(network(images, grid), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(network(images, (3, 3)), resize(network(images, grid), (3, 3)))


class Patches(nn.Module):
    """Means of patches, after a class token and two registers."""

    config = SimpleNamespace(patch_size=2, hidden_size=3)

    def forward(self, pixel_values):
        tokens = nn.functional.avg_pool2d(pixel_values, 2).flatten(2).transpose(1, 2)
        first = tokens.new_full((len(tokens), 3, 3), 99.0)
        return SimpleNamespace(last_hidden_state=torch.cat([first, tokens], dim=1))


def test_patches_coincide_with_latents():
    network = ViTMaps(Patches())
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pooled = nn.functional.avg_pool2d(network.normalised(images), 2)
    torch.testing.assert_close(network(images, (4, 6)), pooled)


def test_a_large_grid_is_interpolated():
    network, seen = ViTMaps(Patches()), []
    network.model.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["pixel_values"].shape), with_kwargs=True
    )
    assert network(torch.rand(1, 3, 64, 128), (32, 64)).shape == (1, 3, 32, 64)
    assert seen == [(1, 3, 16, 32)]


def test_frozen_in_evaluation_mode(images):
    model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
    model.config = SimpleNamespace(patch_size=14, hidden_size=8)
    network = ViTMaps(model)
    assert not network.train().training
    assert not model[0].training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.state_dict().keys() - {f"model.1.{name}" for name in ("weight", "bias")}


def test_a_model_without_patches():
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(hidden_size=8)
    with pytest.raises(ValueError, match="Linear has no square patches: give a vision transformer"):
        ViTMaps(model)
