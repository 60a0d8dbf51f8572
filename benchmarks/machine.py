"""What a table of measurements says of where it comes from."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def hardware() -> str:
    """The processor's name."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.processor()


def commit() -> str:
    """The commit of this checkout, "-dirty" where more than the results of benchmarks was changed since."""
    described = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)results")
    return f"{described}-dirty" if changed else described or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
