"""YAML for configs: the numbers and booleans of YAML 1.2, no duplicate keys, errors that name the line."""

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"

# PyYAML reads YAML 1.1, in which `no` is false (but `no` is a value of mixed_precision), 1e-4 is text, 010 is
# eight and 2024-01-01 is a date. The core schema of YAML 1.2 has none of these. Its hexadecimal and octal
# numbers, .inf and .nan are left out because no key accepts them: they stay text and are reported as such.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
}

NULLS = ("~", "null", "Null", "NULL")
_NO_TEXT = tuple(f"{_TAG}{name}" for name in ("int", "float", "bool"))
_DEEPEST = 16  # levels to visit, because an alias may contain itself


class ConfigError(ValueError):
    """A config or command line is wrong. The text is for people, one problem per line."""


class ConfigLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the scalars of YAML 1.2. Keys must be text, and unique."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's attribute, filled below)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Returns the mapping of a node; raises ConstructorError if a key appears twice or is not text."""
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
                problem = f"the key `{show(name)}` is not text"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return mapping


class ConfigDumper(yaml.SafeDumper):
    """`yaml.SafeDumper` with lists on one line, and quotes around text that YAML 1.1 or 1.2 would misread."""


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
    """Returns the value of a YAML text; raises ConfigError with `source`, the line and the reason.

    Args:
        is_text: whether the key at a dotted path holds text, so that 001, 1e3 and true are text there too.
        path: dotted path of the key that the value belongs to; empty for a whole config.
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
    """Marks numbers and booleans as text where the key holds text."""
    if isinstance(node, yaml.MappingNode) and path.count(".") < _DEEPEST:
        for key_node, value_node in node.value:
            _mark_text(value_node, f"{path}.{key_node.value}".removeprefix("."), is_text)
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NO_TEXT and is_text(path):
        node.tag = f"{_TAG}str"


def show(value: Any) -> str:
    """Returns a value as YAML on one line, as it would be written in a config."""
    if not isinstance(value, str | int | float | list | tuple | dict | None):
        return str(value)
    text = yaml.dump(
        value, Dumper=ConfigDumper, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
