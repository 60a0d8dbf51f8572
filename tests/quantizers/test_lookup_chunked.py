import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentae.quantizers import lookup_chunked
from latentae.quantizers.lookup_chunked import nearest_code_chunked


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(latents, codebook):
    return (latents[:, None].double() - codebook.double()).square().sum(-1).argmin(1)


class LargestTensor(TorchDispatchMode):
    """The number of bytes of the largest tensor any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


def test_no_tensor_of_rows_by_codes():
    latents, codebook = normal(20_000, 4, seed=1), normal(1_000, 4, seed=2)
    with LargestTensor() as largest:
        nearest_code_chunked(latents, codebook)
    # 80 MB would hold all distances; a tile is 1 MiB for each thread, a latent 16 bytes
    assert 100_000 < largest.bytes <= max(1 << 20, 20_000 * 16) * torch.get_num_threads()


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1000])
@pytest.mark.parametrize("tile_codes", [1, 3, 64])
def test_the_pieces_make_no_difference(monkeypatch, rows_at_a_time, tile_codes):
    monkeypatch.setattr(lookup_chunked, "_ROWS_AT_A_TIME", rows_at_a_time)
    monkeypatch.setattr(lookup_chunked, "_TILE_CODES", tile_codes)
    monkeypatch.setattr(lookup_chunked, "_TILE_ELEMENTS", 200)
    latents, codebook = normal(50, 3, seed=1), normal(64, 3, seed=2)
    assert torch.equal(nearest_code_chunked(latents, codebook), brute_force(latents, codebook))


def test_other_devices_do_the_same_with_other_operations(monkeypatch):
    monkeypatch.setattr(lookup_chunked, "_best_two_cpu", lookup_chunked._best_two_anywhere)
    latents, codebook = normal(500, 5, seed=1), normal(3000, 5, seed=2)
    assert torch.equal(nearest_code_chunked(latents, codebook), brute_force(latents, codebook))


def undecided(monkeypatch, latents, codebook):
    """How many rows are left to float64."""
    left = []
    decide_rows = lookup_chunked.decide_rows
    monkeypatch.setattr(
        lookup_chunked, "decide_rows", lambda *inputs: left.append(len(inputs[0])) or decide_rows(*inputs)
    )
    nearest_code_chunked(latents, codebook)
    return sum(left)


@pytest.mark.parametrize("dim", [4, 32, 256])
def test_float32_decides_nearly_all_rows(monkeypatch, dim):
    latents, codebook = 5 + 0.05 * normal(4000, dim, seed=1), 5 + 0.05 * normal(1024, dim, seed=2)
    assert undecided(monkeypatch, latents, codebook) <= 20


def test_outliers_do_not_send_the_others_to_float64(monkeypatch):
    latents, codebook = normal(4000, 8, seed=1), normal(1024, 8, seed=2)
    latents[::25] = 1e37
    codebook[::50] = -1e30
    assert undecided(monkeypatch, latents, codebook) <= 160 + 20


def test_float64_is_asked_about_every_tie(monkeypatch):
    codebook = torch.tensor([[0.0, 1.0], [0.0, -1.0], [5.0, 5.0]])
    latents = torch.tensor([[3.0, 0.0], [-9.0, 0.0], [0.0, 0.5], [torch.nan, 0.0], [5.0, 5.0]])
    assert undecided(monkeypatch, latents, codebook) == 3  # two ties and NaN
