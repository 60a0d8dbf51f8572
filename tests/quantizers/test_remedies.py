import pytest

from latentae.quantizers import QUANTIZERS, create_quantizer, own_size, remedies
from tests.quantizers.conftest import CASES, make

TABLE = {"num_codes": 16, "code_dim": 4}


def of(kind, **arguments):
    return remedies(create_quantizer(kind, **{**TABLE, **arguments}))


def test_a_bare_table_is_told_all():
    assert of("vector", init="uniform") == [
        "init=data",
        "revive_after=20",
        "gradient=rotation",
        "type=ema",
        "type=simvq",
        "type=fsq",
    ]


def test_what_is_set_already_is_not_named():
    assert of("ema", init="data", revive_after=10, gradient="rotation") == ["type=fsq"]
    assert "revive_after=20" in of("cosine", revive_after=500)
    assert "code_dim=8" in of("cosine", code_dim=256)


def test_of_those_without_a_table_that_could_be_revived():
    assert of("ibq") == ["entropy_weight=0.05", "type=ema", "type=simvq"]
    assert of("ibq", entropy_weight=0.1)[0] == "entropy_weight=0.2"


def test_of_those_that_learn_no_codes():
    signs = remedies(create_quantizer("lfq", bits=10, entropy_weight=0.0, diversity_weight=0.5))
    assert signs == ["entropy_weight=0.1", "diversity_weight=1", "bits=9", "type=fsq"]
    assert remedies(create_quantizer("bsq", bits=1))[0] == "entropy_weight=0.2"


def test_of_compositions():
    assert "member.revive_after=20" in of("grouped", groups=2, member={"type": "vector", "init": "data"})


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_type_has_some(kind):
    found = remedies(make(kind))
    assert found
    types = [remedy.split("=")[1] for remedy in found if remedy.split(".")[-1].startswith("type=")]
    assert all(name in QUANTIZERS for name in types)
    assert kind in CASES


def test_levels_that_are_named_can_be_built():
    remedy = remedies(create_quantizer("fsq", levels=[2, 2]))[-1]
    levels = [int(level) for level in remedy.removeprefix("levels=").strip("[]").split(",")]
    assert own_size("fsq", levels=levels) == (5, 1)
    larger = create_quantizer("fsq", levels=[8, 8, 4, 4], init="none", spread_weight=0.0)
    assert remedies(larger) == ["init=data", "spread_weight=0.1", "levels=[7, 8, 4, 4]"]
