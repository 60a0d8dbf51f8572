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
    """The commit of this checkout, with a note of what is not committed."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return described.stdout.strip() or "unknown"
