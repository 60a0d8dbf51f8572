from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from latentae.config.wording import describe, element_of, one_of

Fraction = Annotated[float, Field(gt=0, le=0.5)]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (Annotated[int, Field(ge=1)], "an integer >= 1"),
        (Annotated[float, Field(gt=0)] | None, "a number > 0 or null"),
        (Annotated[float, Field(lt=3)], "a number < 3"),
        (Annotated[float, Field(le=3)], "a number <= 3"),
        (Fraction, "a number in (0, 0.5]"),
        (bool, "true or false"),
        (str | None, "text or null"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a"], "a"),
        (tuple[Fraction, Fraction], "a list of two numbers in (0, 0.5]"),
        (tuple[int, int, int], "a list of 3 integers"),
        (Annotated[tuple[bool, ...], Field(min_length=1)], "a non-empty list of true or false values"),
        (tuple[Literal["a", "b"], ...], "a list of names out of a, b"),
        (int | tuple[int, int] | None, "an integer or a list of two integers or null"),
    ],
)
def test_describe(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_element_of() -> None:
    assert element_of(tuple[int, ...] | None) is int
    assert element_of(Annotated[tuple[str, str], Field()]) is str
    assert element_of(int | tuple[int, int]) is None
    assert element_of(int) is None


def test_one_of() -> None:
    assert one_of(["a", "b", "c"]) == "one of a, b, c"
    assert one_of(["a"]) == "a"
