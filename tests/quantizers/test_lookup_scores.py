import pytest
import torch

from latentae.quantizers.lookup_scores import Frame, augment, find_frame, score_codes, score_latents


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def true_scores(latents, codebook, frame):
    """½ ‖x − μ‖² − ½ ‖x − c‖² + ½ min‖c − μ‖² and what else is the same for all codes, in float64."""
    x, c = latents.double() * frame.scale, codebook.double() * frame.scale
    mu, nu = frame.latent_center * frame.scale, frame.code_center * frame.scale
    least = (c - mu).square().sum(1).min()
    return (x - mu) @ (c - nu).T + (least - (c - mu).square().sum(1)) / 2


@pytest.mark.parametrize("dim", [1, 8, 256])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (5.0, 0.05), (-3e4, 1e3)])
def test_float32_scores_are_bounds_of_the_true_ones(dim, mean, deviation):
    latents, codebook = (mean + deviation * normal(400, dim, seed=seed) for seed in (1, 2))
    frame = find_frame(latents, codebook)
    scored = score_codes(codebook, frame, torch.float32)
    centered, norms = score_latents(latents, frame, scored)
    upper = (augment(centered, norms) @ scored.columns()).double()
    doubt = scored.doubt(norms[:, None], torch.arange(400)).double()
    true = true_scores(latents, codebook, frame)
    assert (upper >= true).all()
    assert (upper - doubt <= true).all()
    assert doubt.median() < 1e-5 * dim * (dim + 8)  # tight enough to be of use, where the data are of size 1


def test_scores_rank_as_distances_do():
    latents, codebook = 2 + normal(50, 4, seed=1), normal(60, 4, seed=2)
    frame = find_frame(latents, codebook)
    scores = true_scores(latents, codebook, frame)
    squares = (latents[:, None].double() - codebook.double()).square().sum(-1) * frame.scale**2
    same_for_all_codes = scores + squares / 2
    assert torch.allclose(same_for_all_codes, same_for_all_codes[:, :1], atol=1e-12)


def test_frame_of_shifted_and_scaled_data():
    frame = find_frame(100 + 0.01 * normal(1000, 3, seed=1), -7 + 0.02 * normal(1000, 3, seed=2))
    assert (frame.latent_center - 100).abs().max() < 0.01
    assert (frame.code_center + 7).abs().max() < 0.02
    assert 2**4 <= frame.scale <= 2**6  # a row of the larger codes reaches 0.03
    assert frame.scale.log2() == frame.scale.log2().round()


def test_frame_ignores_outliers_and_nan():
    latents = normal(640, 3)
    latents[::60] = torch.tensor([torch.nan, torch.inf, 1e30])
    frame = find_frame(latents, normal(64, 3))
    assert frame.latent_center.abs().max() < 1
    assert 2**-3 <= frame.scale <= 1
    blind = find_frame(torch.full((10, 3), torch.nan), torch.full((10, 3), torch.nan))
    assert blind == Frame(*(pytest.approx(value) for value in (torch.zeros(3), torch.zeros(3), 1.0)))


def test_codes_that_are_not_finite_have_no_score():
    codebook = normal(5, 2)
    codebook[1, 0], codebook[3, 1] = torch.nan, torch.inf
    scored = score_codes(codebook, find_frame(codebook, codebook), torch.float32)
    assert scored.bias.isneginf().tolist() == [False, True, False, True, False]
    assert scored.codes[[1, 3]].abs().max() == 0
    assert all(
        values.isfinite().all() for values in (scored.codes, scored.slope, scored.margin, scored.reach)
    )


def test_norms_out_of_reach_are_infinite():
    codebook = torch.tensor([[0.6e25, 0.8e25], [1.0, 0.0]])
    frame = Frame(torch.zeros(2).double(), torch.zeros(2).double(), torch.ones(()).double())
    scored = score_codes(codebook, frame, torch.float32)
    assert scored.reach == pytest.approx(torch.finfo(torch.float32).max / 8 / 1e25, rel=1e-6)  # about 4e12
    latents = torch.tensor([[1e30, 0.0], [1e13, 0.0], [1e12, 0.0], [3.0, 4.0]])
    _, norms = score_latents(latents, frame, scored)
    assert norms.tolist() == [torch.inf, torch.inf, pytest.approx(1e12), pytest.approx(5.0)]
