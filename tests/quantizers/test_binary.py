import pytest
import torch

from latentae.quantizers.binary import BinaryQuantizer

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
