import pytest
import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from latentae.losses.feature_maps import ConvolutionalLayers, TransformerLayers
from tests.losses.test_perceptual import image_pair, package_lpips


def test_the_last_four_layers_of_lpips(alexnet_trunk, monkeypatch):
    """Its own package gives the same features, of images normalised as there."""
    network = ConvolutionalLayers(alexnet_trunk, "alex")
    images, _ = image_pair()
    package = package_lpips(alexnet_trunk, "alex", monkeypatch)
    with torch.no_grad():
        expected = package.net(package.scaling_layer(images))[1:]
        found = network(images)
    assert [tuple(each.shape[1:]) for each in found] == [(192, 7, 7), (384, 3, 3), (256, 3, 3), (256, 3, 3)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)  # it rounds the mean and deviation
    assert network.channels == (192, 384, 256, 256)
    assert network.windows == (((3, 2),), (), (), ())


def test_the_windows_lead_to_the_deepest_grid(alexnet_trunk):
    network = ConvolutionalLayers(alexnet_trunk, "alex")
    for side in (31, 40, 64, 75):
        grids = [each.shape[-1] for each in network(torch.zeros(1, 3, side, side))]
        for grid, windows in zip(grids, network.windows, strict=True):
            for size, stride in windows:
                grid = (grid - size) // stride + 1
            assert grid == grids[-1]


def test_gradients_reach_the_images_and_no_weight(alexnet_trunk):
    network = ConvolutionalLayers(alexnet_trunk, "alex").train()
    assert not network.training
    images = torch.rand(1, 3, 40, 40, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images)[-1].square().sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_other_weights_are_refused(alexnet_trunk):
    with pytest.raises(ValueError, match="net is 'vgg16'"):
        ConvolutionalLayers(alexnet_trunk, "vgg16")
    with pytest.raises(ValueError, match=r"not hold the convolutions of net='vgg'.*load_trunk\('vgg'\)"):
        ConvolutionalLayers(alexnet_trunk, "vgg")


@pytest.fixture
def transformer() -> Dinov2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    return Dinov2Model(Dinov2Config(**sizes, image_size=8, patch_size=2))


def test_the_blocks_of_a_transformer(transformer):
    network = TransformerLayers(transformer)
    assert (network.blocks, network.channels) == ((1, 2, 3, 4), (16,) * 4)
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    seen: list[Tensor] = []
    transformer.encoder.layer[1].register_forward_hook(lambda layer, given, output: seen.append(output))
    features = network(images)
    assert [tuple(each.shape) for each in features] == [(2, 16, 4, 6)] * 4
    torch.testing.assert_close(features[1][1, :, 3, 2], seen[0][1, 1 + 3 * 6 + 2])


@pytest.mark.parametrize(("sides", "grid"), [((7, 3), (4, 2)), ((64, 32), (16, 8)), ((1, 1), (1, 1))])
def test_images_are_resized_to_whole_patches(transformer, sides, grid):
    (features, *_) = TransformerLayers(transformer)(torch.zeros(1, 3, *sides))
    assert tuple(features.shape[-2:]) == grid


def test_the_first_dino_takes_images_of_any_size():
    """It refuses them unless it is told to interpolate, and its files hold no pooler."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    network = TransformerLayers(ViTModel(ViTConfig(**sizes, image_size=8, patch_size=2)))
    assert [tuple(each.shape) for each in network(torch.zeros(1, 3, 12, 16))] == [(1, 16, 6, 8)] * 4
    assert not any("pooler" in name for name in network.state_dict())


def test_a_transformer_can_be_differentiated_twice(transformer):
    network = TransformerLayers(transformer)
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images)[-1].square().sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad.abs().sum() > 0


def test_shallow_transformers_have_fewer_layers(transformer):
    transformer.config.num_hidden_layers = 2
    network = TransformerLayers(transformer)
    assert (network.blocks, len(network.windows)) == ((1, 2), 2)


def test_a_model_without_patches():
    class Other(nn.Module):
        config = object()

    with pytest.raises(ValueError, match="Other has no square patches"):
        TransformerLayers(Other())
