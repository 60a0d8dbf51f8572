from typing import Any

import pytest

from latentae.config.schema.checks_data import SMALLEST_MEASURED, data_problems
from latentae.evaluation import metrics
from latentae.losses import perceptual
from latentae.training import trainer
from tests.config.example import config
from tests.config.schema.test_checks import problems


def test_nothing_is_wrong() -> None:
    assert data_problems(config()) == []
    assert (
        data_problems(config({"data.resolutions": [[32, 64], [64, 32]], "data.value_range": [-1, 1]})) == []
    )


def test_every_resolution_is_a_multiple_of_the_factor() -> None:
    assert problems({"data.resolutions": [[64, 64], [64, 66]]}) == [
        "`data.resolutions` has [64, 66], not a multiple of 4, by which a model with 3 "
        "`model.block_out_channels` shrinks it; use [64, 64] or [64, 68]"
    ]


def test_every_resolution_is_large_enough() -> None:
    (problem,) = problems(
        {"data.resolutions": [[28, 64]], "loss.perceptual": {"type": "lpips", "trunk": "alex"}}
    )
    assert problem.startswith("`data.resolutions` has [28, 64], too small for the perceptual loss")
    assert "use 32 or more" in problem


@pytest.mark.parametrize(
    "loss", [None, {"type": "lpips", "trunk": "vgg"}, {"type": "lpips", "trunk": "alex"}]
)
@pytest.mark.parametrize("size", [8, 28, [64, 28]])
def test_images_too_small_to_measure_are_refused_at_the_start(size: Any, loss: Any) -> None:
    assert problems({"data.image_size": size, "loss.perceptual": loss}) == [
        f"`data.image_size` is {size}, too small to measure: at its end a run needs 31 pixels a side (SSIM "
        "11, LPIPS 31); use 32 or more"
    ]
    assert config({"data.image_size": 32, "loss.perceptual": loss}).data.image_size == 32


def test_the_smallest_image_is_what_the_measures_ask_for() -> None:
    needed = metrics._WINDOW_SIZE, perceptual._MINIMUM_SIZE[trainer._VALIDATION_TRUNK]
    assert (needed, max(needed)) == ((11, 31), SMALLEST_MEASURED)


@pytest.mark.parametrize("value_range", [[5, 5], [5, -5]])
def test_a_value_range_that_is_none(value_range: list[float]) -> None:
    (problem,) = problems({"data.value_range": value_range})
    low, high = map(float, value_range)
    assert problem == (
        f"`data.value_range` is [{low}, {high}]; it must be [low, high] with low < high, the numbers of "
        "black and white"
    )
