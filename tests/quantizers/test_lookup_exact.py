import torch

from latentae.quantizers import lookup_exact
from latentae.quantizers.lookup_exact import decide_rows
from latentae.quantizers.lookup_scores import find_frame


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decide(latents, codebook):
    return decide_rows(latents, codebook, find_frame(latents, codebook))


def brute_force(latents, codebook):
    return (latents[:, None].double() - codebook.double()).square().sum(-1).argmin(1)


def test_every_row_by_float64():
    latents, codebook = normal(100, 5, seed=1), normal(200, 5, seed=2)
    assert torch.equal(decide(latents, codebook), brute_force(latents, codebook))


def test_pieces_make_no_difference(monkeypatch):
    latents, codebook = torch.randint(-3, 4, (90, 2)) / 2, torch.randint(-1, 2, (40, 2)).float()
    whole = decide(latents, codebook)
    monkeypatch.setattr(lookup_exact, "_ELEMENTS", 100)  # a few rows, and a few pairs, at a time
    assert torch.equal(decide(latents, codebook), whole)
    assert torch.equal(whole, brute_force(latents, codebook))


def test_of_equal_codes_only_the_first_takes_part(monkeypatch):
    latents, codebook = normal(50, 3, seed=1), normal(20, 3, seed=2)
    compared = []
    squares = lookup_exact._squares
    monkeypatch.setattr(
        lookup_exact, "_squares", lambda *inputs: compared.append(inputs[3]) or squares(*inputs)
    )
    assert torch.equal(decide(latents, codebook.repeat(30, 1)), brute_force(latents, codebook))
    assert torch.cat(compared).shape == (50,)  # one code a row was left, though each has thirty equal ones
    assert torch.cat(compared).max() < 20


def test_equal_codes_parted_by_one_of_the_same_norm():
    # Around the frame's middle, zero, ±c have one norm, so sorting leaves c, −c, c, −c as they are.
    codebook = torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).repeat(8, 1)
    latents = torch.tensor([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.0]])
    assert decide(latents, codebook).tolist() == [0, 0, 1, 0]


def test_rows_that_are_not_finite():
    latents, codebook = normal(6, 3, seed=1), normal(20, 3, seed=2)
    latents[1, 2], latents[4, 0] = torch.nan, torch.inf
    expected = brute_force(latents, codebook)
    expected[[1, 4]] = 0
    assert torch.equal(decide(latents, codebook), expected)


def test_sums_beyond_float64_leave_a_valid_code():
    latents, codebook = normal(60, 3, seed=1).double(), normal(20, 3, seed=2).double()
    expected = brute_force(latents, codebook)
    latents[7], expected[7] = 1e300, 0  # all squares are infinite, so all codes equally near
    assert torch.equal(decide(latents, codebook), expected)
