import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentae.training.accelerator import create_accelerator, process_group_timeout, track, track_picture
from tests.processes import launch_by_torchrun


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


def test_a_deterministic_run_has_what_cublas_needs(tiny, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # noted, so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.get_deterministic_debug_mode()
    create_accelerator(tiny())
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    try:
        create_accelerator(tiny("deterministic=true"))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the other one that is deterministic
        create_accelerator(tiny("deterministic=true"))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.set_deterministic_debug_mode(before)


def test_a_picture_in_tensorboard(tiny, tmp_path):
    accelerator = create_accelerator(tiny('trackers=["tensorboard"]'))
    accelerator.init_trackers("latentae")
    track_picture(accelerator, "samples", np.zeros((20, 30, 3), np.uint8), 7)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run/latentae"), size_guidance={"images": 0})
    events.Reload()
    assert [(image.step, image.height, image.width) for image in events.Images("samples")] == [(7, 20, 30)]


def test_a_picture_for_other_trackers():
    """Weights & Biases goes through the first dimension and takes each picture as [H, W, 3]."""
    given = []
    tracker = SimpleNamespace(name="wandb", log_images=lambda values, step: given.append((values, step)))
    picture = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    track_picture(SimpleNamespace(trackers=[tracker]), "samples", picture, 7)
    ((values, step),) = given
    assert step == 7
    assert [np.array_equal(image, picture) for image in values["samples"]] == [True]


def test_numbers_and_histograms_in_tensorboard(tiny, tmp_path):
    accelerator = create_accelerator(tiny('trackers=["tensorboard"]'))
    accelerator.init_trackers("latentae")
    track(accelerator, {"loss": 0.5}, {"codebook": torch.tensor([0.0, 1.0, 3.0])}, 7)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run/latentae"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.5)]
    ((step, histogram),) = [(e.step, e.histogram_value) for e in events.Histograms("codebook")]
    assert (step, histogram.num, histogram.min, histogram.max, histogram.sum) == (7, 3, 0, 3, 4)


def test_histograms_in_weights_and_biases(monkeypatch):
    given = []
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: given.append((values, step)))
    wandb = SimpleNamespace(Histogram=lambda values: ("histogram", values))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    accelerator = SimpleNamespace(trackers=[tracker], log=lambda values, step: given.append((values, step)))
    track(accelerator, {"loss": 0.5}, {"codebook": torch.tensor([0.0, 2.0])}, 7)
    assert given == [({"loss": 0.5}, 7), ({"codebook": ("histogram", [0.0, 2.0])}, 7)]


JOINED = """
import sys
from pathlib import Path
import torch.distributed as dist
from latentae.config import load_config
from latentae.training.accelerator import create_accelerator

accelerator = create_accelerator(load_config("vqgan", sys.argv[1:]))
timeout = dist.distributed_c10d._get_default_group()._get_backend(accelerator.device).options._timeout
Path(f"{sys.argv[0]}.{accelerator.process_index}").write_text(f"{accelerator.num_processes} {timeout}")
dist.barrier()  # a group that is still connecting, or that something still holds, aborts the process at exit
dist.destroy_process_group()
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without a GPU")
def test_torchrun_alone_joins_its_processes(tiny, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(JOINED)
    launch_by_torchrun(
        worker, 2, "--config", str(tiny.file), "process_group_timeout_hours=1.5", ACCELERATE_USE_CPU="false"
    )
    assert [(tmp_path / f"worker.py.{rank}").read_text() for rank in (0, 1)] == ["2 1:30:00"] * 2


@pytest.mark.parametrize(("override", "hours"), [([], 24), (["process_group_timeout_hours=0.5"], 0.5)])
def test_how_long_processes_wait_for_one_another(tiny, override, hours):
    assert process_group_timeout(tiny(*override)).total_seconds() == hours * 3600


def test_processes_that_are_not_joined_are_refused(tiny, monkeypatch):
    monkeypatch.setattr("latentae.distributed.world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 processes were started, of which accelerate joins 1"):
        create_accelerator(tiny("trackers=[]"))


def test_the_environment_does_not_change_accumulation(tiny, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = create_accelerator(tiny("trackers=[]", "gradient_accumulation_steps=2"))
    assert accelerator.gradient_accumulation_steps == 2


def test_what_accelerate_makes_of_a_config_is_checked(tiny, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match=r"Accelerate uses INDUCTOR for torch\.compile"):
        create_accelerator(tiny("trackers=[]"))


def test_processes_with_different_settings_are_refused(tiny, monkeypatch):
    own, other = tiny("trackers=[]"), tiny("trackers=[]", "optimizer.weight_decay=0.5", "log_every=7")
    monkeypatch.setattr("latentae.training.accelerator.gather_object", lambda objects: [*objects, other])
    with pytest.raises(ValueError, match="started with different settings") as caught:
        create_accelerator(own)
    assert "optimizer.weight_decay: 0.0 in process 0, 0.5 in process 1" in str(caught.value)
    assert "log_every: 2 in process 0, 7 in process 1" in str(caught.value)
    elsewhere = tiny("trackers=[]", "data.name=elsewhere", "cpu_threads=3", "output_dir=there")
    monkeypatch.setattr("latentae.training.accelerator.gather_object", lambda objects: [*objects, elsewhere])
    create_accelerator(own)
