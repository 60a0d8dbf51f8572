"""The text of `--help`: how to call, the shipped configs, and every key with its type, default and doc."""

import shutil
import textwrap
from collections.abc import Iterator

from latentae.config.families import FAMILIES
from latentae.config.reflect import Key, walk
from latentae.config.shipped import shipped_configs, summary

_INTRODUCTION = """
The config is a YAML file, or a shipped config by its bare name. Any key can be overridden as key=value, with
dots between sections: data.image_size=64. A value is YAML: null for none, [1,2] for a list;
but text is taken as it stands. A section given as {...} is merged into what is there. Choosing another type
or class of a section keeps the keys that both have, and drops those that only the old one has. A file may
start from another: `base: NAME_OR_PATH`.
With --dry-run nothing is trained: it tells sizes, memory and time, and shows the first batch in a picture.
"""


def help_text(family: str, width: int | None = None) -> str:
    """The help of a family's training command, wrapped to `width` columns (default: the terminal's)."""
    columns = width or min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    chosen = FAMILIES[family]
    keys = list(walk(classes=chosen.classes))
    indent = max(len(key.path) for key in keys) + 4
    lines = [
        f"usage: {chosen.script} [--config NAME_OR_PATH] [key=value ...]",
        "",
        *textwrap.wrap(_INTRODUCTION.strip(), columns),
        f"Without --config: {chosen.default_config}.",
        "",
        "Shipped configs:",
        *_configs(columns),
        "",
        "Keys:",
        *(line for key in keys for line in _entry(key, indent, columns)),
    ]
    return "\n".join(lines) + "\n"


def _configs(columns: int) -> Iterator[str]:
    configs = shipped_configs()
    indent = max(map(len, configs), default=0) + 4
    for name, path in configs.items():
        yield from _hanging(f"  {name}", summary(path), indent, columns)


def _entry(key: Key, indent: int, columns: int) -> Iterator[str]:
    """One key: path, type and default in aligned columns, its doc below; a blank line above a section."""
    if key.is_section:
        yield ""
    given = "required" if key.default is None else f"default {key.default}"
    condition = f" (only with {key.only_with})" if key.only_with else ""
    yield from _hanging(f"  {key.path}", f"{key.type}; {given}{condition}", indent, columns)
    yield from textwrap.wrap(key.doc, columns, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _hanging(head: str, text: str, indent: int, columns: int) -> Iterator[str]:
    first, *rest = textwrap.wrap(text, max(columns - indent, 18)) or [""]
    yield f"{head:<{indent}}{first}".rstrip()
    for line in rest:
        yield " " * indent + line
