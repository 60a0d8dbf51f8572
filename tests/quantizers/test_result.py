import pytest
import torch

from latentae.quantizers import QuantizerOutput


def output(**losses):
    return QuantizerOutput(
        quantized=torch.ones(1, 2, 1, 3),
        indices=torch.tensor([[[4, 5, 5]]]),
        losses={name: torch.tensor(value) for name, value in losses.items()},
        num_codes=8,
    )


def test_by_position_it_is_diffusers_tuple():
    result = output(codebook=1.0, commitment=0.25)
    quantized, loss, (perplexity, encodings, indices) = result
    assert quantized is result.quantized
    assert loss.item() == result.loss.item() == 1.25
    assert (perplexity, encodings) == (None, None)
    assert indices.tolist() == result[2][2].tolist() == [4, 5, 5]
    with pytest.raises(IndexError):
        result[3]


def test_no_losses_are_zero():
    assert output().loss.item() == 0.0


def test_health_is_of_this_batch():
    health = output().health
    assert health.usage == 2 / 8
    assert health.perplexity == pytest.approx(3 / 4 ** (1 / 3))  # of frequencies 1/3 and 2/3
