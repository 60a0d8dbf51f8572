import itertools
import math

import pytest
import torch

from latentae.latents.inspection.decoding import angle_between, interpolate, joined, slerp
from tests.latents.conftest import draw_tensors

QUARTERS = torch.linspace(0, 1, 5)


def test_a_quarter_circle_by_hand():
    points = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), QUARTERS)
    angles = QUARTERS.double() * math.pi / 2
    torch.testing.assert_close(points, torch.stack([angles.cos(), angles.sin()], dim=1))


def test_norms_and_steps_are_kept_on_the_sphere():
    a, b = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    a, b = 7 * a / a.norm(), 7 * b / b.norm()
    points = slerp(a, b, torch.linspace(0, 1, 9))
    torch.testing.assert_close(points.flatten(1).norm(dim=1), torch.full((9,), 7.0).double())
    steps = [angle_between(one, other) for one, other in itertools.pairwise(points)]
    assert steps == pytest.approx([angle_between(a, b) / 8] * 8, rel=1e-6)
    assert ((a + b) / 2).norm() < 6  # the straight line passes nearer


def test_ends_are_kept_where_norms_differ():
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    points = slerp(a, b, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(points, torch.stack([a, b]).double())


def test_without_an_angle_it_is_the_straight_line():
    a = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(slerp(a, 3 * a, QUARTERS)[2], 2 * a.double())
    torch.testing.assert_close(slerp(a, 0 * a, QUARTERS)[2], a.double() / 2)


def test_opposite_ends_and_other_shapes_are_refused():
    a = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="opposite directions"):
        slerp(a, -a, QUARTERS)
    with pytest.raises(ValueError, match=r"one end is \[2\], the other \[3\]"):
        slerp(a, torch.zeros(3), QUARTERS)


def test_ends_are_the_reconstructions(kl):
    images = draw_tensors(4)
    with torch.no_grad():
        latents, expected = kl.encode(images).latents, kl(images).sample
    centre = latents.mean(dim=(0, 2, 3))
    found = interpolate(kl, latents[:2], latents[2:], steps=5, centre=centre, size=(16, 16))
    assert found.images.shape == (2, 5, 3, 16, 16)
    torch.testing.assert_close(found.images[:, 0], expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.images[:, -1], expected[2:], rtol=0, atol=1e-5)
    moved = (latents[0].double() - centre[:, None, None]).norm()
    assert found.norms[0, 0].item() == pytest.approx(moved.item(), rel=1e-5)


def test_noises_decode_too_and_batches_do_not_matter(vq):
    noise = torch.randn(2, 1, 4, 8, 8, generator=torch.manual_seed(0))
    one, other = (interpolate(vq, *noise, steps=3, batch_size=size) for size in (1, 3))
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-5)
    both = joined([one, other])
    assert both.images.shape == (2, 3, 3, 16, 16)
    assert both.angles.tolist() == one.angles.tolist() * 2
    assert both.numbers()["weights"] == [0, 0.5, 1]
    assert both.figure().picture.shape[2] == 3


def test_bad_arguments_are_refused(kl):
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="steps is 1"):
        interpolate(kl, latents, latents, steps=1)
    with pytest.raises(ValueError, match=r"must both be \[B, c, h, w\]"):
        interpolate(kl, latents[0], latents[0])
