"""The schema in words: which keys there are, of what type, and which sections may stand where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from latentae.config.schema import RunConfig, Section
from latentae.config.yaml_text import show

SELECTORS = ("class", "type")
"""The keys that choose among interchangeable sections."""


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    Args:
        path: dotted, as in `model.quantizer.num_codes`.
        type: description of its values.
        default: as YAML; None if the key is required.
        doc: its docstring, on one line.
        only_with: the choice it depends on, as in `type: ema`; empty if it always exists.
        is_section: whether it holds keys instead of a value.
        is_text: whether it can only hold text or a name from a list.
    """

    path: str
    type: str
    default: str | None
    doc: str
    only_with: str
    is_section: bool
    is_text: bool


def fields(section: type[Section]) -> dict[str, FieldInfo]:
    """Returns the fields of a section by their keys in YAML."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_classes(annotation: Any) -> tuple[type[Section], ...]:
    """Returns the sections that a type allows: none for a value, several for a choice."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return section_classes(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(found for option in get_args(annotation) for found in section_classes(option))
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return (annotation,) if is_section else ()


def is_optional(annotation: Any) -> bool:
    """Whether a type allows null."""
    return NoneType in get_args(annotation)


def selector(section: type[Section]) -> str:
    """Returns the key that chooses this section among its alternatives, `class` or `type`."""
    return next(name for name in SELECTORS if name in fields(section))


def choice_of(sections: Sequence[type[Section]]) -> str | None:
    """Returns the key that chooses among several sections; None if there is only one."""
    return selector(sections[0]) if len(sections) > 1 else None


def member_name(section: type[Section]) -> str:
    """Returns the value of the section's selector, such as `vector` for `VectorQuantizerConfig`."""
    names = get_args(fields(section)[selector(section)].annotation)
    assert len(names) == 1, f"{section.__name__} is one of several and must have one name of its own"
    return str(names[0])


def sections_at(path: Sequence[str]) -> tuple[type[Section], ...]:
    """Returns the sections that a path of keys allows, for any choices along the path."""
    found: tuple[type[Section], ...] = (RunConfig,)
    for key in path:
        annotations = [fields(section)[key].annotation for section in found if key in fields(section)]
        found = tuple(dict.fromkeys(inner for item in annotations for inner in section_classes(item)))
    return found


def walk(
    sections: Sequence[type[Section]] = (RunConfig,),
    prefix: str = "",
    only_with: str = "",
    classes: Sequence[str] | None = None,
) -> Iterator[Key]:
    """Yields every key below the given alternatives in the schema's order; `classes` limits `model.class`."""
    choice = choice_of(sections)
    for name, variants in _variants(sections).items():
        path = f"{prefix}{name}"
        if name == choice:
            members = {member_name(section): section for section in sections}
            docs = " ".join(f"{member}: {_one_line(section.__doc__)}" for member, section in members.items())
            yield Key(path, one_of(list(members)), None, docs, only_with, is_section=False, is_text=True)
            continue
        for field, owners in variants:
            limited = f"{choice}: {' or '.join(owners)}" if len(owners) < len(sections) else only_with
            inner = section_classes(field.annotation)
            if path == "model" and classes is not None:
                inner = tuple(section for section in inner if member_name(section) in classes)
            doc = _one_line(field.description or (sections[0].__doc__ if name in SELECTORS else ""))
            yield _key(path, field, doc, limited, is_section=bool(inner))
            if inner:
                yield from walk(inner, f"{path}.", limited, classes)


@lru_cache(maxsize=1)
def known_keys() -> dict[str, list[Key]]:
    """Returns every key of the schema by its path. A path has several entries if a choice changes it."""
    keys: dict[str, list[Key]] = {}
    for key in walk():
        keys.setdefault(key.path, []).append(key)
    return keys


def takes_text(path: str) -> bool:
    """Whether the key at a dotted path holds text, for any choices along the path."""
    keys = known_keys().get(path, [])
    return bool(keys) and all(key.is_text for key in keys)


def describe_field(field: FieldInfo) -> str:
    """Returns a description of a field: `an integer >= 1 or null`, `a section with the keys ...`."""
    inner = section_classes(field.annotation)
    if not inner:
        return describe(field.annotation, tuple(field.metadata))
    names = dict.fromkeys(name for section in inner for name in fields(section))
    or_null = " or null" if is_optional(field.annotation) else ""
    return f"a section with the keys {', '.join(names)}{or_null}"


def _variants(sections: Sequence[type[Section]]) -> dict[str, list[tuple[FieldInfo, list[str]]]]:
    """Returns, for each key, its different fields, each with the names of the sections that have it."""
    found: dict[str, list[tuple[FieldInfo, list[str]]]] = {}
    for section in sections:
        owner = member_name(section) if len(sections) > 1 else ""
        for name, field in fields(section).items():
            variants = found.setdefault(name, [])
            for other, owners in variants:
                if (other.annotation, other.default, other.description) == (
                    field.annotation,
                    field.default,
                    field.description,
                ):
                    owners.append(owner)
                    break
            else:
                variants.append((field, [owner]))
    return found


def _key(path: str, field: FieldInfo, doc: str, only_with: str, is_section: bool) -> Key:
    default = None if field.is_required() else show(field.default)
    section = "section or null" if is_optional(field.annotation) else "section"
    kind = section if is_section else describe_field(field)
    return Key(path, kind, default, doc, only_with, is_section, _is_text(field.annotation))


def _is_text(annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_text(arguments[0])
    if origin in (Union, UnionType):
        return all(option is NoneType or _is_text(option) for option in arguments)
    return annotation is str or (origin is Literal and all(isinstance(name, str) for name in arguments))


def _one_line(doc: str | None) -> str:
    return " ".join((doc or "").split())


_NOUNS = {int: ("an integer", "integers"), float: ("a number", "numbers")}
_PLAIN = {bool: ("true or false", "true or false values"), str: ("text", "texts")}


def describe(annotation: Any, metadata: tuple[Any, ...] = (), plural: bool = False) -> str:
    """Returns a description of a type with its range: `a number in [0, 1) or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], (*metadata, *_constraints(arguments[1:])), plural)
    if origin in (Union, UnionType):
        options = sorted(arguments, key=lambda option: option is NoneType)
        return " or ".join(describe(option, metadata, plural) for option in options)
    if annotation is NoneType:
        return "null"
    if origin is Literal:
        return f"names out of {', '.join(arguments)}" if plural else one_of([str(name) for name in arguments])
    if origin is tuple:
        some = "a non-empty list" if _limit(metadata, "min_length") else "a list"
        number = "" if arguments[-1] is Ellipsis else {2: "two "}.get(len(arguments), f"{len(arguments)} ")
        return f"{some} of {number}{describe(arguments[0], plural=True)}"
    if annotation in _NOUNS:
        return " ".join(filter(None, (_NOUNS[annotation][plural], _range(metadata))))
    return _PLAIN[annotation][plural]


def element_of(annotation: Any) -> Any | None:
    """Returns the element type of a list, which may also be null; None for any other type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return element_of(arguments[0])
    if origin in (Union, UnionType):
        options = [option for option in arguments if option is not NoneType]
        return element_of(options[0]) if len(options) == 1 else None
    return arguments[0] if origin is tuple else None


def one_of(names: list[str]) -> str:
    """Returns `one of alex, vgg`, or a single name unchanged."""
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
