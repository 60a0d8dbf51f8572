"""Error messages: pydantic's findings as sentences, and which key somebody meant."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from latentae.config.describe import (
    SELECTORS,
    describe,
    describe_field,
    element_of,
    fields,
    known_keys,
    member_name,
    one_of,
    section_classes,
    selector,
)
from latentae.config.schema import RunConfig, Section
from latentae.config.yaml_text import show

_LONGEST_VALUE = 60
"""Characters after which a message cuts off a value."""


def explain(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """Returns the errors of `RunConfig.model_validate(data)` as sentences, each once."""
    sentences: list[str] = []
    for finding in error.errors(include_url=False):
        if finding["type"] == "value_error":
            sentences += str(finding["ctx"]["error"]).splitlines()
        else:
            sentences.append(_explain_one(finding["type"], finding["loc"], data))
    return list(dict.fromkeys(sentences))


def _explain_one(kind: str, location: Sequence[int | str], data: Mapping[str, Any]) -> str:
    path, sections, expected = _follow(location)
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    if kind == "extra_forbidden":
        return _extra_key(dotted, str(path[-1]))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _wrong_choice(dotted, sections, _value_at(data, path))
    if kind == "missing" and isinstance(path[-1], int):  # an item of a list: report the list as too short
        return _explain_one("too_short", location[:-1], data)
    if kind == "missing":
        return f"`{dotted}` is missing; it must be {expected}"
    value = _value_at(data, path)
    if kind == "string_unicode":
        return (
            f"`{dotted}` is {_shown(value)}, whose bytes are not UTF-8, which a config must be: rename the "
            "file or folder, or give the path of a link to it (ln -s)"
        )
    return f"`{dotted}` is {_shown(value)}; it must be {expected}{_quoting(dotted, value, expected)}"


def _follow(location: Sequence[int | str]) -> tuple[list[int | str], tuple[type[Section], ...], str]:
    """Follows pydantic's location through the schema.

    Returns the path, the sections that may stand there, and a description of what is expected there. A
    location also names the member of a union that was tried, which is not part of the path.
    """
    path: list[int | str] = []
    sections: tuple[type[Section], ...] = (RunConfig,)
    annotation: Any = RunConfig
    expected = "a section"
    for part in location:
        if len(sections) > 1:
            sections = tuple(section for section in sections if member_name(section) == part)
        elif sections:
            path.append(part)
            field = fields(sections[0]).get(str(part))
            if field is None:
                return path, (), ""
            annotation, expected = field.annotation, describe_field(field)
            sections = section_classes(annotation)
        elif isinstance(part, int) and (element := element_of(annotation)) is not None:
            path.append(part)
            annotation, expected = element, describe(element)
        else:  # a value of several types: the location continues per type, but `expected` names all types
            break
    return path, sections, expected


def _extra_key(dotted: str, last: str) -> str:
    if "." in last:
        outer, _, inner = last.partition(".")
        nested = f"{outer}: {{{inner}: ...}}"
        return f"unknown key `{dotted}`: dots are for the command line; in a file write {nested}"
    return unknown_key(dotted)


def _wrong_choice(dotted: str, sections: Sequence[type[Section]], given: Mapping[str, Any]) -> str:
    choice = selector(sections[0])
    names = [member_name(section) for section in sections]
    if choice not in given:
        return f"`{dotted}.{choice}` is missing; it must be {one_of(names)}"
    close = difflib.get_close_matches(str(given[choice]), names, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"`{dotted}.{choice}` is {_shown(given[choice])}; it must be {one_of(names)}{meant}"


def _value_at(data: Any, path: Sequence[int | str]) -> Any:
    for part in path:
        data = data[part]
    return data


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else show(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _quoting(dotted: str, value: Any, expected: str) -> str:
    """Returns the remedy where only quotes are wrong: a number given as text, or text read as a number."""
    if isinstance(value, str):
        try:
            unquoted = float(value)
        except ValueError:
            return ""
        numeric = expected.startswith(("an integer", "a number"))
        return "; write it without quotes" if numeric and math.isfinite(unquoted) else ""
    if isinstance(value, int | float) and expected.startswith("text"):
        return f"""; put it in quotes: '{dotted}="{show(value)}"'"""
    return ""


def closest_keys(path: str) -> list[str]:
    """Returns the known keys that a misspelt or misplaced dotted key most likely stands for, at most three.

    Its siblings are searched first, then the last names of all keys. A name matches if its spelling is close,
    or if it is the initials of a key (`lr`). `class` and `type` stand for each other.
    """
    path = path.replace("-", "_").strip()
    parent, _, name = path.rpartition(".")
    by_name: dict[str, list[str]] = {}
    for known in sorted(known_keys(), key=lambda known: known.count(".")):
        by_name.setdefault(known.rpartition(".")[2], []).append(known)
    siblings = _siblings(parent)
    if name in SELECTORS and (selectors := [siblings[word] for word in SELECTORS if word in siblings]):
        return selectors
    if sibling := _closest(name, siblings, cutoff=0.7):
        return [siblings[sibling]]
    elsewhere = _closest(name, by_name, cutoff=0.8)
    return by_name[elsewhere][:3] if elsewhere else []


def _siblings(parent: str) -> dict[str, str]:
    """Returns the keys directly below `parent` by their last names."""
    paths = (known.rpartition(".") for known in known_keys())
    return {name: f"{above}{dot}{name}" for above, dot, name in paths if above == parent}


def _closest(name: str, words: Iterable[str], cutoff: float) -> str | None:
    words = list(words)
    close = difflib.get_close_matches(name, words, n=1, cutoff=cutoff)
    by_initials = (word for word in words if "_" in word and name == "".join(p[0] for p in word.split("_")))
    return close[0] if close else next(by_initials, None)


def unknown_key(path: str) -> str:
    """Returns the message for a dotted key that the schema lacks, at all or with the chosen types."""
    if path in known_keys():
        choices = " or ".join(dict.fromkeys(f"`{key.only_with}`" for key in known_keys()[path]))
        return f"unknown key `{path}`: it exists only with {choices}"
    if meant := closest_keys(path):
        return f"unknown key `{path}`; did you mean {' or '.join(f'`{key}`' for key in meant)}?"
    parent = path.rpartition(".")[0]
    while not (siblings := _siblings(parent)):
        parent = parent.rpartition(".")[0]
    where = f"the keys of `{parent}` are" if parent else "the top-level keys are"
    return f"unknown key `{path}`; {where} {', '.join(siblings)}"
