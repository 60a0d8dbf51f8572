from typing import Any

import pytest

from latentae.config import ConfigError
from tests.config.example import config


@pytest.mark.parametrize(("validate", "save"), [(100, 100), (50, 100), (300, 100)])
def test_measured_checkpoints_are_enough(validate: int, save: int) -> None:
    keys = {"best_metric": "validation_psnr", "validate_every": validate, "checkpoint_every": save}
    assert config(keys).best_metric == "validation_psnr"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"validate_every": None}, "`validate_every` null: nothing measures it; set `validate_every: 100`"),
        ({"validate_every": 150}, "neither is a multiple of the other: few checkpoints would be measured"),
        ({"best_metric": "psnr"}, "validation_psnr"),
    ],
)
def test_a_best_checkpoint_that_could_not_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config({"best_metric": "validation_psnr", "checkpoint_every": 100, "validate_every": 100, **changes})
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_is_demanded_where_none_is_kept() -> None:
    assert config({"validate_every": 150, "checkpoint_every": 100}).best_metric is None
