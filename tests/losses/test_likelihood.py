import math

import pytest
import torch
from torch.distributions import Laplace, Normal

from latentae.losses.likelihood import LIKELIHOODS, GaussianLikelihood, LaplaceLikelihood


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
