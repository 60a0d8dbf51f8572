"""Types in words: `an integer >= 1 or null`, not `Optional[Annotated[int, Ge(ge=1)]]`."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_NOUNS = {int: ("an integer", "integers"), float: ("a number", "numbers")}
_PLAIN = {bool: ("true or false", "true or false values"), str: ("text", "texts")}


def describe(annotation: Any, metadata: tuple[Any, ...] = (), plural: bool = False) -> str:
    """What a value of this type is, with its range: `a number in [0, 1) or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], (*metadata, *_constraints(arguments[1:])), plural)
    if origin in (Union, UnionType):
        options = sorted(arguments, key=lambda option: option is NoneType)
        return " or ".join(describe(option, metadata, plural) for option in options)
    if annotation is NoneType:
        return "null"
    if origin is Literal:
        return f"names out of {', '.join(arguments)}" if plural else one_of(list(arguments))
    if origin is tuple:
        some = "a non-empty list" if _limit(metadata, "min_length") else "a list"
        number = "" if arguments[-1] is Ellipsis else {2: "two "}.get(len(arguments), f"{len(arguments)} ")
        return f"{some} of {number}{describe(arguments[0], plural=True)}"
    if annotation in _NOUNS:
        return " ".join(filter(None, (_NOUNS[annotation][plural], _range(metadata))))
    return _PLAIN[annotation][plural]


def element_of(annotation: Any) -> Any | None:
    """The type of the elements where `annotation` is a list or null; None where it is anything else."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return element_of(arguments[0])
    if origin in (Union, UnionType):
        options = [option for option in arguments if option is not NoneType]
        return element_of(options[0]) if len(options) == 1 else None
    return arguments[0] if origin is tuple else None


def one_of(names: list[str]) -> str:
    """`one of alex, vgg`; a single name stands for itself."""
    return f"one of {', '.join(names)}" if len(names) > 1 else names[0]


def _constraints(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])
    )


def _limit(metadata: tuple[Any, ...], name: str) -> Any:
    return next((getattr(item, name) for item in metadata if hasattr(item, name)), None)


def _range(metadata: tuple[Any, ...]) -> str:
    least, above, most, below = (_limit(metadata, name) for name in ("ge", "gt", "le", "lt"))
    low = least if least is not None else above
    high = most if most is not None else below
    if low is not None and high is not None:
        return f"in {'[' if least is not None else '('}{low}, {high}{']' if most is not None else ')'}"
    if low is not None:
        return f"{'>=' if least is not None else '>'} {low}"
    if high is not None:
        return f"{'<=' if most is not None else '<'} {high}"
    return ""
