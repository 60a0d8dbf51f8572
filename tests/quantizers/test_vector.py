import pytest
import torch

from latentae.quantizers import VectorQuantizer


def test_losses_and_gradients_by_hand():
    quantizer = VectorQuantizer(2, 2, commitment_weight=0.25, codebook_weight=2.0)
    quantizer.embedding.weight.data = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    latents = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1).requires_grad_()
    losses = quantizer(latents).losses
    # The squared distance is 1 + 4, its mean over two values 2.5.
    assert losses["codebook"].item() == pytest.approx(2.0 * 2.5)
    assert losses["commitment"].item() == pytest.approx(0.25 * 2.5)
    (losses["codebook"] + losses["commitment"]).backward()
    # d/dz of 0.25·mean((z − e)²) is 0.25·(z − e); d/de of 2·mean((e − z)²) is 2·(e − z).
    assert latents.grad.flatten().tolist() == pytest.approx([0.25, 0.5])
    assert quantizer.embedding.weight.grad.tolist() == [[-2.0, -4.0], [0.0, 0.0]]
