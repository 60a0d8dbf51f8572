from typing import Any

import pytest

from latentae.config import ConfigError
from tests.config.example import config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"data.resolutions": [[64, 64], [64, 96]]},
            "`compile` is true, and `data.resolutions` has 2 sizes, each of which would be compiled for "
            "minutes; set `compile: false` or `data.resolutions: null`",
        ),
        (
            {"loss.equivariance": {"min_scale": 0.5}},
            "`compile` is true, and with `loss.equivariance.min_scale: 0.5` sizes change from step to step, "
            "each of which would be compiled for minutes; set `compile: false` or "
            "`loss.equivariance.min_scale: 1`",
        ),
    ],
)
def test_sizes_that_change_are_not_compiled(changes: dict[str, Any], says: str) -> None:
    assert config(changes).compile is False
    with pytest.raises(ConfigError) as caught:
        config({"compile": True, **changes})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{}, {"data.resolutions": [[64, 96], [64, 96]]}, {"loss.equivariance": {"min_scale": 1}}],
)
def test_one_size_is_compiled(changes: dict[str, Any]) -> None:
    assert config({"compile": True, **changes}).compile
