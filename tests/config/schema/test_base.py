from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from latentae.config.schema.base import (
    Betas,
    Count,
    CountOrZero,
    Downscale,
    InsideUnit,
    Positive,
    PositiveOrZero,
    Section,
    Share,
    ShareBelowOne,
    Size,
    Switches,
    Text,
    Widths,
)


@pytest.mark.parametrize(
    ("kind", "lets_in", "keeps_out"),
    [
        (Count, [1, 9], [0, -1, True, 1.0, "1", None]),
        (CountOrZero, [0, 1], [-1, False]),
        (Positive, [1, 0.1], [0, -1.0, True, "1", float("inf"), float("nan")]),
        (PositiveOrZero, [0, 2.5], [-0.1]),
        (Share, [0, 0.5, 1], [1.1, -0.1]),
        (ShareBelowOne, [0, 0.99], [1]),
        (InsideUnit, [0.5], [0, 1]),
        (Text, ["a"], ["", 1, None]),
        (Widths, [[1], [1, 2]], [[], [0], ["1"], 1, {1, 2}, "12"]),
        (Switches, [[True, False]], [[], [1]]),
        (Betas, [[0.0, 0.5]], [[0.5], [0.5, 1.0], [0.1, 0.1, 0.1]]),
        (Size, [[1, 2]], [[1], [1.0, 2]]),
        (Downscale, [[1, 2.5]], [[0.5, 1]]),
    ],
)
def test_values_of_each_type(kind: Any, lets_in: list[Any], keeps_out: list[Any]) -> None:
    class Example(Section):
        value: kind

    for value in lets_in:
        found = Example.model_validate({"value": value}).value
        assert found == (tuple(value) if isinstance(value, list) else value)
    for value in keeps_out:
        with pytest.raises(ValidationError):
            Example.model_validate({"value": value})


def test_an_integer_becomes_a_number() -> None:
    class Example(Section):
        value: Positive

    assert type(Example(value=1).value) is float


def test_sections_are_closed_and_frozen_all_the_way_down() -> None:
    class Example(Section):
        widths: Widths
        """How wide."""

    example = Example.model_validate({"widths": [1, 2]})
    assert isinstance(hash(example), int)
    assert Example.model_fields["widths"].description == "How wide."
    with pytest.raises(ValidationError, match="frozen"):
        example.widths = (3,)  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Example.model_validate({"widths": [1], "heights": [1]})


def test_types_can_stand_alone() -> None:
    assert TypeAdapter(Size).validate_python([3, 4]) == (3, 4)
