from typing import Any

import pytest

from latentae.config import (
    BSQConfig,
    CosineQuantizerConfig,
    EMAQuantizerConfig,
    FSQConfig,
    GroupedQuantizerConfig,
    IBQConfig,
    LFQConfig,
    ResidualQuantizerConfig,
    SimVQConfig,
    VectorQuantizerConfig,
    VQGANConfig,
    VQVAEConfig,
)
from latentae.config.schema.model import MOST_CODES
from latentae.quantizers import quantizer as quantizers
from tests.config.example import VQVAE, config, problems


@pytest.mark.parametrize(("widths", "factor"), [([32], 1), ([32, 32], 2), ([32, 32, 64, 64, 64], 16)])
def test_every_level_but_the_first_halves(widths: list[int], factor: int) -> None:
    assert config({"model.block_out_channels": widths}).model.downsampling_factor == factor


def test_class_chooses_the_model() -> None:
    assert type(config().model) is VQGANConfig
    assert type(config(VQVAE).model) is VQVAEConfig
    assert config().model.class_ == "VQGAN"
    assert config().model.model_dump(by_alias=True)["class"] == "VQGAN"


SMALLEST: dict[str, tuple[type, dict[str, Any]]] = {
    "vector": (VectorQuantizerConfig, {"num_codes": 4}),
    "ema": (EMAQuantizerConfig, {"num_codes": 4}),
    "cosine": (CosineQuantizerConfig, {"num_codes": 4}),
    "simvq": (SimVQConfig, {"num_codes": 4}),
    "ibq": (IBQConfig, {"num_codes": 4}),
    "fsq": (FSQConfig, {"levels": [8, 5, 5]}),
    "lfq": (LFQConfig, {"bits": 5}),
    "bsq": (BSQConfig, {"bits": 5}),
    "residual": (ResidualQuantizerConfig, {"depth": 2, "member": {"type": "ema", "num_codes": 4}}),
    "grouped": (GroupedQuantizerConfig, {"groups": 5, "member": {"type": "lfq", "bits": 3}}),
}


@pytest.mark.parametrize("kind", SMALLEST)
def test_type_chooses_the_quantizer(kind: str) -> None:
    section, keys = SMALLEST[kind]
    quantizer = config({"model.quantizer": {"type": kind, **keys}}).model.quantizer
    assert type(quantizer) is section
    values = quantizer.model_dump(mode="json")
    assert all(values[key] == value for key, value in keys.items() if key != "member")
    if "member" in keys:
        assert type(quantizer.member) is SMALLEST[keys["member"]["type"]][0]


def test_defaults_of_the_quantizers() -> None:
    vector = config().model.quantizer
    assert (vector.codebook_weight, vector.commitment_weight, vector.init) == (2.0, 0.25, "data")
    assert (vector.gradient, vector.legacy_loss_order) == ("straight_through", False)
    ema = config({"model.quantizer": {"type": "ema", "num_codes": 4}}).model.quantizer
    assert (ema.decay, ema.epsilon, ema.code_dim, ema.revive_after) == (0.99, 1e-5, None, None)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ({"type": "fsq", "levels": [8, 1]}, "`model.quantizer.levels[1]` is 1; it must be an integer >= 2"),
        ({"type": "fsq", "levels": []}, "`model.quantizer.levels` is []"),
        ({"type": "fsq", "levels": [5], "num_codes": 5}, "unknown key `model.quantizer.num_codes`"),
        ({"type": "lfq", "bits": 21}, "`model.quantizer.bits` is 21"),
        (
            {"type": "ema", "num_codes": 2**20 + 1},
            "`model.quantizer.num_codes` is 1048577; it must be an integer in [2, 1048576]",
        ),
        ({"type": "fsq", "levels": [8], "init": "uniform"}, "it must be one of none, data"),
        ({"type": "vector", "num_codes": 4, "gradient": "none"}, '`model.quantizer.gradient` is "none"'),
        (
            {"type": "residual", "depth": 2, "member": {"type": "residual"}},
            '`model.quantizer.member.type` is "residual"',
        ),
        (
            {"type": "residual", "depth": 2, "member": {"type": "ema"}},
            "`model.quantizer.member.num_codes` is missing",
        ),
    ],
)
def test_what_a_quantizer_cannot_be(quantizer: dict[str, Any], message: str) -> None:
    assert message in "\n".join(problems({"model.quantizer": quantizer}))


def test_the_limit_of_codes_is_the_quantizers_own() -> None:
    assert MOST_CODES == quantizers.MOST_CODES
