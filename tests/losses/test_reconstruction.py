import math

import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal

from latentae.losses.reconstruction import (
    LIKELIHOODS,
    GaussianLikelihood,
    LaplaceLikelihood,
    ReconstructionObjective,
    charbonnier,
    l1,
    l2,
)


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


@pytest.fixture
def pair():
    """Reconstructions and images [3, 2, 4, 5], float64."""
    return torch.rand(2, 3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_by_hand():
    images = torch.zeros(1, 1, 1, 2)
    reconstruction = torch.tensor([[1.0, -3.0]]).reshape(1, 1, 1, 2)
    # ½ (5/4 + log 4 + log 2π) and 2/2 + log 2 + log 2
    gaussian = GaussianLikelihood(math.log(4.0))(reconstruction, images)
    assert gaussian.item() == pytest.approx(0.5 * (1.25 + math.log(4) + math.log(2 * math.pi)))
    laplace = LaplaceLikelihood(math.log(2.0))(reconstruction, images)
    assert laplace.item() == pytest.approx(1 + 2 * math.log(2))


def test_equal_torch_distributions(pair):
    reconstruction, images = pair
    for likelihood, expected in [
        (GaussianLikelihood(-1.5), Normal(reconstruction, math.exp(-0.75))),
        (LaplaceLikelihood(-1.5), Laplace(reconstruction, math.exp(-1.5))),
    ]:
        actual = likelihood.double()(reconstruction, images)
        torch.testing.assert_close(actual, -expected.log_prob(images).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_densities_are_normalised(kind):
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    likelihood = LIKELIHOODS[kind](-0.7).double()
    nll = likelihood(torch.zeros(len(grid), 1, 1, 1, dtype=torch.float64), grid[:, None, None, None])
    assert torch.trapezoid((-nll).exp(), grid).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_scale_settles_at_the_mean_distance(pair, kind):
    likelihood = LIKELIHOODS[kind](-3.0).double()
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        likelihood(*pair).mean().backward()
        optimizer.step()
    optimum = likelihood.distance(*pair).mean().log()
    torch.testing.assert_close(likelihood.log_dispersion.data, optimum, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_gradients(pair, kind):
    likelihood = LIKELIHOODS[kind](-0.4).double()
    reconstruction, images = pair[:, :1, :, :2, :2]

    def nll(scale, values):
        return torch.func.functional_call(likelihood, {"log_dispersion": scale}, (values, images))

    assert torch.autograd.gradcheck(nll, (likelihood.log_dispersion, reconstruction.clone().requires_grad_()))


def test_a_fixed_scale_takes_no_gradient():
    assert not GaussianLikelihood(0.0, learned=False).log_dispersion.requires_grad
    assert LaplaceLikelihood().log_dispersion.requires_grad
    assert LaplaceLikelihood(-2.0, learned=False).state_dict()["log_dispersion"].item() == -2.0


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
