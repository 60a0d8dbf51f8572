"""Fixtures that more than one test file needs."""

import gc
import os
import shutil
import signal
import warnings

import pytest
from torch import Tensor

from latentae.weights import load_trunk


@pytest.fixture(scope="session")
def alexnet_trunk() -> dict[str, Tensor]:
    """LPIPS's AlexNet trunk, from the user's own cache; the first session ever fetches it (64 MB)."""
    return load_trunk("alex")


def pytest_collection_finish() -> None:
    """Makes garbage collections rare, and spares them what is imported by now, which takes each 0.3 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 50)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """The system's chromium, driven by playwright."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    missing = "chromium (apt-get install chromium)" if path is None else "playwright (pip install playwright)"
    if path is None or sync_playwright is None:
        reason = f"A PAGE WAS NOT TESTED IN A BROWSER: there is no {missing}"
        warnings.warn(reason, stacklevel=1)  # also in the summary of a run that does not show skips
        pytest.skip(reason)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


# Started in the background, such as by `nohup make test &`, pytest and all it starts would ignore these.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

# A tiny run waits for the disk 60 times, each time for milliseconds. Only a loss of power would show a
# difference; a descriptor that is not open is still refused. tests/test_files.py tests the real function.
os.fsync = os.fstat
