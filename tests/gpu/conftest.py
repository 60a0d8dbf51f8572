"""Every test here that takes `device` runs twice: on the CPU, and on CUDA with `make test-gpu`."""

import pytest
import torch

from benchmarks.random_weights import random_trunk, use_random_trunks
from latentae.training.speed import TorchSettings, set_float32_precision
from tests.training.conftest import fresh_accelerator, tiny  # noqa: F401


def _on_cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device("cpu") if request.param == "cpu" else _on_cuda()


@pytest.fixture
def cuda():
    """For what only CUDA has. Such a test is marked `gpu`."""
    return _on_cuda()


@pytest.fixture(autouse=True)
def exact_float32():
    """Products of float32 are compared with the CPU's, so TensorFloat-32 is off."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_float32_precision("highest", torch.device("cuda"))
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(autouse=True)
def torch_settings():
    settings = TorchSettings.read()
    yield
    settings.restore()


@pytest.fixture
def alexnet_trunk(monkeypatch):
    """LPIPS and VGG16's features on random weights, since a machine with a GPU may have no network."""
    use_random_trunks(monkeypatch.setattr)
    return random_trunk("alex")
