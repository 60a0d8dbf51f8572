import math

import pytest
import torch

from latentae.quantizers import code_counts, codebook_health


def test_health_by_hand():
    health = codebook_health(torch.tensor([2, 2, 0, 0]))
    assert health.usage == 0.5
    assert health.perplexity == pytest.approx(2.0)
    health = codebook_health(torch.tensor([3, 1]))
    assert health.perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert codebook_health(torch.zeros(5)).usage == 0


def test_counts_of_one_table_and_of_several():
    indices = torch.tensor([[[0, 2], [2, 2]]])
    assert code_counts(indices, 4).tolist() == [1, 0, 3, 0]
    both = torch.stack([indices, torch.full_like(indices, 1)], dim=1)  # [B, depth, h, w]
    assert code_counts(both, 4).tolist() == [[1, 0, 3, 0], [0, 4, 0, 0]]


def test_health_of_several_tables():
    # One table uses both codes alike, the other one only: perplexities 2 and 1, three of four codes in use.
    health = codebook_health(torch.tensor([[5, 5], [10, 0]]))
    assert (health.usage, health.perplexity) == (0.75, pytest.approx(1.5))
