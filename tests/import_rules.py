"""Who may import whom inside latentae: the rules, and the checker that tests/test_architecture.py runs.

Every import counts, also one inside a function or under `TYPE_CHECKING`, and so does
`importlib.import_module("a.literal")`. CONTRIBUTING.md says why the rules are what they are.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "latentae"


@dataclass(frozen=True)
class Rule:
    """What one part of latentae may import besides itself and the standard library."""

    internal: tuple[str, ...]  # other parts of latentae
    forbidden: tuple[str, ...] = ()  # libraries it may not import
    only: tuple[str, ...] | None = None  # where given, the only libraries it may import


COMPONENTS = ("quantizers", "discriminators", "losses", "data")
COMPONENT = Rule(("devices", "distributed", "files", "winograd"), forbidden=("diffusers", "pydantic", "yaml"))
MEASURES = ("evaluation", "latents", "probe", "export")
MEASURE = Rule(
    ("console", "devices", "distributed", "files", "lock", *COMPONENTS, "weights", "models", "report"),
    forbidden=("pydantic",),
)
RUN = ("config", "build", *MEASURE.internal, *MEASURES)

# A part of latentae, package or module -> its rule. A part that is not listed may not exist.
RULES: dict[str, Rule] = {
    "console": Rule((), only=("tqdm",)),
    "devices": Rule((), only=("torch",)),
    "distributed": Rule((), only=("torch",)),
    "files": Rule((), only=()),
    "lock": Rule(("distributed",), only=("torch",)),
    "winograd": Rule((), only=("torch",)),
    "config": Rule((), only=("pydantic", "pydantic_core", "yaml")),
    "weights": Rule(("files", "weights_archive"), forbidden=("diffusers", "pydantic")),
    "weights_archive": Rule(("files",), forbidden=("diffusers", "pydantic")),
    "quantizers": COMPONENT,
    "discriminators": COMPONENT,
    "losses": COMPONENT,
    "data": COMPONENT,
    "report": Rule(("files",), forbidden=("diffusers", "pydantic", "yaml")),
    "models": Rule(("devices", "distributed", "files", "quantizers", "winograd"), forbidden=("pydantic",)),
    "build": Rule(("distributed", "config", *COMPONENTS, "weights", "models")),
    "evaluation": MEASURE,
    "latents": Rule((*MEASURE.internal, "evaluation", "export"), MEASURE.forbidden),
    "probe": Rule((*MEASURE.internal, "evaluation", "latents", "export"), MEASURE.forbidden),
    "export": MEASURE,
    "training": Rule(RUN),
    "demo": Rule((*MEASURE.internal, "evaluation", "latents"), MEASURE.forbidden),
    "commands": Rule((*MEASURE.internal, *MEASURES, "demo"), MEASURE.forbidden),
    "api": Rule((*RUN, "training")),
    "cli": Rule((*RUN, "commands", "training")),
    "__init__": Rule((*RUN, "api", "training")),  # `import latentae`: lazy, which a test of its own watches
}

# A library -> the only files of latentae that may import it, whatever their part's rule says.
RESERVED: dict[str, tuple[str, ...]] = {
    "accelerate": ("training/accelerator.py",),
    "gradio": ("demo/page.py",),  # after demo/serve.py has set its environment
}


def import_violations(root: Path) -> list[str]:
    """One line, `path:line: what is wrong`, for every import in `root/latentae` that the rules forbid."""
    files = sorted(path.relative_to(root / PACKAGE) for path in (root / PACKAGE).rglob("*.py"))
    parts = {_part(file) for file in files} | set(RULES)
    found = []
    for file in files:
        part = _part(file)
        if part not in RULES:
            found.append(f"{PACKAGE}/{file}: '{part}' has no rule: add one to RULES in tests/import_rules.py")
            continue
        for line, module in imported_modules(root / PACKAGE, file):
            objection = _objection(file.as_posix(), part, module, parts)
            if objection:
                found.append(f"{PACKAGE}/{file}:{line}: {objection}")
    return found


def imported_modules(package: Path, file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all that `package/file` imports.

    `from a import b` gives `a.b`, whether b is a module or not.
    """
    home = (package.name, *file.parts[:-1])
    for node in ast.walk(ast.parse((package / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), home)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call):
            match node.func, node.args:
                case ast.Name(id=name) | ast.Attribute(attr=name), [ast.Constant(value=str(target)), *_]:
                    if name in ("import_module", "__import__"):
                        yield node.lineno, _absolute(target, home)


def _part(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def _absolute(name: str, home: tuple[str, ...]) -> str:
    """`name` without leading dots, as seen from a module of the package `home`."""
    stripped = name.lstrip(".")
    level = len(name) - len(stripped)
    if level == 0:
        return name
    return ".".join((*home[: len(home) - level + 1], *([stripped] if stripped else [])))


def _objection(file: str, part: str, module: str, parts: set[str]) -> str | None:
    """Why `file`, which belongs to `part`, may not import `module`; None where it may."""
    library, *names = module.split(".")
    rule = RULES[part]
    if library == PACKAGE:
        # a name that is no part comes through the lazy __init__, which could bring in anything
        target = names[0] if names and names[0] in parts else "__init__"
        if target in (part, *rule.internal) or names == ["__version__"]:
            return None
        return f"'{part}' may not import {module}"
    if library in RESERVED and file not in RESERVED[library]:
        return f"only {', '.join(RESERVED[library])} may import {library}"
    if library in rule.forbidden:
        return f"'{part}' may not import {library}"
    if rule.only is not None and library not in rule.only and library not in sys.stdlib_module_names:
        return f"'{part}' may not import {library}, only {', '.join(rule.only)}"
    return None
