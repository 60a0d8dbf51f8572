import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as StockQuantizer

from latentae.quantizers import FiniteScalarQuantizer, VectorQuantizer, plain_quantizer
from latentae.quantizers.codebook import CodebookQuantizer
from tests.quantizers.conftest import draw, generator, make


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
    points = centers.repeat_interleave(50, 0) + 0.1 * draw(150, 2)
    quantizer = VectorQuantizer(12, 2)
    quantizer.start(points.T.reshape(1, 2, 10, 15), generator())
    distances = torch.cdist(points, quantizer.embedding.weight.detach()).min(dim=1).values
    assert distances.max() < 0.5
    assert quantizer(points.T.reshape(1, 2, 10, 15)).indices.unique().numel() == 12


@pytest.mark.parametrize("kind", ["vector", "ema", "cosine", "simvq"])
@pytest.mark.parametrize("latents", [1, 9])
def test_start_with_fewer_latents_than_codes(kind, latents):
    quantizer = make(kind)
    quantizer.start(draw(1, 4, 1, latents), generator())
    assert quantizer.euclidean_codebook().isfinite().all()
    assert quantizer(draw(1, 4, 1, latents)).indices.unique().numel() == latents


@pytest.mark.parametrize("kind", ["vector", "ema", "cosine", "simvq"])
def test_all_codes_are_in_use_from_the_start(kind):
    quantizer = make(kind)
    latents = 3 + 0.1 * draw(2, 4, 16, 16)
    quantizer.start(latents, generator())
    assert quantizer(latents).health.usage == 1.0


def test_uniform_start_is_that_of_vqmodel():
    quantizer = VectorQuantizer(50, 4, init="uniform")
    before = quantizer.embedding.weight.clone()
    quantizer.start(draw(1, 4, 8, 8), generator())
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
    assert not torch.equal(revived[0], revived[1])  # no latent is given to two codes while there are others
    assert quantizer.upkeep["recent_counts"].sum() == 0


@pytest.mark.parametrize("kind", ["vector", "ema", "cosine", "simvq"])
def test_revived_codes_are_codes_of_latents(kind):
    quantizer = make(kind, revive_after=1)
    quantizer.start(draw(1, 4, 8, 8), generator())
    quantizer.replace(torch.arange(16) >= 8, torch.full((16, 4), 1e3) + draw(16, 4))  # far from all latents
    latents = draw(2, 4, 8, 8)
    used = quantizer(latents).indices.unique()
    before = quantizer.euclidean_codebook().clone()
    quantizer.commit(1, generator())
    after = quantizer.euclidean_codebook()
    unused = [index for index in range(16) if index not in used.tolist()]
    rows = quantizer.prepare(latents.permute(0, 2, 3, 1).reshape(-1, 4))
    assert unused
    assert torch.cdist(after[unused], rows).min(dim=1).values.max() < 1e-3  # what is left of float32 in cdist
    if kind != "ema":  # whose used codes have moved on
        torch.testing.assert_close(after[used], before[used])


