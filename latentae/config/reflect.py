"""Reading the schema itself: which keys there are, of what type. Help, merging and error messages need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from latentae.config.schema import RunConfig, Section
from latentae.config.wording import describe, one_of
from latentae.config.yaml_text import show

SELECTORS = ("class", "type")
"""The keys that choose among interchangeable sections."""


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    Args:
        path: dotted, as in `model.quantizer.num_codes`.
        type: what it holds, in words.
        default: as YAML; None when the key must be given.
        doc: its docstring, on one line.
        only_with: the choice it depends on, as in `type: ema`; empty when it is always there.
        is_section: whether it holds keys instead of a value.
        is_text: whether it holds text, or a name out of several, and no other type of value.
    """

    path: str
    type: str
    default: str | None
    doc: str
    only_with: str
    is_section: bool
    is_text: bool


def fields(section: type[Section]) -> dict[str, FieldInfo]:
    """The fields of a section by the key they have in YAML."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_classes(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that may stand where `annotation` stands: none for a value, several for a choice."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return section_classes(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(found for option in get_args(annotation) for found in section_classes(option))
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return (annotation,) if is_section else ()


def is_optional(annotation: Any) -> bool:
    """Whether null may stand where `annotation` stands."""
    return NoneType in get_args(annotation)


def selector(section: type[Section]) -> str:
    """The key that names the section among its alternatives, `class` or `type`."""
    return next(name for name in SELECTORS if name in fields(section))


def choice_of(sections: Sequence[type[Section]]) -> str | None:
    """The key that chooses among several sections; None where there is no choice."""
    return selector(sections[0]) if len(sections) > 1 else None


def member_name(section: type[Section]) -> str:
    """The value of the section's selector, as `vector` for `VectorQuantizerConfig`."""
    names = get_args(fields(section)[selector(section)].annotation)
    assert len(names) == 1, f"{section.__name__} is one of several and must have one name of its own"
    return str(names[0])


def sections_at(path: Sequence[str]) -> tuple[type[Section], ...]:
    """The sections that may stand at a path of keys, whatever was chosen on the way there."""
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
    """Every key below the given alternatives, in the schema's order; `classes` narrows `model.class`."""
    choice = choice_of(sections)
    for name, variants in _variants(sections).items():
        path = f"{prefix}{name}"
        if name == choice:
            members = {member_name(section): section for section in sections}
            docs = "; ".join(f"{member}: {_one_line(section.__doc__)}" for member, section in members.items())
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
    """Every key of the schema by its path; a path has several entries where the choices differ in it."""
    keys: dict[str, list[Key]] = {}
    for key in walk():
        keys.setdefault(key.path, []).append(key)
    return keys


def takes_text(path: str) -> bool:
    """Whether the key at a dotted path holds text, whatever the choices are."""
    keys = known_keys().get(path, [])
    return bool(keys) and all(key.is_text for key in keys)


def describe_field(field: FieldInfo) -> str:
    """What a field holds, in words: `an integer >= 1 or null`, `a section with the keys …`."""
    inner = section_classes(field.annotation)
    if not inner:
        return describe(field.annotation, tuple(field.metadata))
    names = dict.fromkeys(name for section in inner for name in fields(section))
    or_null = " or null" if is_optional(field.annotation) else ""
    return f"a section with the keys {', '.join(names)}{or_null}"


def _variants(sections: Sequence[type[Section]]) -> dict[str, list[tuple[FieldInfo, list[str]]]]:
    """For each key, its different fields, each with the names of the sections that have it so."""
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
    return " ".join((doc or "").split()).removesuffix(".")
