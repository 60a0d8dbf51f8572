"""The command line of the training commands: `--config`, `key=value`, `--help`, and the resulting config."""

import difflib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentae.config.describe import Key, known_keys, takes_text, walk
from latentae.config.files import FAMILIES, Family, config_from_mapping, read_layers, shipped_configs, summary
from latentae.config.merge import merge
from latentae.config.messages import closest_keys, unknown_key
from latentae.config.pretrained import Describe, fill_in
from latentae.config.schema import RunConfig
from latentae.config.yaml_text import NULLS, ConfigError, parse_yaml


def load_config(family: str, argv: Sequence[str], describe: Describe | None = None) -> RunConfig:
    """Returns the config that a training command's arguments describe.

    The file that `--config NAME_OR_PATH` names is laid over its `base`, and the `key=value` overrides, whose
    values are YAML, over both. See `merge` for the rules. `--help` prints every key.

    Args:
        family: a key of `FAMILIES`, such as `vqgan`.
        argv: the arguments after the command.
        describe: returns the model section of a pretrained model; None: nothing is filled in from there.

    Raises:
        ConfigError: what is wrong, one problem per line, each naming key, value and remedy.
        SystemExit: with code 0, after `--help`.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown family `{family}`; there are {', '.join(FAMILIES)}")
    arguments = parse_arguments(argv)
    if arguments.help:
        sys.stdout.write(help_text(family))
        raise SystemExit(0)
    data = merge(read_layers(arguments.config or FAMILIES[family].default_config), arguments.overrides)
    _check_family(FAMILIES[family], data)
    if describe is not None:
        data = fill_in(data, describe)
        _check_family(FAMILIES[family], data)
    return config_from_mapping(data)


def _check_family(family: Family, data: Mapping[str, Any]) -> None:
    model = data.get("model")
    chosen = model.get("class") if isinstance(model, Mapping) else None
    for other in FAMILIES.values():
        if chosen in other.classes and other is not family:
            raise ConfigError(
                f"`model.class` is {chosen}, which {family.script} does not train "
                f"(it trains {' and '.join(family.classes)}); use {other.script}"
            )


@dataclass(frozen=True)
class Arguments:
    """A parsed command line.

    Args:
        config: the value of `--config`; None without one.
        overrides: nested as in a file: `data.image_size=64` becomes `{"data": {"image_size": 64}}`.
        help: whether `--help` was among the arguments.
    """

    config: str | None
    overrides: dict[str, Any]
    help: bool


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parses the arguments after a training command.

    If a key is given twice, the later value counts, so that a script's `"$@"` can override its own arguments.

    Raises:
        ConfigError: everything that is wrong with the arguments, one problem per line.
    """
    if "--help" in argv or "-h" in argv:
        return Arguments(config=None, overrides={}, help=True)
    waiting = list(argv)
    configs: list[str] = []
    overrides: dict[str, Any] = {}
    problems: list[str] = []
    while waiting:
        token = waiting.pop(0)
        try:
            if token == "--config" or token.startswith("--config="):
                configs.append(_config_name(token, waiting))
            elif "=" in token.lstrip("=") and not token.startswith("-"):
                _add_override(token, waiting, overrides)
            else:
                problems.append(_what_was_meant(token, waiting))
        except ConfigError as error:
            problems.append(str(error))
    if len(configs) > 1:
        problems.append(f"--config is given {len(configs)} times ({', '.join(configs)}); give it once")
    if problems:
        raise ConfigError("\n".join(problems))
    return Arguments(config=configs[0] if configs else None, overrides=overrides, help=False)


def _config_name(token: str, waiting: list[str]) -> str:
    name = token.partition("=")[2]
    if not name and "=" not in token and waiting and not waiting[0].startswith("-"):
        name = waiting.pop(0)
    if not name:
        raise ConfigError(f"--config needs a path or a shipped config: {', '.join(shipped_configs())}")
    return name


def _add_override(token: str, waiting: list[str], overrides: dict[str, Any]) -> None:
    path, _, text = token.partition("=")
    if path not in known_keys():
        raise ConfigError(unknown_key(path))
    if not text.strip():
        raise ConfigError(f"`{token}` has no value after the =; for no value write {path}=null")
    value: Any = _text_value(token, text) if takes_text(path) else _parse_value(token, text, waiting)
    place_override(path, value, overrides, token)


def place_override(path: str, value: Any, overrides: dict[str, Any], written: str) -> None:
    """Adds a value to nested overrides.

    Args:
        path: dotted, as in `data.image_size`.
        value: a plain value, or a mapping for a whole section, which is merged into earlier overrides of its
            keys.
        overrides: nested as in a file; changed in place.
        written: the override as its author wrote it, for messages.

    Raises:
        ConfigError: the override contradicts an earlier one.
    """
    # Find the section that holds the key.
    *sections, name = path.split(".")
    target = overrides
    for depth, section in enumerate(sections, start=1):
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            above = ".".join(sections[:depth])
            raise ConfigError(f"`{written}` contradicts the override of `{above}`; drop one of them")
    # A whole section is merged into overrides of its keys that came before it.
    below = target.get(name)
    if isinstance(below, dict) and not isinstance(value, dict):
        raise ConfigError(f"`{written}` contradicts the overrides of keys in `{path}`; drop one of them")
    target[name] = merge(below, value, (*sections, name)) if isinstance(below, dict) else value


