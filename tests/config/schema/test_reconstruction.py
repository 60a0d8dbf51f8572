from typing import Any

import pytest

from latentae.config import ConfigError, LikelihoodConfig
from tests.config.example import config


def reconstruction(**keys: Any) -> Any:
    return config({"loss.reconstruction": keys}).loss.reconstruction


def test_keys_of_each_type() -> None:
    likelihood = {"weight": 1.0, "learned": True, "learning_rate_scale": 100.0, "scale_perceptual": False}
    expected: dict[str, dict[str, Any]] = {
        "l1": {"weight": 1.0},
        "l2": {"weight": 1.0},
        "charbonnier": {"weight": 1.0, "epsilon": 1e-3},
        "gaussian": {**likelihood, "log_variance": 0.0},
        "laplace": {**likelihood, "log_scale": 0.0},
    }
    for name, keys in expected.items():
        assert reconstruction(type=name).model_dump() == {"type": name, **keys}
        assert isinstance(reconstruction(type=name), LikelihoodConfig) == ("learned" in keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"type": "l1", "epsilon": 0.1}, "epsilon"),
        ({"type": "laplace", "log_variance": -1.0}, "log_variance"),
        ({"type": "charbonnier", "epsilon": 0}, r"epsilon` is 0.*> 0"),
        ({"type": "gaussian", "log_variance": 200}, r"in \[-30.*, 20"),
        ({"type": "huber"}, "one of l1, l2, charbonnier, gaussian, laplace"),
    ],
)
def test_each_type_checks_its_own_keys(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reconstruction(**keys)
