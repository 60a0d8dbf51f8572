"""Fixtures that more than one test file needs."""

import signal

import pytest
from torch import Tensor

from latentae.weights import load_trunk


@pytest.fixture(scope="session")
def alexnet_trunk() -> dict[str, Tensor]:
    """LPIPS's AlexNet trunk, from the user's own cache; the first session ever fetches it (64 MB)."""
    return load_trunk("alex")


# Started in the background, such as by `nohup make test &`, pytest and all it starts would ignore these.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)
