"""Writes docs/reference.md: every key of a config and every option of a command, as the code describes them.

`make docs` runs it; `tests/docs/test_reference.py` fails if the page differs from the code.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from latentae.cli import COMMANDS
from latentae.commands.options import Command
from latentae.config import FAMILIES, shipped_configs
from latentae.config.describe import Key, walk
from latentae.config.files import summary

PAGE = Path(__file__).parents[1] / "reference.md"

_INTRODUCTION = """\
# Reference

Every key of a config and every option of a command. `make docs` generates this page from the code.

A config is a YAML file. On the command line `key=value` sets a key, with dots between sections:
`data.image_size=128`. In Python the same names are the keys of `load_config`'s second argument. Values are
YAML: `null` for none, `[1, 2]` for a list. A section given as a whole, as in `loss.kl={weight: 1.0}`, is
merged with what the config has. Some keys exist for some types only, such as `type: ema`; their descriptions
begin with that.
"""

_EXIT_CODES = """\
Every command exits with 0 when it is done (a training run also when it stopped on request and is saved), 1 if
it failed after the work had begun, 2 if an input cannot be used, and 130 after Ctrl-C.
"""


def reference() -> str:
    """Returns the page as Markdown."""
    lines = [
        _INTRODUCTION,
        "## Shipped configs",
        "",
        *_configs(),
        "",
        "## Keys of a config",
        "",
        "### The run",
        "",
        *_sections(list(walk())),
        "## Commands",
        "",
        _EXIT_CODES,
        *_training(),
        *(line for command in COMMANDS.values() for line in _command(command)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _configs() -> Iterator[str]:
    yield "Name one after `--config`, or in your own file as `base: NAME`."
    yield ""
    yield from _table(
        ("config", "what it is"),
        [(f"`{name}`", summary(path)) for name, path in shipped_configs().items()],
    )


def _sections(keys: Sequence[Key]) -> Iterator[str]:
    """Yields a table for the keys of the run itself, then a heading and a table for each section."""
    sections: dict[str, list[Key]] = {"": []}
    heads: dict[str, Key] = {}
    for key in keys:
        if key.is_section:
            heads[key.path] = key
            sections.setdefault(key.path, [])
        else:
            sections.setdefault(key.path.rpartition(".")[0], []).append(key)
    for path, members in sections.items():
        if path:
            head = heads[path]
            kind = f" It may be `null`; default: `{head.default}`." if "null" in head.type else ""
            yield f"### `{path}`"
            yield ""
            yield f"{_only(head)}{_escape(head.doc)}{kind}"
            yield ""
        if members:
            rows = [
                (f"`{key.path}`", _escape(key.type), _default(key), f"{_only(key)}{_escape(key.doc)}")
                for key in members
            ]
            yield from _table(("key", "values", "default", "what it does"), rows)
            yield ""


def _default(key: Key) -> str:
    if key.default is None:
        return "required"
    return f"`{_escape(key.default)}`"


def _only(key: Key) -> str:
    return f"Only with `{key.only_with}`. " if key.only_with else ""


def _training() -> Iterator[str]:
    yield "### latentae train"
    yield ""
    families = " or ".join(f"`{name}`" for name in FAMILIES)
    usage = "latentae train FAMILY [--config NAME_OR_PATH] [--dry-run] [key=value ...]"
    yield f"`{usage}`, with FAMILY {families}."
    yield ""
    scripts = ", ".join(f"`scripts/{family.script}`" for family in FAMILIES.values())
    yield (
        f"In a checkout, {scripts} are the same commands, for launchers such as `accelerate launch`. So are "
        "`scripts/evaluate.py` (`latentae evaluate`), `latent_stats.py` (`stats`), `encode_dataset.py` "
        "(`encode`) and `export.py` (`export`)."
    )
    yield ""
    defaults = ", ".join(f"`{family.default_config}` for {name}" for name, family in FAMILIES.items())
    rows = [
        ("`--config NAME_OR_PATH`", defaults, "shipped config, or path of a YAML file"),
        ("`--dry-run`", "", "train nothing: report memory and time, and save a picture of the first batch"),
        ("`key=value`", "", "set any key above; the last value of a key counts"),
        ("`--help`", "", "list the configs and the keys of this family"),
    ]
    yield from _table(("option", "default", "what it does"), rows)
    yield ""


def _command(command: Command) -> Iterator[str]:
    parser = command.parser()
    yield f"### latentae {command.name}"
    yield ""
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    needed = [_spelling(action) for action in actions if action.required]
    more = ["..."] if len(needed) < len(actions) - 1 else []  # the help is an option, too
    yield f"`{' '.join(['latentae', command.name, *needed, *more])}`"
    yield ""
    yield from _prose(command.description)
    yield f"Example: `{command.example}`"
    yield ""
    rows = [
        (f"`{_spelling(action)}`", _default_of(action), _escape(_help(action)))
        for action in actions
        if action.dest != "help"
    ]
    yield from _table(("option", "default", "what it does"), rows)
    yield ""
    yield from _prose(command.epilog)


def _spelling(action: argparse.Action) -> str:
    """Returns an option with its values, such as `--seed N`, or the name of an argument."""
    names = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
    values = " ".join(str(name) for name in names if name is not None)
    if action.choices is not None and not values:
        values = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"{values} [{values} ...]" if action.nargs == "+" else values
    name = action.option_strings[-1]
    return name if action.nargs == 0 else f"{name} {values}".rstrip()


def _default_of(action: argparse.Action) -> str:
    if action.required:
        return "required"
    shown = action.nargs != 0 and action.default not in (None, [])
    return f"`{action.default}`" if shown else ""


def _help(action: argparse.Action) -> str:
    return " ".join((action.help or "").split())


def _prose(text: str) -> Iterator[str]:
    """Yields the lines of a command's text: paragraphs, and an item for each line that is indented by two."""
    listed = False
    for line in filter(None, text.splitlines()):
        indented = line.startswith("  ")
        if indented != listed:
            yield ""
        listed = indented
        if indented:
            yield f"{'    ' if line.startswith('   ') else '- '}{_escape(line.strip())}"
        else:
            yield _escape(line)
    if text:
        yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _escape(text: str) -> str:
    """Returns text in which bars end no cell of a table; stars and angle brackets are plain."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("*", "\\*").replace("<", "\\<") for part in parts[::2]]
    return "`".join(parts)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
