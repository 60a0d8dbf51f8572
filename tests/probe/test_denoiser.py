import pytest
import torch

from latentae.probe.denoiser import (
    NULL_LABEL,
    DenoiserSize,
    build_denoiser,
    common_token_side,
    count_parameters,
)

SIZE = DenoiserSize(32, 1)


def test_as_many_tokens_for_each_model():
    assert common_token_side([16, 8], 16) == 8
    assert common_token_side([16, 32], 8) == 8
    assert common_token_side([12, 18], 16) == 6
    for sides in ([3, 8], [1, 4]):
        with pytest.raises(ValueError, match=f"latents of {sides[0]}, {sides[1]} positions a side"):
            common_token_side(sides, 16)


def test_the_first_prediction_is_zero_and_of_the_latents_shape():
    denoiser = build_denoiser((3, 8, 8), 4, SIZE, seed=0)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, NULL_LABEL])
    with torch.no_grad():
        predicted = denoiser(latents, timestep=torch.tensor([10.0, 900.0]), class_labels=labels).sample
    assert predicted.shape == latents.shape
    assert predicted.abs().max() == 0
    assert denoiser.config.patch_size == 2
    assert not denoiser.training


def test_initialised_by_the_seed_alone_without_touching_others_numbers():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build_denoiser((3, 8, 8), 8, SIZE, seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, other = (build_denoiser((3, 8, 8), 8, SIZE, seed=seed) for seed in (1, 2))
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_models_differ_in_the_first_and_last_layer_only():
    few = count_parameters(build_denoiser((4, 8, 8), 8, SIZE, 0))
    many = count_parameters(build_denoiser((8, 16, 16), 8, SIZE, 0))
    inputs = 8 * 2 * 2 - 4
    assert many - few == 2 * inputs * 32 + inputs  # in and out weights, and the biases of the latter


@pytest.mark.parametrize(("field", "value"), [("width", 48), ("width", 0), ("depth", 0), ("largest_side", 0)])
def test_sizes_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        DenoiserSize(**{field: value})


def test_latents_that_cannot_be_cut():
    with pytest.raises(ValueError, match="latents of 8 x 6"):
        build_denoiser((3, 8, 6), 2, SIZE, 0)
