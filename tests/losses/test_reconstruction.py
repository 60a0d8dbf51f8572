import pytest
import torch

from latentae.losses.reconstruction import charbonnier, l1, l2


def test_means_per_image_by_hand():
    images = torch.zeros(2, 1, 1, 2)
    reconstruction = torch.tensor([[1.0, -3.0], [0.5, 0.5]]).reshape(2, 1, 1, 2)
    assert l1(reconstruction, images).tolist() == [2.0, 0.5]
    assert l2(reconstruction, images).tolist() == [5.0, 0.25]
    # √(1 + 0.75²) = 1.25 and √(9 + 0.75²); √(0.25 + 0.75²) = 0.9014
    expected = [(1.25 + 9.5625**0.5) / 2, 0.8125**0.5]
    assert charbonnier(reconstruction, images, epsilon=0.75).tolist() == pytest.approx(expected)


def test_charbonnier_has_a_gradient_at_a_perfect_reconstruction():
    reconstruction = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss = charbonnier(reconstruction, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(1e-3)
    assert reconstruction.grad.eq(0).all()


def test_charbonnier_is_nearly_l1_far_from_zero():
    images, reconstruction = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), -0.5)
    assert charbonnier(reconstruction, images).item() == pytest.approx(0.5, abs=1e-5)
