import pytest
import torch
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from latentae.quantizers.gradient import check_gradient, rotation, straight_through


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_latent():
    latents, codes = draw(5, 3).requires_grad_(), draw(5, 3, seed=1)
    weights = draw(5, 3, seed=2)
    result = straight_through(latents, codes)
    assert torch.equal(result, codes)
    assert torch.equal(torch.autograd.grad((result * weights).sum(), latents)[0], weights)


def test_rotation_turns_the_gradient_with_the_latent():
    # From along x to along y at half the length: what points along y comes back along x, halved, and what is
    # along x comes back along −y.
    latents = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    result = rotation(latents, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64))
    assert result.tolist() == [[0.0, 1.0, 0.0]]
    for along, expected in (([0.0, 1.0, 0.0], [0.5, 0.0, 0.0]), ([1.0, 0.0, 0.0], [0.0, -0.5, 0.0])):
        weights = torch.tensor([along], dtype=torch.float64)
        (gradient,) = torch.autograd.grad((result * weights).sum(), latents, retain_graph=True)
        torch.testing.assert_close(gradient, torch.tensor([expected], dtype=torch.float64))


def test_rotation_keeps_angles():
    latents, codes, weights = draw(20, 6).requires_grad_(), draw(20, 6, seed=1), draw(20, 6, seed=2)
    (gradient,) = torch.autograd.grad((rotation(latents, codes) * weights).sum(), latents)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(gradient, latents), cosine(weights, codes))
    ratio = codes.norm(dim=1) / latents.norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), weights.norm(dim=1) * ratio)


def test_rotation_equals_the_package():
    latents, codes, weights = draw(50, 8).requires_grad_(), draw(50, 8, seed=1), draw(50, 8, seed=2)
    ours, theirs = rotation(latents, codes), rotate_to(latents, codes)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((result * weights).sum(), latents)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_rotation_onto_the_opposite_and_of_nothing_is_finite():
    latents = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    result = rotation(latents, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert result.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    (gradient,) = torch.autograd.grad(result.sum(), latents)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("estimator", [straight_through, rotation])
def test_nan_stays_nan(estimator):
    result = estimator(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[1.0, 1.0]]))
    assert result.isnan().any()


def test_unknown_gradient():
    with pytest.raises(
        ValueError, match="gradient is 'gumbel', but must be one of straight_through, rotation"
    ):
        check_gradient("gumbel")
