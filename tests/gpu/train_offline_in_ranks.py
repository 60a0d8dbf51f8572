"""What torchrun starts: tests/training/train_in_ranks.py with random trunks. Takes the same argument."""

import runpy
from pathlib import Path

import pytest

from benchmarks.random_weights import use_random_trunks

if __name__ == "__main__":
    use_random_trunks(pytest.MonkeyPatch().setattr)
    runpy.run_path(str(Path(__file__).parents[1] / "training" / "train_in_ranks.py"), run_name="__main__")
