import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from latentae.evaluation.metrics import to_uint8
from latentae.evaluation.protocol import PROTOCOLS, Protocol, protocol_called


@pytest.fixture
def picture():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (40, 61, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (33, 33), (25, 48)])
def test_imagenet_is_torchvisions_resize_and_center_crop(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = to_uint8(protocol_called("resize-24")(picture))
    theirs = transforms.Compose(
        [transforms.Resize(24, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(24)]
    )(Image.fromarray(picture))
    assert torch.equal(ours, torch.from_numpy(np.array(theirs)).permute(2, 0, 1))


def test_native_changes_nothing(picture):
    images = PROTOCOLS["native"](picture)
    assert images.shape == (3, 40, 61)
    assert torch.equal(to_uint8(images), torch.from_numpy(picture).permute(2, 0, 1))


def test_a_crop_is_central_and_unresized(picture):
    images = to_uint8(protocol_called("crop-20")(picture))
    assert torch.equal(images, torch.from_numpy(picture[10:30, 20:40]).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"40 x 61 is smaller than the crop of 50; use resize-50"):
        protocol_called("crop-50")(picture)


def test_a_resize_without_a_crop_keeps_the_aspect(picture):
    assert Protocol("mine", resize=20, crop=None)(picture).shape == (3, 20, 30)


def test_deep_images_are_put_on_the_8_bit_grid():
    deep = np.full((4, 4, 2), 0.123456, np.float32)
    value = PROTOCOLS["native"](deep)[0, 0, 0].item()
    assert (value + 1) * 127.5 == pytest.approx(31, abs=1e-4)


def test_the_description_holds_every_choice():
    assert PROTOCOLS["imagenet-256"].describe() == {
        "name": "imagenet-256",
        "resize": 256,
        "crop": 256,
        "interpolation": "bicubic, antialiased (Pillow)",
        "output": "clamped, rounded to 8 bits",
        "reference": "the same crops in 8 bits",
    }


@pytest.mark.parametrize("name", ["imagenet", "crop-", "crop-0", "resize--3", "side-4"])
def test_an_unknown_name(name):
    with pytest.raises(ValueError, match="crop-N or resize-N"):
        protocol_called(name)
