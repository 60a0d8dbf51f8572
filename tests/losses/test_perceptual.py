import functools
import warnings
from typing import Any

import lpips
import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from latentae import winograd
from latentae.losses.perceptual import LPIPS, distance, distance_and_gradient, feature_distance

VGG_LAYERS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
VGG_LAYERS |= {14: (256, 256), 17: (256, 512), **dict.fromkeys((19, 21, 24, 26, 28), (512, 512))}


@pytest.fixture(scope="module")
def vgg_trunk() -> dict[str, Tensor]:
    """Random weights, scaled so that every layer's features keep their size."""
    generator = torch.Generator().manual_seed(0)
    trunk = {}
    for i, (inputs, outputs) in VGG_LAYERS.items():
        scale = (2 / (9 * inputs)) ** 0.5
        trunk[f"features.{i}.weight"] = scale * torch.randn(outputs, inputs, 3, 3, generator=generator)
        trunk[f"features.{i}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return trunk


@pytest.fixture(scope="module")
def alex(alexnet_trunk: dict[str, Tensor]) -> LPIPS:
    return LPIPS(alexnet_trunk, "alex")


def package_lpips(trunk: dict[str, Tensor], net: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The `lpips` package's own module, its random trunk replaced."""
    # Without these the 120 million weights of VGG16's classifier, which lpips throws away, are drawn first.
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)
    without_init = functools.partial(torchvision.models.vgg16, init_weights=False)
    monkeypatch.setattr(torchvision.models, "vgg16", without_init)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    keys = list(package.net.state_dict())
    package.net.load_state_dict({key: trunk["features." + key.split(".", 1)[1]] for key in keys})
    return package


def image_pair(
    channels: int = 3, size: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(2, channels, size, size, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    # Beyond [-1, 1] in places: the loss must not clamp.
    return (target + torch.tensor([0.1, 0.5]).view(2, 1, 1, 1) * noise).to(dtype), target.to(dtype)


@pytest.mark.parametrize("net", ["alex", "vgg"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_value_and_gradient_are_those_of_the_lpips_package(
    net: str, dtype: torch.dtype, tolerance: float, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = request.getfixturevalue("alexnet_trunk" if net == "alex" else "vgg_trunk")
    ours, package = LPIPS(trunk, net).to(dtype), package_lpips(trunk, net, monkeypatch).to(dtype)
    reconstruction, target = image_pair(dtype=dtype)
    reconstruction.requires_grad_()
    distance, expected = ours(reconstruction, target), package(reconstruction, target).flatten()
    (gradient,) = torch.autograd.grad(distance.sum(), reconstruction)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), reconstruction)
    assert distance.dtype == dtype
    assert distance.shape == (2,)
    assert (expected > 0.001).all()
    torch.testing.assert_close(distance, expected, rtol=0, atol=tolerance)
    scale = expected_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=2 * tolerance)


def test_features_that_are_zero_give_no_nan(alexnet_trunk: dict[str, Tensor]) -> None:
    silent = {name: torch.zeros_like(tensor) for name, tensor in alexnet_trunk.items()}
    reconstruction, target = image_pair()
    reconstruction.requires_grad_()
    distance = LPIPS(silent)(reconstruction, target)
    distance.sum().backward()
    assert distance.tolist() == [0.0, 0.0]
    assert reconstruction.grad.abs().max() == 0


def test_equal_images_have_no_distance_and_a_finite_gradient(alex: LPIPS) -> None:
    _, target = image_pair()
    reconstruction = target.clone().requires_grad_()
    distance = alex(reconstruction, target)
    distance.sum().backward()
    assert distance.tolist() == [0.0, 0.0]
    assert reconstruction.grad.abs().max() == 0


def test_a_step_along_the_gradient_brings_the_images_closer(alex: LPIPS) -> None:
    reconstruction, target = image_pair()
    reconstruction.requires_grad_()
    before = alex(reconstruction, target)
    (gradient,) = torch.autograd.grad(before.sum(), reconstruction)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    assert (alex(reconstruction - gradient, target) < before).all()


def test_it_is_frozen_and_never_in_training_mode(alexnet_trunk: dict[str, Tensor]) -> None:
    module = nn.Sequential(LPIPS(alexnet_trunk))
    module.train()
    assert not any(child.training for child in module[0].modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_building_it_is_silent_and_draws_no_random_numbers(
    alexnet_trunk: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LPIPS(alexnet_trunk)
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr() == ("", "")


def test_it_keeps_its_own_copy_of_the_trunk(alexnet_trunk: dict[str, Tensor]) -> None:
    trunk = {name: tensor.clone() for name, tensor in alexnet_trunk.items()}
    module, images = LPIPS(trunk), image_pair()
    before = module(*images)
    for tensor in trunk.values():
        tensor.zero_()
    assert torch.equal(module(*images), before)


def test_half_precision_inputs_and_autocast_are_computed_in_float32(alex: LPIPS) -> None:
    reconstruction, target = (images.bfloat16() for images in image_pair())
    expected = alex(reconstruction.float(), target.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = alex(reconstruction.requires_grad_(), target)
        distance.sum().backward()
    assert distance.dtype == torch.float32
    assert torch.equal(distance, expected)
    assert reconstruction.grad.dtype == torch.bfloat16
    assert reconstruction.grad.abs().max() > 0


def test_one_channel_is_grey_and_two_are_two_grey_images(alex: LPIPS) -> None:
    reconstruction, target = image_pair(channels=2)
    first, second = (alex(reconstruction[:, [c, c, c]], target[:, [c, c, c]]) for c in range(2))
    torch.testing.assert_close(alex(reconstruction[:, :1], target[:, :1]), first)
    torch.testing.assert_close(alex(reconstruction, target), (first + second) / 2)


@pytest.mark.parametrize(
    ("channels", "triples"), [(4, [0, 1]), (5, [0, 2]), (6, [0, 3]), (8, [0, 2, 5]), (9, [0, 3, 6])]
)
def test_more_channels_are_the_mean_of_their_triples(alex: LPIPS, channels: int, triples: list[int]) -> None:
    reconstruction, target = image_pair(channels, size=32)
    parts = [alex(reconstruction[:, k : k + 3], target[:, k : k + 3]) for k in triples]
    torch.testing.assert_close(alex(reconstruction, target), torch.stack(parts).mean(dim=0))


@pytest.mark.parametrize(("net", "minimum"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_size_is_named(net: str, minimum: int, request: Any) -> None:
    trunk = request.getfixturevalue("alexnet_trunk" if net == "alex" else "vgg_trunk")
    module = LPIPS(trunk, net)
    reconstruction, target = image_pair(size=minimum)
    assert module(reconstruction, target).isfinite().all()
    with pytest.raises(ValueError, match=rf"{minimum - 1} x {minimum}: LPIPS on '{net}' needs .* {minimum}"):
        module(reconstruction[:, :, 1:], target[:, :, 1:])
    # One pixel less would in fact not do.
    with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
        nn.Sequential(*module.slices)(reconstruction[:, :, 1:])


def test_what_it_cannot_compare_is_refused(alex: LPIPS) -> None:
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"shapes \(1, 3, 32, 32\) and \(1, 1, 32, 32\)"):
        alex(images, images[:, :1])
    with pytest.raises(ValueError, match=r"shapes \(3, 32, 32\)"):
        alex(images[0], images[0])
    with pytest.raises(ValueError, match=r"shapes \(0, 3, 32, 32\)"):
        alex(images[:0], images[:0])
    with pytest.raises(ValueError, match=r"torch.uint8"):
        alex(images, images.byte())
    with pytest.raises(ValueError, match="detach the target"):
        alex(images, images.clone().requires_grad_())


def test_a_cast_to_half_precision_is_refused(alexnet_trunk: dict[str, Tensor]) -> None:
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"cast to torch.bfloat16: keep it in float32"):
        LPIPS(alexnet_trunk).bfloat16()(images, images)


def test_another_trunk_is_refused(alexnet_trunk: dict[str, Tensor], vgg_trunk: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"net is 'squeeze': choose one of alex, vgg"):
        LPIPS(alexnet_trunk, "squeeze")
    with pytest.raises(ValueError, match=r"not hold the convolutions of net='alex'.*load_trunk\('alex'\)"):
        LPIPS(vgg_trunk, "alex")
    with pytest.raises(ValueError, match=r"convolutions of net='vgg'"):
        LPIPS({name: tensor for name, tensor in vgg_trunk.items() if name != "features.28.bias"}, "vgg")


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_in_chunks_value_and_gradient_are_the_same(alexnet_trunk: dict[str, Tensor], channels: int) -> None:
    whole, chunked = (LPIPS(alexnet_trunk, chunk=chunk).double() for chunk in (None, 2))
    images = torch.rand(2, 5, channels, 32, 40, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    target, reconstruction = images[0], images[1].requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5]).double()
    results = [(module(reconstruction, target) * weights) for module in (whole, chunked)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    expected, found = (torch.autograd.grad(result.sum(), reconstruction)[0] for result in results)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(chunked(reconstruction, target), whole(reconstruction, target))


def test_only_a_gradient_is_kept(alexnet_trunk: dict[str, Tensor]) -> None:
    reconstruction, target = image_pair()
    reconstruction.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.shape) or saved, lambda x: x
    ):
        kept: list[torch.Size] = []
        LPIPS(alexnet_trunk)(reconstruction, target)
    assert [shape for shape in kept if shape.numel() > 3] == [reconstruction.shape]


def test_a_chunk_of_no_images_is_refused(alexnet_trunk: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="chunk is 0: give a positive number of images"):
        LPIPS(alexnet_trunk, chunk=0)


def test_in_bfloat16_value_and_gradient_are_near_those_in_float32(alexnet_trunk: dict[str, Tensor]) -> None:
    reconstruction, target = image_pair()
    results = []
    for precision in ("float32", "bfloat16"):
        module = LPIPS(alexnet_trunk, precision=precision)
        leaf = reconstruction.clone().requires_grad_()
        distance = module(leaf, target)
        assert distance.dtype == torch.float32
        results.append((distance.detach(), torch.autograd.grad(distance.sum(), leaf)[0].flatten(1)))
    (expected, expected_gradient), (found, gradient) = results
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.002)
    assert (torch.nn.functional.cosine_similarity(gradient, expected_gradient) > 0.95).all()
    assert not torch.equal(found, expected)  # or it would not be computed in bfloat16


def test_an_unknown_precision_is_refused(alexnet_trunk: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="precision is 'float16': choose one of float32, bfloat16"):
        LPIPS(alexnet_trunk, precision="float16")


def network() -> list[nn.Sequential]:
    """All that a network may have: strides, overlapping windows, features before both."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            nn.Sequential(nn.Conv2d(3, 4, 5, stride=2, padding=1), nn.ReLU()),
            nn.Sequential(
                nn.MaxPool2d(3, 2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()
            ),
            nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU()),
        ]


def by_autograd(slices: list[nn.Sequential], heads: list[Tensor], images: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros(len(images), dtype=images.dtype)
    for layers, head in zip(slices, heads, strict=True):
        images, target = layers(images), layers(target)
        units = [features / (features.norm(dim=1, keepdim=True) + 1e-10) for features in (images, target)]
        total = total + (head[:, None, None] * (units[0] - units[1]) ** 2).sum(dim=1).mean(dim=(1, 2))
    return total


def test_distance_and_gradient_are_autograds() -> None:
    slices = [layers.double().requires_grad_(False) for layers in network()]
    generator = torch.Generator().manual_seed(1)
    heads = [torch.rand(channels, generator=generator).double() for channels in (4, 6, 5)]
    images, target = torch.randn(2, 2, 3, 21, 26, generator=generator).double()
    leaf = images.clone().requires_grad_()
    expected = by_autograd(slices, heads, leaf, target)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    value, gradient = distance_and_gradient(slices, heads, images, target)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-14)
    assert torch.equal(distance(slices, heads, images, target), value)


def test_the_derivative_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    features, direction = torch.randn(2, 2, 5, 3, 4, generator=generator, dtype=torch.float64)
    head = torch.rand(5, generator=generator, dtype=torch.float64)
    features.relu_().requires_grad_()
    unit = features / features.norm(dim=1, keepdim=True)
    expected = (head[:, None, None] * (unit - direction) ** 2).sum(dim=1).mean(dim=(1, 2))
    (slope,) = torch.autograd.grad(expected.sum(), features)
    features = features.detach()
    distance, differentiate = feature_distance(features, direction, head)
    torch.testing.assert_close(distance, expected)
    assert (features == 0).any()  # where the derivative of the ReLU before takes part
    torch.testing.assert_close(differentiate(), slope * (features > 0), rtol=0, atol=2e-6)


def test_where_nothing_is_seen_the_derivative_is_zero() -> None:
    _, differentiate = feature_distance(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), torch.ones(2))
    assert differentiate().flatten().tolist() == [0.0, 0.0]


def test_a_network_of_other_layers_is_refused() -> None:
    slices = [nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sigmoid())]
    with pytest.raises(TypeError, match="the network has a Sigmoid: give convolutions, ReLUs"):
        distance_and_gradient(slices, [torch.ones(2)], *torch.rand(2, 1, 3, 4, 4))


@pytest.mark.parametrize("size", [32, 33])
def test_fewer_multiplications_give_the_same_values_and_gradients(vgg_trunk, size, monkeypatch):
    monkeypatch.setattr(winograd, "_LEAST_TILES", 1)
    direct, fewer = LPIPS(vgg_trunk, "vgg").double(), LPIPS(vgg_trunk, "vgg").double()
    assert fewer.use_winograd() == 10  # of 13: those from 128 channels on
    assert fewer.use_winograd() == 0  # already
    images, target = image_pair(size=size, dtype=torch.float64)
    found = []
    for lpips_ in (direct, fewer):
        inputs = images.clone().requires_grad_()
        value = lpips_(inputs, target)
        found.append((value, *torch.autograd.grad(value.sum(), inputs), lpips_(images, target)))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12 * expected.abs().max().item())
    assert direct.state_dict().keys() == fewer.state_dict().keys()


def test_alexnet_has_convolutions_that_gain_too(alexnet_trunk):
    assert LPIPS(alexnet_trunk, "alex").use_winograd() == 3
