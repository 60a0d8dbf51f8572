"""Fixtures that more than one test file needs."""

import pytest
from torch import Tensor

from latentae.weights import load_trunk


@pytest.fixture(scope="session")
def alexnet_trunk() -> dict[str, Tensor]:
    """LPIPS's AlexNet trunk, from the user's own cache; the first session ever fetches it (64 MB)."""
    return load_trunk("alex")
