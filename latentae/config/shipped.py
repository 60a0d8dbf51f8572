"""Finding and reading config files: the shipped ones by name, anybody's by path, each over its `base`."""

import difflib
from pathlib import Path
from typing import Any

from latentae.config.errors import ConfigError
from latentae.config.merge import merge
from latentae.config.reflect import takes_text
from latentae.config.yaml_text import parse_yaml, show

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_configs() -> dict[str, Path]:
    """The configs that come with latentae by name, from the package or, in a checkout, from `configs/`."""
    installed = _PACKAGE / "configs"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def summary(path: Path) -> str:
    """What a config says of itself in the comment on its first line; empty without one."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def read_layers(
    name_or_path: str, folder: Path | None = None, above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The keys of a config file laid over those of its `base`, not yet validated.

    Args:
        name_or_path: a path, or the bare name of a shipped config.
        folder: what a relative path starts from; the working directory by default.
        above: the files that led here by their `base`, to find circles.

    Raises:
        ConfigError: no such file, no readable YAML, no mapping at the top, or a circle of bases.
    """
    path = _find(name_or_path, folder)
    if path in above:
        circle = " -> ".join(str(step) for step in (*above, path))
        raise ConfigError(f"`base` runs in a circle: {circle}; take one `base` out")
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
            f"{path}: must hold keys and values (`max_steps: 1000`), but holds {show(content)[:60]}"
        )
    return content
