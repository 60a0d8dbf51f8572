import math

import pytest
import torch
from torch import nn

from latentae.losses.likelihood import GaussianLikelihood, LaplaceLikelihood
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


def test_a_likelihood_in_the_place_of_a_distance():
    objective = ReconstructionObjective(
        LaplaceLikelihood(math.log(0.5)), perceptual=Double(), perceptual_weight=2
    )
    images, reconstruction = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.25)
    loss, terms = objective(reconstruction, images)
    # 0.25/½ + log ½ + log 2
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        {"reconstruction": 0.5, "absolute_error": 0.25, "log_scale": math.log(0.5), "perceptual": 0.5}
    )
    assert loss.item() == pytest.approx(0.5 + 2 * 0.5)
    loss.backward()
    # d/ds (|x − x̂|/e^s + s): the perceptual loss plays no part
    assert objective.reconstruction.log_dispersion.grad.item() == pytest.approx(1 - 0.5)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_scaled_perceptual_loss_is_latent_diffusions(weight):
    """ldm: Σ ((|x − x̂| + w·LPIPS)/e^s + s) / B, here divided by C·H·W and with Laplace's constant log 2."""
    generator = torch.Generator().manual_seed(0)
    images, reconstruction = torch.rand(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    reconstruction.requires_grad_()
    likelihood = LaplaceLikelihood(-0.7).double()
    objective = ReconstructionObjective(
        likelihood,
        reconstruction_weight=weight,
        perceptual=Double(),
        perceptual_weight=0.8,
        scale_perceptual=True,
    )
    loss, terms = objective(reconstruction, images)
    s = likelihood.log_dispersion
    distances = 0.8 * Double()(reconstruction, images)[:, None, None, None]
    ldm = (((images - reconstruction).abs() + distances) / s.exp() + s).sum() / 3
    expected = weight * (ldm / (2 * 4 * 4) + math.log(2))
    torch.testing.assert_close(loss, expected)
    inputs = [reconstruction, s]
    for actual, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(actual, wanted)
    parts = weight * terms["reconstruction"] + terms["perceptual_weight"] * terms["perceptual"]
    torch.testing.assert_close(parts, loss.detach())


@pytest.mark.parametrize(("reconstruction", "perceptual"), [(l1, Double()), (GaussianLikelihood(), None)])
def test_a_scaled_perceptual_loss_needs_both(reconstruction, perceptual):
    with pytest.raises(ValueError, match="scale_perceptual is true, which needs"):
        ReconstructionObjective(reconstruction, perceptual=perceptual, scale_perceptual=True)


def test_what_is_learned():
    def learned(reconstruction):
        objective = ReconstructionObjective(reconstruction, perceptual=nn.Linear(1, 1).requires_grad_(False))
        return [name for name, parameter in objective.named_parameters() if parameter.requires_grad]

    assert learned(GaussianLikelihood()) == ["reconstruction.log_dispersion"]
    assert learned(GaussianLikelihood(learned=False)) == learned(l2) == []
