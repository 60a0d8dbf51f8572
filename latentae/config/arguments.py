"""The command line: `--config NAME_OR_PATH`, `--help`, `key=value`, and what people write instead."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentae.config.errors import ConfigError
from latentae.config.merge import merge
from latentae.config.reflect import known_keys, takes_text
from latentae.config.shipped import shipped_configs
from latentae.config.suggest import closest_keys, unknown_key
from latentae.config.yaml_text import NULLS, parse_yaml


@dataclass(frozen=True)
class Arguments:
    """A command line, read.

    Args:
        config: what `--config` names; None without one.
        overrides: nested as in a file, `data.image_size=64` being `{"data": {"image_size": 64}}`.
        help: whether `--help` was among the arguments.
    """

    config: str | None
    overrides: dict[str, Any]
    help: bool


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the arguments that follow a training command.

    Of two values for one key the later counts, so that a script's `"$@"` can override its own arguments.

    Raises:
        ConfigError: everything that is wrong with the arguments, one line each.
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
        raise ConfigError(f"`{token}` has no value after the =; for none at all write {path}=null")
    value: Any = _text_value(token, text) if takes_text(path) else _parse_value(token, text, waiting)
    *sections, name = path.split(".")
    target = overrides
    for depth, section in enumerate(sections, start=1):
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            above = ".".join(sections[:depth])
            raise ConfigError(f"`{token}` contradicts the override of `{above}`; drop one of them")
    below = target.get(name)
    if isinstance(below, dict) and not isinstance(value, dict):
        raise ConfigError(f"`{token}` contradicts the overrides of keys in `{path}`; drop one of them")
    target[name] = merge(below, value, (*sections, name)) if isinstance(below, dict) else value


def _text_value(token: str, text: str) -> str | None:
    """The value of a key that holds text: as it stands, but for null and for quotes around it."""
    text = text.strip()
    if text in NULLS:
        return None
    if text[0] in "'\"":
        try:
            value = parse_yaml(text, f"`{token}`", is_file=False)
        except ConfigError:
            return text  # a quotation mark that belongs to it
        return value if isinstance(value, str) else text
    return text


def _parse_value(token: str, text: str, waiting: list[str]) -> Any:
    path = token.partition("=")[0]
    try:
        return parse_yaml(text, f"`{token}`", is_file=False, is_text=takes_text, path=path)
    except ConfigError as error:
        if text[0] not in "[{":
            raise
        whole = token  # the shell has most likely split a list at its spaces
        while waiting and whole[-1] not in "]}":
            whole += f" {waiting.pop(0)}"
        raise ConfigError(f"{error}; quote an argument that has spaces: '{whole}'") from error


def _what_was_meant(token: str, waiting: list[str]) -> str:
    """The message for an argument that is no `key=value`; takes the value that goes with it off `waiting`."""
    name, has_value, value = token.lstrip("-").partition("=")
    if not token.startswith("-") and (name in shipped_configs() or name.endswith((".yaml", ".yml"))):
        return f"`{token}`: a config is named as --config {token}"
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
    """What was written for a key, and the value in it: `--max-steps 5`, `max_steps 5`, `max_steps = 5`."""
    written = token
    if waiting and waiting[0].startswith("="):
        value = waiting[0][1:]
        written = f"{written} {waiting.pop(0)}"
    if waiting and not value and not waiting[0].startswith("--") and "=" not in waiting[0]:
        value = waiting.pop(0)
        written = f"{written} {value}"
    return written, value
