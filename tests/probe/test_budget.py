import json

import pytest
import torch

from latentae.probe import budget
from latentae.probe.denoiser import DenoiserSize
from latentae.probe.folder import ProbeFolder
from latentae.probe.request import ProbeRequest

CPU = torch.device("cpu")
SIZE = DenoiserSize(32, 1)


def steps(tmp_path, **changes):
    request = ProbeRequest(["a"], "photos", tmp_path, size=SIZE, batch_size=2, **changes)
    return budget.resolve_steps(request, ProbeFolder(tmp_path), (4, 8, 8), 4, CPU)


def test_steps_as_asked(tmp_path):
    assert steps(tmp_path) == 2000
    assert steps(tmp_path, steps=7) == 7
    assert list(tmp_path.iterdir()) == []


def test_seconds_are_turned_into_steps_once(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "seconds_a_step", lambda *arguments: 0.25)
    assert steps(tmp_path, seconds=10.0) == 40
    monkeypatch.setattr(budget, "seconds_a_step", lambda *arguments: 0.5)
    assert steps(tmp_path, seconds=10.0) == 40  # as noted
    assert json.loads((tmp_path / "budget.json").read_text()) == {"seconds_a_step": 0.25, "steps": 40}


def test_seconds_too_few_for_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "seconds_a_step", lambda *arguments: 3.0)
    assert steps(tmp_path, seconds=0.1) == 1


def test_measured_on_steps_that_are_taken():
    few, many = (budget.seconds_a_step((4, 8, 8), 8, SIZE, batch_size, CPU) for batch_size in (2, 256))
    assert 0 < few < many
    with pytest.raises(ValueError, match="cannot be cut"):
        budget.seconds_a_step((4, 8, 8), 3, SIZE, 2, CPU)
