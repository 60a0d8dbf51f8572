import pytest
import torch

from latentae.quantizers import QuantizerOutput


def test_by_position_it_is_diffusers_tuple():
    output = QuantizerOutput(
        quantized=torch.ones(1, 2, 1, 3),
        indices=torch.tensor([[[4, 5, 6]]]),
        losses={"codebook": torch.tensor(1.0), "commitment": torch.tensor(0.25)},
    )
    quantized, loss, (perplexity, encodings, indices) = output
    assert quantized is output.quantized
    assert loss.item() == 1.25
    assert (perplexity, encodings) == (None, None)
    assert indices.tolist() == output[2][2].tolist() == [4, 5, 6]
    with pytest.raises(IndexError):
        output[3]
