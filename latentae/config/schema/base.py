"""The base class of all sections, and the value types that they share."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A group of keys. It is strictly typed, frozen, and refuses unknown keys; docstrings document the keys.

    Strict means that `"8"` is not an integer and `true` is not a number; an integer is accepted as a number.
    A section with a `type` (or `class`) key is one of several alternatives, now or later.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
OneOrMore = Annotated[float, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
InsideUnit = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# YAML has lists, but a section whose values are all immutable needs tuples.
FROM_LIST = BeforeValidator(_list_to_tuple)
Widths = Annotated[tuple[Count, ...], FROM_LIST, Field(min_length=1)]
Switches = Annotated[tuple[bool, ...], FROM_LIST, Field(min_length=1)]
Betas = Annotated[tuple[ShareBelowOne, ShareBelowOne], FROM_LIST]
Size = Annotated[tuple[Count, Count], FROM_LIST]
Sizes = Annotated[tuple[Size, ...], FROM_LIST, Field(min_length=1)]
Range = Annotated[tuple[float, float], FROM_LIST]
Downscale = Annotated[tuple[OneOrMore, OneOrMore], FROM_LIST]
