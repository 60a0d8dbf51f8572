import math

import pytest
import torch

from latentae.quantizers import (
    QUANTIZERS,
    code_counts,
    codebook_health,
    create_quantizer,
    implied_size,
    reachable_usage,
    table_healths,
    usage_deciles,
)
from tests.quantizers.conftest import CASES, make


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


def test_health_of_each_table():
    first, second = table_healths(torch.tensor([[5, 5], [10, 0]]))
    assert (first.usage, first.perplexity) == (1.0, pytest.approx(2.0))
    assert (second.usage, second.perplexity) == (0.5, pytest.approx(1.0))


def test_counts_of_int32_indices_and_of_large_tables():
    indices = torch.tensor([[[0, 2**18 - 1]]], dtype=torch.int32)
    counts = code_counts(indices, 2**18)
    assert counts.dtype == torch.int64
    assert (counts.sum(), counts[0], counts[-1]) == (2, 1, 1)


def test_deciles_by_hand():
    # Twenty codes: the two most used took 60 + 20 of 100, the next two 10 + 10, the others nothing.
    counts = torch.zeros(20, dtype=torch.int64)
    counts[[3, 7, 11, 19]] = torch.tensor([10, 60, 20, 10])
    assert usage_deciles(counts) == pytest.approx([0.8, 0.2, *[0.0] * 8])
    assert usage_deciles(torch.full((1000,), 7)) == pytest.approx([0.1] * 10)
    # Four codes are two and a half deciles each: 8 of 10 choices on the first make 0.32 of each whole one.
    assert usage_deciles(torch.tensor([1, 8, 1, 0])) == pytest.approx(
        [0.32, 0.32, 0.16 + 0.02, 0.04, 0.04, 0.04, 0.04, 0.02, 0.0, 0.0]
    )
    assert usage_deciles(torch.zeros(16)) == [0.0] * 10


def test_what_even_use_would_reach():
    assert reachable_usage(4, 1) == pytest.approx(1 / 4)
    assert reachable_usage(4, 2) == pytest.approx(1 - (3 / 4) ** 2)
    assert reachable_usage(2**18, 107_000) == pytest.approx(1 - math.exp(-107_000 / 2**18), abs=1e-6)
    assert (reachable_usage(1, 0), reachable_usage(1, 3), reachable_usage(1024, 0)) == (0.0, 1.0, 0.0)


def test_a_count_of_even_draws_reaches_what_it_should():
    draws = torch.randint(1000, (1, 40, 50), generator=torch.Generator().manual_seed(0))
    usage = codebook_health(code_counts(draws, 1000)).usage
    assert usage == pytest.approx(reachable_usage(1000, 2000), abs=0.02)


TABLE = {"num_codes": 16, "code_dim": 4}


def remedies_of(kind, **arguments):
    return create_quantizer(kind, **{**TABLE, **arguments}).remedies()


def test_a_bare_table_is_told_all():
    assert remedies_of("vector", init="uniform") == [
        "init=data",
        "revive_after=20",
        "gradient=rotation",
        "type=ema",
        "type=simvq",
        "type=fsq",
    ]


def test_what_is_set_already_is_not_named():
    assert remedies_of("ema", init="data", revive_after=10, gradient="rotation") == ["type=fsq"]
    assert "revive_after=20" in remedies_of("cosine", revive_after=500)
    assert "code_dim=8" in remedies_of("cosine", code_dim=256)


def test_of_those_without_a_table_that_could_be_revived():
    assert remedies_of("ibq") == ["entropy_weight=0.05", "type=ema", "type=simvq"]
    assert remedies_of("ibq", entropy_weight=0.1)[0] == "entropy_weight=0.2"


def test_of_those_that_learn_no_codes():
    signs = create_quantizer("lfq", bits=10, entropy_weight=0.0, diversity_weight=0.5).remedies()
    assert signs == ["entropy_weight=0.1", "diversity_weight=1", "bits=9", "type=fsq"]
    assert create_quantizer("bsq", bits=1).remedies()[0] == "entropy_weight=0.2"


def test_of_compositions():
    assert "member.revive_after=20" in remedies_of(
        "grouped", groups=2, member={"type": "vector", "init": "data"}
    )


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_type_has_some(kind):
    found = make(kind).remedies()
    assert found
    types = [remedy.split("=")[1] for remedy in found if remedy.split(".")[-1].startswith("type=")]
    assert all(name in QUANTIZERS for name in types)
    assert kind in CASES


def test_levels_that_are_named_can_be_built():
    remedy = create_quantizer("fsq", levels=[2, 2]).remedies()[-1]
    levels = [int(level) for level in remedy.removeprefix("levels=").strip("[]").split(",")]
    assert implied_size("fsq", levels=levels) == (5, 1)
    larger = create_quantizer("fsq", levels=[8, 8, 4, 4], init="none", spread_weight=0.0)
    assert larger.remedies() == ["init=data", "spread_weight=0.1", "levels=[7, 8, 4, 4]"]
