import pytest
import torch

from latentae.training.accelerator import create_accelerator


def test_a_tracker_that_is_not_installed(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        create_accelerator(tiny("trackers=[tensorboard]"))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
def test_float16_needs_a_gpu(tiny):
    with pytest.raises(ValueError, match="fp16, which needs a GPU; use bf16 or no"):
        create_accelerator(tiny("mixed_precision=fp16"))


def test_threads(tiny):
    before = torch.get_num_threads()
    create_accelerator(tiny("cpu_threads=1"))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
