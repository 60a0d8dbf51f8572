import math

import pytest
import torch

from latentae.evaluation.blocks import Block
from latentae.evaluation.measuring import Measures, reference_features
from latentae.evaluation.metrics import ssim, to_uint8
from latentae.evaluation.transparency import (
    composite_8_bit,
    feature_backgrounds,
    over_black_and_white,
    random_colours,
    transparent_psnr,
)


def flat(red, green, blue, alpha, count=1):
    """Images of one 8-bit colour, [count, 4, 16, 16] in [-1, 1]."""
    pixel = torch.tensor([red, green, blue, alpha]) / 127.5 - 1
    return pixel[None, :, None, None].expand(count, -1, 16, 16).clone()


def test_psnr_of_alpha_and_of_each_background():
    # Over black 200 · 51/255 = 40 and 100 · 51/255 = 20; over white 204 more.
    image, reconstruction = flat(200, 200, 200, 51), flat(100, 100, 100, 51)
    measured = {name: value.item() for name, value in transparent_psnr(reconstruction, image).items()}
    expected = 20 * math.log10(255 / 20)
    assert measured["alpha_psnr"] == 60.0
    for name in ("psnr", "psnr_black", "psnr_white"):
        assert measured[name] == pytest.approx(expected)
    assert measured["psnr_random"] == pytest.approx(expected, abs=0.5)  # by rounding


def test_an_error_of_alpha_depends_on_the_background():
    # White on white is not seen; over black it is 255 · (255 − 204)/255 = 51.
    image, reconstruction = flat(255, 255, 255, 255), flat(255, 255, 255, 204)
    measured = {name: value.item() for name, value in transparent_psnr(reconstruction, image).items()}
    ratio = 20 * math.log10(5)
    assert measured["alpha_psnr"] == measured["psnr_black"] == pytest.approx(ratio)
    assert measured["psnr_white"] == 60.0
    assert measured["psnr"] == pytest.approx((ratio + 60) / 2)


def test_hidden_colours_are_not_measured():
    image, other = flat(10, 20, 30, 0), flat(200, 100, 0, 0)
    assert all(value.item() == 60.0 for value in transparent_psnr(other, image).values())
    assert torch.equal(random_colours(image), random_colours(other))
    assert over_black_and_white(ssim, other, image).item() == pytest.approx(1.0)


def test_colours_belong_to_the_image_and_not_to_its_place():
    torch.manual_seed(0)
    images = torch.rand(30, 4, 4, 4) * 2 - 1
    colours, backgrounds = random_colours(images), feature_backgrounds(images)
    order = torch.randperm(30)
    assert torch.equal(random_colours(images[order]), colours[order])
    assert torch.equal(feature_backgrounds(images[order]), backgrounds[order])
    assert colours.abs().max() <= 1
    assert len(colours.unique(dim=0)) == 30
    kinds = [
        (backgrounds == -1).all(dim=1).sum(),
        (backgrounds == 1).all(dim=1).sum(),
        (backgrounds == colours).all(dim=1).sum(),
    ]
    assert sum(kinds) == 30
    assert min(kinds) >= 4


class MeanColour:
    """Features that are an image's mean colour."""

    name, identity, dimensions, smallest_side = "mean", "mean", 3, 1

    def __call__(self, images):
        assert images.shape[1] == 3
        return images.float().mean(dim=(2, 3))


def test_features_are_of_composites():
    torch.manual_seed(0)
    images = torch.rand(6, 4, 4, 4) * 2 - 1
    block = Block(0, indices=list(range(6)), images=[*to_uint8(images)])
    found = reference_features(block, MeanColour(), torch.device("cpu"), batch_size=4, alpha=True)
    expected = to_uint8(composite_8_bit(images, feature_backgrounds(images))).float().mean(dim=(2, 3))
    torch.testing.assert_close(found, expected)
    dropped = reference_features(block, MeanColour(), torch.device("cpu"))
    torch.testing.assert_close(dropped, to_uint8(images)[:, :3].float().mean(dim=(2, 3)))
    assert Measures().features == {}
