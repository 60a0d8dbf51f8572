import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from latentae.quantizers import CosineQuantizer
from tests.quantizers.conftest import draw, generator


def test_a_code_is_chosen_by_its_direction_alone():
    quantizer = CosineQuantizer(2, 2)
    quantizer.embedding.weight.data = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    output = quantizer(torch.tensor([[0.2, 30.0], [0.1, 40.0]]).reshape(1, 2, 1, 2))
    assert output.indices.tolist() == [[[0, 1]]]
    assert output.quantized.squeeze().T.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_losses_by_hand():
    quantizer = CosineQuantizer(1, 2, codebook_weight=2.0)
    quantizer.embedding.weight.data = torch.tensor([[7.0, 0.0]])
    losses = quantizer(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).losses
    # (0.6, 0.8) against (1, 0): squares 0.16 and 0.64, their mean 0.4.
    assert losses["codebook"].item() == pytest.approx(0.8)
    assert losses["commitment"].item() == pytest.approx(0.1)


def test_values_and_gradients_equal_the_packages():
    theirs = (
        VectorQuantize(
            dim=8, codebook_size=32, use_cosine_sim=True, rotation_trick=False, commitment_weight=0.25
        )
        .double()
        .eval()
    )
    ours = CosineQuantizer(32, 8, codebook_weight=0.0).double()
    theirs._codebook.embed.data.copy_(
        torch.nn.functional.normalize(draw(1, 32, 8, dtype=torch.float64), dim=-1)
    )
    ours.embedding.weight.data.copy_(3 * theirs._codebook.embed[0])
    latents = draw(2, 8, 6, 6, dtype=torch.float64).requires_grad_()
    output = ours(latents)
    quantized, indices, _ = theirs(latents.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(output.indices.flatten(1), indices)
    torch.testing.assert_close(output.quantized.flatten(2).mT, quantized)


def test_the_start_is_on_the_sphere():
    for init in ("uniform", "data"):
        quantizer = CosineQuantizer(32, 4, init=init)
        quantizer.start(draw(2, 4, 8, 8), generator())
        torch.testing.assert_close(quantizer.embedding.weight.norm(dim=1), torch.ones(32))


def test_codes_do_not_move():
    quantizer = CosineQuantizer(4, 2)
    assert quantizer.moved_weights(torch.zeros(2).double(), torch.ones(()).double()) is None
