"""Lists the wheels that a machine without a network lacks, with their sizes.

    python benchmarks/wheels.py --have torch triton transformers --torch 2.11 --requirements wheels.txt

Reads the metadata of this environment: what latentae needs, and what that needs, without what the other
machine has and what comes with it. Sizes are those of the installed files; a wheel is a zip of them and about
a third as large. torchvision has to be the release that belongs to the machine's torch.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from measuring import benchmark_parser, print_head, print_row
from packaging.requirements import Requirement


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--have", nargs="+", default=["torch", "triton", "transformers"], help="what the machine has"
    )
    parser.add_argument(
        "--lack", nargs="+", default=["pydantic"], help="what it lacks, though what it has needs it here"
    )
    parser.add_argument("--need", nargs="+", default=["latentae", "pytest"], help="what shall run there")
    parser.add_argument("--torch", help="release of the machine's torch, such as 2.11")
    parser.add_argument("--python", default="3.12", help="release of its Python")
    parser.add_argument("--requirements", type=Path, help="file to write the list to, for pip download")
    arguments = parser.parse_args()
    there = closure(arguments.have) - (closure(arguments.lack) - closure(["torch"]))
    missing = sorted(closure(arguments.need) - there - {"latentae"})
    versions = {name: importlib.metadata.version(name) for name in missing}
    if arguments.torch and "torchvision" in versions:
        versions["torchvision"] = torchvision_for(arguments.torch)
    print_head("package", "version", "installed, MB", "built for")
    total = 0.0
    for name, version in versions.items():
        size, kind = installed_size(name) / 1e6, platform_of(name)
        total += size
        print_row(name, version, f"{size:.1f}", kind)
    print_row(f"{len(missing)} packages", "", f"{total:.0f}", "")
    if arguments.requirements:
        arguments.requirements.write_text("".join(f"{n}=={version}\n" for n, version in versions.items()))
        print(
            f"\npip download --no-deps --only-binary=:all: --python-version {arguments.python} "
            f"--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d wheels "
            f"-r {arguments.requirements}\n"
            "pip install --no-index --no-deps wheels/*.whl"
        )


def closure(names: list[str]) -> set[str]:
    """Returns the normalised names of installed packages and of all that these need, without extras."""
    found: set[str] = set()
    waiting = [normalised(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # what another system has, such as triton
            continue
        found.add(name)
        waiting += [
            normalised(requirement.name)
            for requirement in map(Requirement, needed)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    return found


def normalised(name: str) -> str:
    """Returns a package's name as an index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_size(name: str) -> int:
    """Returns the bytes of a package's files."""
    files = importlib.metadata.files(name) or []
    return sum(file.size or 0 for file in files)


def platform_of(name: str) -> str:
    """Returns `any` for a pure Python package, else `machine`, of which each Python needs its own."""
    wheel = importlib.metadata.distribution(name).read_text("WHEEL") or ""
    return "any" if "Root-Is-Purelib: true" in wheel else "machine"


def torchvision_for(torch: str) -> str:
    """Returns the release of torchvision that was built for a release 2.n of torch: 0.(n + 15)."""
    minor = int(torch.split(".")[1])
    return f"0.{minor + 15}.0"


if __name__ == "__main__":
    main()
