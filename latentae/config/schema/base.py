"""What every section of a config has in common, and the value types they share."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A group of keys: typed strictly, closed to unknown keys, frozen, each key documented by its docstring.

    Strict means that `"8"` is no integer and `true` no number; an integer does where a number is asked for. A
    section with a `type` (or `class`) key is one of several that may stand in its place, now or later.
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


# YAML has lists; a section that is frozen all the way down needs tuples.
FROM_LIST = BeforeValidator(_list_to_tuple)
Widths = Annotated[tuple[Count, ...], FROM_LIST, Field(min_length=1)]
Switches = Annotated[tuple[bool, ...], FROM_LIST, Field(min_length=1)]
Betas = Annotated[tuple[ShareBelowOne, ShareBelowOne], FROM_LIST]
Size = Annotated[tuple[Count, Count], FROM_LIST]
Sizes = Annotated[tuple[Size, ...], FROM_LIST, Field(min_length=1)]
Range = Annotated[tuple[float, float], FROM_LIST]
Downscale = Annotated[tuple[OneOrMore, OneOrMore], FROM_LIST]
