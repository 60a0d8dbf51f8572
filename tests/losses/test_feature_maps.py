from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import vgg16
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from latentae.losses.feature_maps import VGG16Maps, ViTMaps, resize


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


def dinov2():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Dinov2Model(Dinov2Config(**sizes, image_size=16, patch_size=2))


def test_bfloat16_is_what_autocast_comes_to(images):
    """Weights are held in it once; what autocast leaves in float32 stays there."""
    exact = ViTMaps(dinov2())
    expected = exact(images, (8, 12))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        autocast = exact.features(images, (8, 12)).float()
    network, seen = ViTMaps(dinov2(), "bfloat16"), []
    for name in ("encoder.layer.0.mlp.fc1", "encoder.layer.0.norm1"):
        network.model.get_submodule(name).register_forward_hook(
            lambda _, __, output: seen.append(output.dtype)
        )
    features = network(images, (8, 12))
    assert seen == [torch.float32, torch.bfloat16]
    assert features.dtype == torch.float32
    assert torch.equal(features, autocast)
    assert 0 < (features - expected).norm() < 0.02 * expected.norm()
    dtypes = {
        type(layer).__name__: layer.weight.dtype for layer in network.modules() if hasattr(layer, "weight")
    }
    assert dtypes == {"Conv2d": torch.bfloat16, "Linear": torch.bfloat16, "LayerNorm": torch.float32}


def test_the_first_dino_takes_images_of_any_size(images):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = ViTMaps(ViTModel(ViTConfig(**sizes, image_size=8, patch_size=2)))
    assert tuple(network(images, (8, 12)).shape[1:]) == (16, 8, 12)


def test_float32_is_float32_under_autocast(images):
    network = ViTMaps(dinov2())
    with torch.autocast("cpu", torch.bfloat16):
        features = network(images, (8, 12))
    assert torch.equal(features, network(images, (8, 12)))


def test_the_classifier_in_bfloat16(classifier, images):
    trunk = {f"features.{name}": value for name, value in classifier.state_dict().items()}
    expected, features = (
        VGG16Maps(trunk, 8, precision)(images, (4, 6)) for precision in ("float32", "bfloat16")
    )
    assert features.dtype == torch.float32
    assert 0 < (features - expected).norm() < 0.02 * expected.norm()
    assert classifier[0].weight.dtype == torch.float32


def test_no_such_precision(classifier):
    trunk = {f"features.{name}": value for name, value in classifier.state_dict().items()}
    with pytest.raises(ValueError, match="'float16': choose one of float32, bfloat16"):
        VGG16Maps(trunk, 8, "float16")
