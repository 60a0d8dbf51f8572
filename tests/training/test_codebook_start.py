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


def begin(quantizer):
    return start_codebook(quantizer, lambda images: images, batches(), torch.Generator())


@pytest.mark.parametrize(("wanted", "seen"), [(0, 1), (1, 1), (32, 1), (33, 2), (320, 10), (10**9, 16)])
def test_as_many_batches_as_are_wanted_within_reason(wanted, seen):
    quantizer = Witness(wanted)
    assert seen <= MOST_BATCHES
    rest = begin(quantizer)
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
        start_codebook(quantizer, lambda images: images, nan, torch.Generator())
