import math

import pytest
import torch

from latentae.quantizers import VectorQuantizer, codebook_health, create_quantizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_health_by_hand():
    health = codebook_health(torch.tensor([2, 2, 0, 0]))
    assert health.usage == 0.5
    assert health.perplexity == pytest.approx(2.0)
    health = codebook_health(torch.tensor([3, 1]))
    assert health.perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert codebook_health(torch.zeros(5)).usage == 0


def test_value_is_the_code_and_gradient_passes_straight_through():
    quantizer = VectorQuantizer(3, 2)
    quantizer.embedding.weight.data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    latents = torch.tensor([[0.9, 1.2], [1.9, -0.3]]).T.reshape(1, 2, 1, 2).requires_grad_()
    output = quantizer(latents)
    assert output.indices.tolist() == [[[1, 2]]]
    assert torch.equal(output.quantized, quantizer.codes(output.indices))
    weights = torch.tensor([[3.0, 5.0], [7.0, 11.0]]).reshape(1, 2, 1, 2)
    (gradient,) = torch.autograd.grad((output.quantized * weights).sum(), latents)
    assert torch.equal(gradient, weights)


def test_start_places_codes_among_the_latents_of_the_first_batch():
    centers = torch.tensor([[-4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    points = centers.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2, generator=generator())
    quantizer = create_quantizer("vector", num_codes=12, code_dim=2)
    quantizer.start(points.T.reshape(1, 2, 10, 15), generator())
    distances = torch.cdist(points, quantizer.embedding.weight.detach()).min(dim=1).values
    assert distances.max() < 0.5
    assert quantizer(points.T.reshape(1, 2, 10, 15)).indices.unique().numel() == 12


def test_start_with_fewer_latents_than_codes():
    quantizer = VectorQuantizer(64, 2)
    quantizer.start(torch.randn(1, 2, 3, 3, generator=generator()), generator())
    assert quantizer.embedding.weight.isfinite().all()
    assert quantizer.embedding.weight.unique(dim=0).shape[0] > 9


def test_uniform_start_is_that_of_vqmodel():
    quantizer = VectorQuantizer(50, 4, init="uniform")
    before = quantizer.embedding.weight.clone()
    quantizer.start(torch.randn(1, 4, 8, 8), generator())
    assert torch.equal(quantizer.embedding.weight, before)
    assert before.abs().max() <= 1 / 50


def test_unused_codes_move_to_latents_and_used_ones_stay():
    quantizer = VectorQuantizer(4, 1, revive_after=2)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [1.0], [100.0], [200.0]])
    latents = torch.tensor([0.0, 0.1, 1.0, 1.1]).reshape(1, 1, 2, 2)
    quantizer(latents)
    quantizer.commit(1, generator())
    assert quantizer.embedding.weight[2:].flatten().tolist() == [100.0, 200.0]
    quantizer(latents)
    quantizer.commit(2, generator())
    assert quantizer.embedding.weight[:2].flatten().tolist() == [0.0, 1.0]
    revived = quantizer.embedding.weight[2:].flatten()
    assert all(any(torch.equal(code, latent) for latent in latents.flatten()) for code in revived)
    assert quantizer.upkeep["recent_counts"].sum() == 0


def test_no_upkeep_in_evaluation():
    quantizer = VectorQuantizer(4, 1, revive_after=1).eval()
    quantizer(torch.zeros(1, 1, 2, 2))
    assert quantizer.upkeep["recent_counts"].sum() == 0


def test_half_precision_in_half_precision_out():
    quantizer = VectorQuantizer(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16))
    assert output.quantized.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in output.losses.values())


def test_upkeep_is_not_part_of_the_model():
    for kind in ("vector", "ema"):
        assert list(create_quantizer(kind, num_codes=4, code_dim=2).state_dict()) == ["embedding.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"code_dim": 0}, "code_dim is 0"),
        ({"revive_after": 0}, "revive_after is 0"),
        ({"init": "zeros"}, "init is 'zeros'"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"num_codes": 4, "code_dim": 2, **arguments})


def test_wrong_latents_and_indices():
    quantizer = VectorQuantizer(4, 2)
    with pytest.raises(ValueError, match=r"\[B, 2, h, w\]; got \[1, 3, 2, 2\]"):
        quantizer(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="indices run from 0 to 4"):
        quantizer.codes(torch.tensor([[[0, 4]]]))
    with pytest.raises(ValueError, match="quantizer type is 'none'"):
        create_quantizer("none", num_codes=4, code_dim=2)