@pytest.mark.parametrize(("latents", "codes"), [(7, 5), (64, 64), (100, 7), (3, 8)])
def test_no_latent_revives_two_codes_while_there_are_others(latents, codes):
    """Every latent is drawn as often as another; of too few, some are drawn once more than others."""
    quantizer, times = VectorQuantizer(codes, 1, revive_after=1), torch.zeros(latents)
    quantizer.recent_latents = torch.arange(latents).float()[:, None]
    for seed in range(200):
        drawn = quantizer._draw_latents(generator(seed)).flatten().long().bincount(minlength=latents)
        assert drawn.sum() == codes
        assert drawn.max() <= -(-codes // latents)
        times += drawn
    expected = 200 * codes / latents
    assert (times - expected).abs().max() < max(5 * expected**0.5, 200 * (codes > latents))


def test_ranks_share_the_draws_at_a_cost_that_does_not_grow_with_them(monkeypatch):
    shuffled, randperm, latents = [], torch.randperm, torch.arange(12.0)[:, None]
    monkeypatch.setattr(
        torch, "randperm", lambda count, **options: (shuffled.append(count), randperm(count, **options))[1]
    )
    quantizer = VectorQuantizer(8, 1, revive_after=1)
    quantizer.recent_latents = latents
    alone = quantizer._draw_latents(generator())
    monkeypatch.setattr("latentae.distributed.world_size", lambda: 3)
    monkeypatch.setattr("latentae.distributed.all_reduce_sum", lambda rows: rows)
    parts = []
    for rank, own in enumerate(latents.split(4)):
        monkeypatch.setattr("latentae.distributed.rank", lambda rank=rank: rank)
        quantizer.recent_latents = own
        parts.append(quantizer._draw_latents(generator()))
    assert torch.equal(sum(parts), alone)
    assert shuffled == [8] * 4


def test_no_upkeep_in_evaluation():
    quantizer = VectorQuantizer(4, 1, revive_after=1).eval()
    quantizer(torch.zeros(1, 1, 2, 2))
    quantizer.commit(1, generator())
    assert quantizer.upkeep["recent_counts"].sum() == 0


@pytest.mark.parametrize("kind", ["vector", "ema", "cosine", "simvq"])
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_the_gradient_is_chosen_by_name(kind, gradient):
    quantizer = make(kind, gradient=gradient).double()
    latents = draw(1, 4, 2, 2, dtype=torch.float64).requires_grad_()
    output = quantizer(latents)
    weights = draw(1, 4, 2, 2, seed=1, dtype=torch.float64)
    (got,) = torch.autograd.grad((output.quantized * weights).sum(), latents)
    if kind == "cosine":  # the gradient then goes on through the normalisation
        latents = torch.nn.functional.normalize(latents.detach(), dim=1).requires_grad_()
        (got,) = torch.autograd.grad((quantizer(latents).quantized * weights).sum(), latents)
        weights = weights - latents * (weights * latents).sum(dim=1, keepdim=True)
    assert torch.allclose(got, weights, atol=1e-12) == (gradient == "straight_through")


def test_the_table_is_what_the_nearest_code_is_of():
    for kind in ("vector", "ema", "cosine", "simvq"):
        quantizer = make(kind).eval()
        latents = 5 * draw(2, 4, 8, 8)
        rows = latents.permute(0, 2, 3, 1).reshape(-1, 4)
        nearest = torch.cdist(rows.double(), quantizer.euclidean_codebook().double()).argmin(dim=1)
        assert torch.equal(quantizer(latents).indices.flatten(), nearest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"code_dim": 0}, "code_dim is 0"),
        ({"revive_after": 0}, "revive_after is 0"),
        ({"init": "zeros"}, "init is 'zeros', but must be one of uniform, data"),
        ({"gradient": "none"}, "gradient is 'none'"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CodebookQuantizer(**{"num_codes": 4, "code_dim": 2, **arguments})


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


@pytest.mark.parametrize("legacy", [False, True])
def test_either_order_of_the_loss_is_that_of_the_stock_quantizer(legacy):
    stock = StockQuantizer(16, 4, beta=0.25, legacy=legacy).double()
    quantizer = VectorQuantizer(16, 4, legacy_loss_order=legacy).double()
    quantizer.load_state_dict(stock.state_dict())
    latents = draw(2, 4, 5, 5, dtype=torch.float64).requires_grad_()
    weights = draw(2, 4, 5, 5, seed=1, dtype=torch.float64)
    results = []
    for module in (quantizer, stock):
        quantized, loss, _ = module(latents)
        objective = loss + (quantized * weights).sum()
        results.append((loss, *torch.autograd.grad(objective, (latents, module.embedding.weight))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_table_written_out_gives_the_same_codes():
    for kind in ("vector", "ema", "cosine", "simvq"):
        quantizer = make(kind).eval()
        plain = plain_quantizer(quantizer)
        assert type(plain) is VectorQuantizer
        ours, theirs = plain(draw(2, 4, 8, 8)), quantizer(draw(2, 4, 8, 8))
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.quantized, theirs.quantized)
        plain.embedding.weight.data.zero_()
        assert quantizer.embedding.weight.any()
    with pytest.raises(ValueError, match="codes of a FiniteScalarQuantizer are not the nearest ones"):
        plain_quantizer(FiniteScalarQuantizer([4, 4]))


def test_weights_below_zero():
    with pytest.raises(ValueError, match=r"codebook_weight is -1"):
        VectorQuantizer(4, 2, codebook_weight=-1)
