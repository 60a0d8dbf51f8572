from types import SimpleNamespace

import pytest
import torch

from latentae.quantizers import EMAQuantizer, FiniteScalarQuantizer, Quantizer
from latentae.training.codebook_start import MOST_BATCHES, start_codebook


class Witness(Quantizer):
    """Remembers how many batches it was started from."""

    def __init__(self, latents_to_start):
        super().__init__(4, 2)
        self.latents_to_start = latents_to_start
        self.started_from = None

    def start(self, latents, generator):
        self.started_from = len(latents)


def batches():
    for number in range(100):
        yield {"images": torch.full((2, 2, 4, 4), float(number))}  # 32 latents


def model(quantizer, moves):
    """A model whose latents are its images."""
    encode = lambda images: SimpleNamespace(latents=images)  # noqa: E731
    return SimpleNamespace(quantize=quantizer, encode=encode, move_latents=moves.append)


def begin(quantizer):
    moves = []
    rest = start_codebook(model(quantizer, moves), batches(), torch.Generator())
    return rest, moves


@pytest.mark.parametrize(("wanted", "seen"), [(0, 1), (1, 1), (32, 1), (33, 2), (320, 10), (10**9, 16)])
def test_as_many_batches_as_are_wanted_within_reason(wanted, seen):
    quantizer = Witness(wanted)
    assert seen <= MOST_BATCHES
    rest, moves = begin(quantizer)
    assert moves == []
    assert quantizer.started_from == seen
    assert [int(batch["images"].max()) for batch in rest] == list(range(100))  # none is lost


def test_codes_are_placed_among_latents_of_several_batches():
    quantizer = EMAQuantizer(16, 2)  # wants 64 latents, of two batches
    begin(quantizer)
    assert set(quantizer.embedding.weight.round().flatten().tolist()) == {0.0, 1.0}


def test_what_needs_no_start_is_checked_all_the_same():
    quantizer = FiniteScalarQuantizer([3, 3])
    nan = iter([{"images": torch.full((1, 2, 2, 2), float("nan"))}])
    with pytest.raises(ValueError, match="8 of 8 values of the latents are NaN"):
        start_codebook(model(quantizer, []), nan, torch.Generator())


def test_latents_are_moved_for_codes_that_cannot_be():
    """The images of `batches` are constant, with as many in each: 0, 1, 2, ... in both channels."""
    quantizer = FiniteScalarQuantizer([3, 3])
    _, (change,) = begin(quantizer)  # wants 4096, and gets the 512 of 16 batches
    values = torch.arange(16.0, dtype=torch.float64)[:, None].expand(-1, 2)
    moved = change(values)
    torch.testing.assert_close(moved.mean(dim=0), torch.zeros(2, dtype=torch.float64))
    # Of the two directions one has no variance, and that along (1, 1) has 1.
    torch.testing.assert_close(moved.square().mean(dim=0), torch.full((2,), 0.5, dtype=torch.float64))
