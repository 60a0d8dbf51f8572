import itertools
import math

import pytest
import torch

from latentae.models.interpolation import angle_between, slerp, slerp_or_lerp

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


def test_between_opposite_ends_the_line_is_straight_on_request():
    a = torch.tensor([1.0, 2.0])
    points = slerp_or_lerp(a, -3 * a, QUARTERS)
    assert (points[2].tolist(), points[4].tolist()) == ([-1, -2], [-3, -6])
    assert torch.equal(slerp_or_lerp(a, a.flip(0), QUARTERS), slerp(a, a.flip(0), QUARTERS))
