import torch
from vector_quantize_pytorch import LFQ

from latentae.quantizers import LookupFreeQuantizer
from tests.quantizers.conftest import draw


def test_values_and_gradients_equal_the_packages():
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
