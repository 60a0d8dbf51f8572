"""From what pydantic finds wrong to sentences that name the key, its value and what is expected there."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from latentae.config.reflect import describe_field, fields, member_name, section_classes, selector
from latentae.config.schema import RunConfig, Section
from latentae.config.suggest import unknown_key
from latentae.config.wording import describe, element_of, one_of
from latentae.config.yaml_text import show

_LONGEST_VALUE = 60
"""Characters of a value that a message repeats."""


def explain(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """The findings of `RunConfig.model_validate(data)`, one sentence each, none twice."""
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
    if kind == "missing" and isinstance(path[-1], int):  # a list that is too short: it is named, not its gap
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
    """Walk pydantic's location through the schema.

    A location also names the member of a union that was tried, which is no part of the path. The answer is
    the path, the sections that may stand there, and what is expected there in words.
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
        else:  # a value of several types: pydantic goes on per type, the sentence names them all
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
    """The remedy where only quotes are wrong: a number given as text, or text that reads as a number."""
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
