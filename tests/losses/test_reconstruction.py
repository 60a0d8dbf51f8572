import torch

from latentae.losses.reconstruction import l1, l2


def test_means_per_image_by_hand():
    images = torch.zeros(2, 1, 1, 2)
    reconstruction = torch.tensor([[1.0, -3.0], [0.5, 0.5]]).reshape(2, 1, 1, 2)
    assert l1(reconstruction, images).tolist() == [2.0, 0.5]
    assert l2(reconstruction, images).tolist() == [5.0, 0.25]
