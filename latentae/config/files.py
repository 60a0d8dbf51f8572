"""Config files: shipped configs and families, reading a file with its `base`, validation, writing YAML."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from latentae.config.describe import takes_text
from latentae.config.merge import merge
from latentae.config.messages import explain
from latentae.config.schema import RunConfig
from latentae.config.yaml_text import ConfigDumper, ConfigError, parse_yaml, show


@dataclass(frozen=True)
class Family:
    """A training script, the `model.class` values it accepts, and its default config."""

    classes: tuple[str, ...]
    script: str
    default_config: str


# The families of autoencoders that can be trained: one script each. To add a family, add its line.
FAMILIES = {
    "kl_vae": Family(
        classes=("KLVAE", "Flux2VAE", "TinyAutoencoder"),
        script="train_kl_vae.py",
        default_config="quickstart_kl",
    ),
    "vq_vae": Family(classes=("VQVAE",), script="train_vq_vae.py", default_config="quickstart_vq"),
    "vqgan": Family(classes=("VQGAN",), script="train_vqgan.py", default_config="quickstart"),
}


_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_configs() -> dict[str, Path]:
    """Returns the shipped configs by name: from the package or, in a checkout, from `configs/`."""
    installed = _PACKAGE / "configs"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def summary(path: Path) -> str:
    """Returns the comment on the first line of a config; empty without one."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def read_layers(
    name_or_path: str, folder: Path | None = None, above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Returns the keys of a config file merged over those of its `base`, not yet validated.

    Args:
        name_or_path: a path, or the name of a shipped config.
        folder: folder that relative paths start from; None: the working directory.
        above: the files whose `base` led here, to detect cycles.

    Raises:
        ConfigError: the file does not exist, is not readable YAML, is not a mapping, or is its own base.
    """
    path = _find(name_or_path, folder)
    if path in above:
        cycle = " -> ".join(str(step) for step in (*above, path))
        raise ConfigError(f"`base` forms a cycle: {cycle}; remove one `base`")
    content = _read_mapping(path)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: `base` is {show(base)}; it must be the name of a shipped config or a path"
        )
    return merge(read_layers(base, path.parent, (*above, path)), content)


def _find(name_or_path: str, folder: Path | None) -> Path:
    shipped = shipped_configs()
    if name_or_path in shipped:
        return shipped[name_or_path].resolve()
    path = (folder or Path()) / Path(name_or_path).expanduser()
    try:
        if path.is_file():
            return path.resolve()
        found = "is a folder" if path.is_dir() else "was not found"
    except OSError as error:  # such as a name that is too long for the file system
        raise ConfigError(f"config `{name_or_path[:60]}...` cannot be opened: {error.strerror}") from error
    close = difflib.get_close_matches(Path(name_or_path).stem, shipped, n=1)
    remedy = f"did you mean `{close[0]}`?" if close else "give the path of a YAML file or a shipped config."
    raise ConfigError(f"config `{name_or_path}` {found}; {remedy} Shipped configs: {', '.join(shipped)}")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    content = parse_yaml(text, str(path), is_text=takes_text)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must contain keys and values (`max_steps: 1000`), but contains {show(content)[:60]}"
        )
    return content


def read_config(path: str | Path) -> RunConfig:
    """Returns the config in a YAML file of any family, such as a run's `config.yaml`; raises ConfigError."""
    return config_from_mapping(read_layers(str(path)))


def config_from_mapping(data: Mapping[str, Any]) -> RunConfig:
    """Returns the validated config of nested plain values, as parsed from YAML; raises ConfigError."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, data))) from None


def dump_config(config: RunConfig) -> str:
    """Returns the config as YAML with every key in the schema's order; reading it gives an equal config."""
    plain = config.model_dump(mode="json", by_alias=True)
    return yaml.dump(plain, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=110)
