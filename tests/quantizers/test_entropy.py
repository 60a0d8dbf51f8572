import itertools
import math

import pytest
import torch

from latentae.quantizers.entropy import binary_entropies, softmax_entropies
from tests.quantizers.conftest import draw


def entropy(probabilities):
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)


def test_softmax_entropies_by_hand():
    # Choices (1/2, 1/2) and (1, 0), whose mean is (3/4, 1/4).
    logits = torch.tensor([[0.0, 0.0], [50.0, -50.0]], dtype=torch.float64)
    each, together = softmax_entropies(logits, across_ranks=False)
    assert each.item() == pytest.approx(math.log(2) / 2)
    assert together.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


@pytest.mark.parametrize("group_size", [1, 2, 3, 5, 8])
def test_binary_entropies_are_those_of_the_whole_table(group_size):
    latents = 0.02 * draw(40, 5, dtype=torch.float64)
    latents.requires_grad_()
    table = 0.7 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)), dtype=torch.float64)
    each, together = binary_entropies(latents, 0.7, 0.05, group_size, across_ranks=False)
    squares = (latents[:, None] - table).square().sum(dim=2)
    choices = (-squares / 0.05).softmax(dim=1)
    torch.testing.assert_close(each, entropy(choices).mean())
    if group_size >= 5:
        torch.testing.assert_close(together, entropy(choices.mean(dim=0)))
        expected = torch.autograd.grad(entropy(choices.mean(dim=0)), latents, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(together, latents)[0], expected)
    else:
        assert together > entropy(choices.mean(dim=0))  # groups that are taken for independent


def test_sure_choices_have_no_entropy_and_finite_gradients():
    latents = torch.tensor([[1e3, -1e3], [1e3, -1e3]], requires_grad=True)
    each, together = binary_entropies(latents, 1.0, 0.01, 2, across_ranks=False)
    assert (each.item(), together.item()) == (0.0, 0.0)
    (gradient,) = torch.autograd.grad(each - together, latents)
    assert gradient.isfinite().all()


def test_gradients_against_autograd_of_finite_differences():
    latents = 0.1 * draw(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: binary_entropies(x, 1.0, 0.3, 2, across_ranks=False), latents.requires_grad_()
    )
