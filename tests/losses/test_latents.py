from collections import Counter

import pytest
import torch

from latentae.losses.latents import Equivariance, Transform


def draws(equivariance, count=4000):
    generator = torch.Generator().manual_seed(0)
    return [equivariance.draw(generator) for _ in range(count)]


def test_a_quarter_turn_by_hand():
    latents = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert Transform(1.0, 1).latents(latents).flatten().tolist() == [1, 3, 0, 2]
    pixels = latents.repeat_interleave(2, 2).repeat_interleave(2, 3)
    turned = Transform(1.0, 1).images(pixels, 2)
    assert torch.equal(
        turned, Transform(1.0, 1).latents(latents).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


@pytest.mark.parametrize(
    ("scale", "turns", "size"),
    [(0.5, 0, (4, 6)), (0.5, 1, (6, 4)), (0.3, 2, (2, 4)), (0.01, 3, (1, 1)), (0.99, 0, (8, 12))],
)
def test_images_are_as_large_as_latents_decode_to(scale, turns, size):
    transform = Transform(scale, turns)
    assert transform.latents(torch.rand(2, 4, 8, 12)).shape == (2, 4, *size)
    assert transform.images(torch.rand(2, 3, 32, 48), 4).shape == (2, 3, size[0] * 4, size[1] * 4)


def test_half_scale_by_hand():
    """Means with weights 1, 3, 3, 1 along each side; a checkerboard becomes grey."""
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).double()[None, None]
    halved = Transform(0.5).latents(board)
    torch.testing.assert_close(halved[..., 1:-1, 1:-1], torch.full((1, 1, 2, 2), 0.5).double())


def test_how_often():
    seen = draws(Equivariance(probability=0.5, low_resolution_probability=0.25))
    plain = sum(draw is None for draw in seen)
    before = sum(draw is not None and draw.before_encoding for draw in seen)
    # Within four standard deviations of shares 3/8 and 1/8.
    assert abs(plain / 4000 - 0.375) < 0.031
    assert abs(before / 4000 - 0.125) < 0.021


def test_which():
    transforms = [draw.transform for draw in draws(Equivariance(1.0, min_scale=0.25))]
    turns = Counter(transform.quarter_turns for transform in transforms)
    assert set(turns) == {1, 2, 3}
    assert min(turns.values()) > 1200
    scales = torch.tensor([transform.scale for transform in transforms])
    assert 0.25 <= scales.min() < 0.26
    assert 0.99 < scales.max() < 1
    assert scales.mean().item() == pytest.approx(0.625, abs=0.014)


def test_without_turns_and_without_small_images():
    seen = draws(Equivariance(0.5, rotate=False, low_resolution_probability=0.0), 200)
    assert {draw.transform.quarter_turns for draw in seen if draw is not None} == {0}
    assert not any(draw.before_encoding for draw in seen if draw is not None)