def _text_value(token: str, text: str) -> str | None:
    """Returns the value of a key that holds text: unchanged, except for null and for enclosing quotes."""
    text = text.strip()
    if text in NULLS:
        return None
    if text[0] in "'\"":
        try:
            value = parse_yaml(text, f"`{token}`", is_file=False)
        except ConfigError:
            return text  # the quotation mark is part of the text
        return value if isinstance(value, str) else text
    return text


def _parse_value(token: str, text: str, waiting: list[str]) -> Any:
    path = token.partition("=")[0]
    try:
        return parse_yaml(text, f"`{token}`", is_file=False, is_text=takes_text, path=path)
    except ConfigError as error:
        if text[0] not in "[{":
            raise
        # Most likely the shell has split a list at its spaces.
        whole = token
        while waiting and whole[-1] not in "]}":
            whole += f" {waiting.pop(0)}"
        raise ConfigError(f"{error}; quote an argument that has spaces: '{whole}'") from error


def _what_was_meant(token: str, waiting: list[str]) -> str:
    """Returns the message for an argument that is not `key=value`; removes its value from `waiting`."""
    name, has_value, value = token.lstrip("-").partition("=")
    if not token.startswith("-") and (name in shipped_configs() or name.endswith((".yaml", ".yml"))):
        return f"`{token}`: to use a config, write --config {token}"
    key = name.replace("-", "_")
    keys = [key] if key in known_keys() else closest_keys(key)
    takes_value = not has_value and (keys or token.startswith("-"))
    written, value = _take_value(token, value, waiting if takes_value else [])
    if not keys:
        if close := difflib.get_close_matches(name, ["config", "dry-run"]):
            return f"`{written}`: did you mean --{close[0]}?"
        return f"`{written}` is neither --config nor key=value; --help lists the keys"
    if not value:
        value = "true" if known_keys()[keys[0]][0].type == "true or false" else "..."
    return f"`{written}`: values are given as key=value; write {keys[0]}={value}"


def _take_value(token: str, value: str, waiting: list[str]) -> tuple[str, str]:
    """Returns the text written for a key, and its value: `--max-steps 5`, `max_steps 5`, `max_steps = 5`."""
    written = token
    if waiting and waiting[0].startswith("="):
        value = waiting[0][1:]
        written = f"{written} {waiting.pop(0)}"
    if waiting and not value and not waiting[0].startswith("--") and "=" not in waiting[0]:
        value = waiting.pop(0)
        written = f"{written} {value}"
    return written, value


_INTRODUCTION = """
The config is a YAML file or the name of a shipped config. Override any key with key=value; dots separate
sections: data.image_size=64. Values are YAML: null for none, [1,2] for a list; text needs no quotes.
A section given as {...} is merged with the existing one. If you choose another type or class for a section,
the keys that both types have keep their values, and the keys that only the old type has are dropped.
A file can build on another one: `base: NAME_OR_PATH`.
--dry-run trains nothing: it prints sizes, memory and time, and saves a picture of the first batch.
"""


def help_text(family: str, width: int | None = None) -> str:
    """Returns the help of a family's training command, wrapped to `width` columns (None: the terminal's)."""
    columns = width or min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    chosen = FAMILIES[family]
    keys = list(walk(classes=chosen.classes))
    indent = max(len(key.path) for key in keys) + 4
    usage = f"usage: {chosen.script} "
    lines = [
        *_hanging(usage, "[--config NAME_OR_PATH] [--dry-run] [key=value ...]", len(usage), columns),
        "",
        *_wrap(_INTRODUCTION.strip(), columns),
        f"Without --config: {chosen.default_config}.",
        "",
        "Shipped configs:",
        *_configs(chosen, columns),
        "",
        "Keys:",
        *(line for key in keys for line in _entry(key, indent, columns)),
    ]
    return "\n".join(lines) + "\n"


def _configs(family: Family, columns: int) -> Iterator[str]:
    """Yields the lines of the shipped configs that the family trains."""
    configs = {
        name: path
        for name, path in shipped_configs().items()
        if read_layers(name).get("model", {}).get("class") in family.classes
    }
    indent = max(map(len, configs), default=0) + 4
    for name, path in configs.items():
        yield from _hanging(f"  {name}", summary(path), indent, columns)


def _entry(key: Key, indent: int, columns: int) -> Iterator[str]:
    """Yields the lines of one key: path, type and default, then its doc; a blank line above a section."""
    if key.is_section:
        yield ""
    given = "required" if key.default is None else f"default {key.default}"
    condition = f" (only with {key.only_with})" if key.only_with else ""
    yield from _hanging(f"  {key.path}", f"{key.type}; {given}{condition}", indent, columns)
    yield from (" " * 6 + line for line in _wrap(key.doc, columns - 6))


def _hanging(head: str, text: str, indent: int, columns: int) -> Iterator[str]:
    first, *rest = _wrap(text, max(columns - indent, 18)) or [""]
    yield f"{head:<{indent}}{first}".rstrip()
    for line in rest:
        yield " " * indent + line


def _wrap(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_on_hyphens=False)
