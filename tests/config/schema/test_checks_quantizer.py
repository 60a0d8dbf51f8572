from typing import Any

import pytest

from latentae.config import ConfigError
from tests.config.example import config


def problems(quantizer: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        config({"model.quantizer": quantizer})  # of a model with 5 latent channels
    return str(caught.value)


def test_more_codes_than_can_be_counted() -> None:
    levels = [16, 16, 16, 16, 16, 2]
    assert problems({"type": "fsq", "levels": levels}) == (
        "`model.quantizer.levels` is [16, 16, 16, 16, 16, 2], which makes 2097152 codes; at most 1048576 can "
        "be counted: use fewer, or `model.quantizer.type: grouped`"
    )
    member = {"type": "fsq", "levels": levels}
    assert problems({"type": "grouped", "groups": 2, "member": member}).startswith(
        "`model.quantizer.member.levels` is [16"
    )
    config({"model.quantizer": {"type": "fsq", "levels": levels[:-1]}})


def test_groups_that_cannot_share_the_channels() -> None:
    member: dict[str, Any] = {"type": "ema", "num_codes": 4}
    assert problems({"type": "grouped", "groups": 2, "member": member}) == (
        "`model.quantizer.groups` is 2, which does not divide `model.latent_channels` (5); set "
        "`model.quantizer.member.code_dim`, or change one of them"
    )
    config({"model.quantizer": {"type": "grouped", "groups": 2, "member": {**member, "code_dim": 3}}})
    config({"model.quantizer": {"type": "grouped", "groups": 5, "member": member}})
    config({"model.quantizer": {"type": "grouped", "groups": 2, "member": {"type": "lfq", "bits": 3}}})
