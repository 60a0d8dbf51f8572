import itertools
import math

import pytest
import torch
from vector_quantize_pytorch import LFQ

from latentae.quantizers import BinarySphericalQuantizer, LookupFreeQuantizer
from latentae.quantizers.binary import BinaryQuantizer
from latentae.quantizers.entropy import binary_entropies, softmax_entropies
from tests.quantizers.conftest import draw

DEFAULTS = {
    "magnitude": 1.0,
    "commitment_weight": 0.25,
    "entropy_weight": 0.1,
    "diversity_weight": 1.0,
    "temperature": 0.01,
    "entropy_group_size": 10,
}


def test_the_first_channel_is_the_lowest_bit():
    quantizer = BinaryQuantizer(3, **{**DEFAULTS, "magnitude": 0.5})
    latents = torch.tensor([[2.0, -1.0, -1.0], [-0.1, 3.0, 0.2], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 3)
    output = quantizer(latents)
    assert output.indices.tolist() == [[[1, 6, 0]]]
    assert output.quantized[0, :, 0].T.tolist() == [[0.5, -0.5, -0.5], [-0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]]
    assert quantizer.codes(torch.tensor([[[5]]])).flatten().tolist() == [0.5, -0.5, 0.5]


def test_losses_by_hand():
    quantizer = BinaryQuantizer(
        2, **{**DEFAULTS, "entropy_weight": 3.0, "diversity_weight": 0.5, "temperature": 1.0}
    )
    latents = torch.tensor([0.25, -0.25, 0.25, 0.25]).reshape(1, 2, 1, 2)
    losses = quantizer(latents).losses
    assert losses["commitment"].item() == pytest.approx(0.25 * 0.75**2)
    plus = torch.sigmoid(torch.tensor(4 * 0.25))
    bit = -(plus * plus.log() + (1 - plus) * (1 - plus).log())
    # The first bit differs between the two latents, so its mean is even; the second is the same in both.
    expected = 3.0 * (2 * bit - 0.5 * (torch.tensor(2.0).log() + bit))
    torch.testing.assert_close(losses["entropy"], expected)


def test_terms_of_no_weight_are_left_out():
    quantizer = BinaryQuantizer(2, **{**DEFAULTS, "entropy_weight": 0.0, "commitment_weight": 0.0})
    assert quantizer(torch.ones(1, 2, 1, 1)).losses == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "bits is 0"),
        ({"bits": 21}, "bits is 21, but at most 20 .* grouped"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"entropy_weight": -1.0}, r"entropy_weight is -1\.0"),
        ({"entropy_group_size": 0}, "entropy_group_size is 0"),
    ],
)
def test_impossible_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        BinaryQuantizer(**{"bits": 4, **DEFAULTS, **changes})


def test_lfq_equals_the_package():
    ours = LookupFreeQuantizer(6, entropy_weight=0.2, diversity_weight=0.7, temperature=0.1).double().train()
    theirs = (
        LFQ(
            dim=6,
            codebook_size=64,
            entropy_loss_weight=0.2,
            diversity_gamma=0.7,
            commitment_loss_weight=0.25,
            force_quantization_f32=False,
        )
        .double()
        .train()
    )
    # Not so sure that the package's clamp of probabilities at 1e-5 would show.
    latents = 0.02 * draw(2, 6, 8, 8, dtype=torch.float64)
    latents.requires_grad_()
    weights = draw(2, 6, 8, 8, seed=1, dtype=torch.float64)
    output = ours(latents)
    quantized, indices, loss = theirs(latents, inv_temperature=10.0)
    torch.testing.assert_close(output.quantized, quantized)
    torch.testing.assert_close(output.loss, loss)
    gradients = [
        torch.autograd.grad(total + (values * weights).sum(), latents)[0]
        for total, values in ((output.loss, output.quantized), (loss, quantized))
    ]
    torch.testing.assert_close(*gradients)
    # The package counts bits from the other end, and not as the paper does.
    reversed_bits = sum(((output.indices >> bit) & 1) << (5 - bit) for bit in range(6))
    assert torch.equal(reversed_bits, indices.long())


def test_the_codes_are_plus_and_minus_one():
    quantizer = LookupFreeQuantizer(18)
    assert (quantizer.num_codes, quantizer.code_dim) == (262144, 18)
    assert quantizer(draw(1, 18, 2, 2)).quantized.abs().unique().tolist() == [1.0]


def test_bsq_equals_the_package():
    ours = BinarySphericalQuantizer(6, commitment_weight=0.25, temperature=0.5).double().train()
    theirs = (
        LFQ(
            dim=6,
            codebook_size=64,
            entropy_loss_weight=0.1,
            commitment_loss_weight=0.25,
            spherical=True,
            force_quantization_f32=False,
        )
        .double()
        .train()
    )
    latents = draw(2, 6, 8, 8, dtype=torch.float64).requires_grad_()
    weights = draw(2, 6, 8, 8, seed=1, dtype=torch.float64)
    output = ours(latents)
    quantized, _, loss = theirs(latents, inv_temperature=2.0)
    torch.testing.assert_close(output.quantized, quantized)
    torch.testing.assert_close(output.loss, loss)
    gradients = [
        torch.autograd.grad(total + (values * weights).sum(), latents)[0]
        for total, values in ((output.loss, output.quantized), (loss, quantized))
    ]
    torch.testing.assert_close(*gradients)


def test_codes_lie_on_the_unit_sphere_wherever_latents_do():
    quantizer = BinarySphericalQuantizer(9)
    codes = quantizer(100 * draw(1, 9, 4, 4)).quantized
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(1, 4, 4))
    assert codes.abs().unique().tolist() == pytest.approx([1 / 3])


def test_impossible_bits():
    with pytest.raises(ValueError, match="bits is 0"):
        BinarySphericalQuantizer(0)


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
