import pytest
import torch
from torch import nn

from latentae.losses.objective import ReconstructionObjective
from latentae.losses.reconstruction import l1, l2


class Double(nn.Module):
    def forward(self, reconstruction, images):
        return 2 * (reconstruction - images).mean(dim=(1, 2, 3))


def test_weighted_sum_by_hand():
    objective = ReconstructionObjective(
        l1, reconstruction_weight=3.0, perceptual=Double(), perceptual_weight=0.5
    )
    images = torch.zeros(2, 1, 2, 2)
    reconstruction = torch.full_like(images, 0.25, requires_grad=True)
    loss, terms = objective(reconstruction, images)
    assert loss.item() == pytest.approx(3 * 0.25 + 0.5 * 0.5)
    assert {name: value.item() for name, value in terms.items()} == {
        "reconstruction": 0.25,
        "perceptual": 0.5,
    }
    loss.backward()
    # 8 values: each contributes 3/8 from the L1 term and 0.5 · 2/8 from the perceptual one.
    assert reconstruction.grad.unique().tolist() == pytest.approx([3 / 8 + 1 / 8])


def test_without_a_perceptual_term():
    loss, terms = ReconstructionObjective(l2)(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert loss.item() == 1.0
    assert set(terms) == {"reconstruction"}
