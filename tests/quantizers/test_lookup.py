import pytest
import torch

from latentae.quantizers import nearest_code


def excess(latents, codebook):
    """How much farther the chosen code is than the nearest one, in squared distance, computed in float64."""
    squares = torch.cdist(
        latents.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    chosen = squares.gather(1, nearest_code(latents, codebook)[:, None])[:, 0]
    return chosen - squares.min(dim=1).values


@pytest.mark.parametrize("dim", [1, 4, 32, 64])
@pytest.mark.parametrize("num_codes", [1, 7, 1024])
def test_equals_brute_force(dim, num_codes):
    generator = torch.Generator().manual_seed(dim * num_codes)
    latents = torch.randn(3000, dim, generator=generator)
    codebook = torch.randn(num_codes, dim, generator=generator)
    assert excess(latents, codebook).max() <= 1e-5 * dim  # codes that lie within float32's rounding


def test_far_from_the_origin():
    generator = torch.Generator().manual_seed(0)
    latents = 5 + 0.05 * torch.randn(4096, 4, generator=generator)
    codebook = 5 + 0.05 * torch.randn(512, 4, generator=generator)
    assert excess(latents, codebook).max() < 1e-6 * 0.05


def test_ties_take_the_lowest_index():
    codebook = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), codebook).tolist() == [0, 0]


def test_half_precision_is_measured_in_float32():
    latents = torch.tensor([[100.0], [100.5]], dtype=torch.bfloat16)
    codebook = torch.tensor([[100.0], [100.5]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_code(latents, codebook).tolist() == [0, 1]


def test_more_rows_than_a_chunk_holds():
    codebook = torch.linspace(-1, 1, 1 << 11)[:, None]
    latents = codebook[torch.tensor([0, 5, 2047, 77])].repeat(500, 1)
    assert nearest_code(latents, codebook).tolist() == [0, 5, 2047, 77] * 500


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[3, 2\] and \[5, 4\]"):
        nearest_code(torch.zeros(3, 2), torch.zeros(5, 4))
