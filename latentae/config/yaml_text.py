"""YAML as configs use it: YAML 1.2's numbers and booleans, no key twice, errors that name the line."""

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml

from latentae.config.errors import ConfigError

_TAG = "tag:yaml.org,2002:"

# PyYAML speaks YAML 1.1, where `no` is false (and mixed_precision has a value `no`), 1e-4 is text, 010 is
# eight and 2024-01-01 a date. YAML 1.2's core schema has none of these. Its hexadecimal, octal, .inf and .nan
# are left out: no key wants them, so they stay text and get the error that text gets.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
}

NULLS = ("~", "null", "Null", "NULL")
_NO_TEXT = tuple(f"{_TAG}{name}" for name in ("int", "float", "bool"))
_DEEPEST = 16  # an alias may hold itself


class ConfigLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` with YAML 1.2's scalars, whose keys are text and appear once."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's attribute, filled below)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node; `ConstructorError` if a key appears twice or is no text."""
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = (key_node.tag, repr(key_node.value))
            if key in seen:
                problem = f"the key `{key_node.value}` appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        mapping = super().construct_mapping(node, deep)
        for name in mapping:
            if not isinstance(name, str):
                problem = f"the key `{show(name)}` is no text"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return mapping


class ConfigDumper(yaml.SafeDumper):
    """`yaml.SafeDumper` with lists on one line, and quotes around what either YAML would not read as text."""


def _construct_int(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node))


def _represent_list(dumper: Any, items: Any) -> Any:
    return dumper.represent_sequence(f"{_TAG}seq", items, flow_style=True)


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (ConfigLoader, ConfigDumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
ConfigLoader.add_constructor(f"{_TAG}int", _construct_int)
ConfigLoader.add_constructor(f"{_TAG}float", _construct_float)
ConfigDumper.add_representer(list, _represent_list)
ConfigDumper.add_representer(tuple, _represent_list)


def parse_yaml(
    text: str,
    source: str,
    is_file: bool = True,
    is_text: Callable[[str], bool] = lambda path: False,
    path: str = "",
) -> Any:
    """The value of a YAML text, or `ConfigError` with `source`, the line (of a file) and the reason.

    Args:
        is_text: whether the key at a dotted path holds text, so that 001, 1e3 and true are text there, too.
        path: of the key that the value is of; empty for a whole config.
    """
    loader = ConfigLoader(text)
    try:
        node = loader.get_single_node()
        _mark_text(node, path, is_text)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}" if mark is not None and is_file else source
        raise ConfigError(f"{place}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error
    finally:
        loader.dispose()


def _mark_text(node: Any, path: str, is_text: Callable[[str], bool]) -> None:
    """Has values that YAML takes for numbers or booleans read as text where a key holds text."""
    if isinstance(node, yaml.MappingNode) and path.count(".") < _DEEPEST:
        for key_node, value_node in node.value:
            _mark_text(value_node, f"{path}.{key_node.value}".removeprefix("."), is_text)
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NO_TEXT and is_text(path):
        node.tag = f"{_TAG}str"


def show(value: Any) -> str:
    """A value as YAML on one line, as it would be written in a config."""
    if not isinstance(value, str | int | float | list | tuple | dict | None):
        return str(value)
    text = yaml.dump(
        value, Dumper=ConfigDumper, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
