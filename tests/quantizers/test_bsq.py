import pytest
import torch
from vector_quantize_pytorch import LFQ

from latentae.quantizers import BinarySphericalQuantizer
from tests.quantizers.conftest import draw


def test_values_and_gradients_equal_the_packages():
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
