"""From a command line, a file or a mapping to a validated `RunConfig`, and back to YAML."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from latentae.config.arguments import parse_arguments
from latentae.config.errors import ConfigError
from latentae.config.explain import explain
from latentae.config.families import FAMILIES, Family
from latentae.config.help import help_text
from latentae.config.merge import merge
from latentae.config.pretrained import Describe, fill_in
from latentae.config.schema import RunConfig
from latentae.config.shipped import read_layers
from latentae.config.yaml_text import ConfigDumper


def load_config(family: str, argv: Sequence[str], describe: Describe | None = None) -> RunConfig:
    """The config that a training command's arguments ask for.

    `--config NAME_OR_PATH` (a YAML file or a shipped config) is laid over its `base`, and `key=value`
    overrides, whose values are YAML, are laid over that (`merge` has the rules). `--help` prints every key.

    Args:
        family: a key of `FAMILIES`, as `vqgan`.
        argv: the arguments after the command.
        describe: tells what a pretrained model is; without it, nothing is filled in from there.

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


def read_config(path: str | Path) -> RunConfig:
    """The config in a YAML file of any family, such as a run's `config.yaml`; raises as `load_config`."""
    return config_from_mapping(read_layers(str(path)))


def config_from_mapping(data: Mapping[str, Any]) -> RunConfig:
    """The config that nested plain values, as YAML gives them, describe; raises as `load_config` does."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, data))) from None


def dump_config(config: RunConfig) -> str:
    """The config as YAML with every key in the schema's order; reading it again gives an equal config."""
    plain = config.model_dump(mode="json", by_alias=True)
    return yaml.dump(plain, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=110)


def _check_family(family: Family, data: Mapping[str, Any]) -> None:
    model = data.get("model")
    chosen = model.get("class") if isinstance(model, Mapping) else None
    for other in FAMILIES.values():
        if chosen in other.classes and other is not family:
            raise ConfigError(
                f"`model.class` is {chosen}, which {family.script} does not train "
                f"(it trains {' and '.join(family.classes)}); use {other.script}"
            )
