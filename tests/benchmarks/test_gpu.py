import json

import pytest
import torch


@pytest.fixture
def gpu(script):
    return script("gpu")


def section(gpu, cells, more=lambda rows, rates: None):
    return gpu.Section("Title", lambda plan: iter(cells), "Notes.", more)


@pytest.fixture
def plan(script):
    return script("gpu_steps").Plan(torch.device("cpu"), True, 1)


def test_a_call_continues_what_was_interrupted(gpu, plan, tmp_path, monkeypatch):
    done = []

    def cell(name):
        def run():
            done.append(name)
            if name == "b":
                raise ValueError("no compiler\nand more")
            return [{"what": name, "ms": 1.5}]

        return name, run

    monkeypatch.setattr(gpu, "SECTIONS", {"steps": section(gpu, map(cell, "abcd"))})
    store = gpu.Store(
        tmp_path / "out/measured.json", {"machine": {"device": "cpu"}, "tiny": True, "rounds": 1}
    )
    monkeypatch.setattr(gpu, "_FIRST_GUESS", 0.0)
    assert gpu.measure(store, plan, ["steps"], 60.0) == 0
    assert done == ["a", "b", "c", "d"]

    again = gpu.Store(store.path, store.settings)
    again.open()
    assert again.cells == store.cells
    assert again.failures("steps") == {"b": "ValueError: no compiler"}
    monkeypatch.setattr(gpu, "SECTIONS", {"steps": section(gpu, map(cell, "abcd"))})
    assert gpu.measure(again, plan, ["steps"], 60.0, retry=True) == 0
    assert done[4:] == ["b"]
    page = gpu.write_page(again)
    assert "| a | 1.5 |\n| c | 1.5 |" in page
    assert "- b: ValueError: no compiler" in page

    other = gpu.Store(store.path, {**store.settings, "rounds": 2})
    with pytest.raises(
        ValueError, match=r"measured\.json was measured with .*choose another folder by --out"
    ):
        other.open()


def test_without_time_one_measurement_is_made(gpu, plan, tmp_path, monkeypatch):
    cells = [(name, lambda name=name: [{"what": name}]) for name in "abc"]
    monkeypatch.setattr(gpu, "SECTIONS", {"steps": section(gpu, cells)})
    store = gpu.Store(tmp_path / "measured.json", {})
    assert gpu.measure(store, plan, ["steps"], 0.0) == 2
    assert list(json.loads(store.path.read_text())["cells"]["steps"]) == ["a"]


def test_a_step_is_compared_with_its_peers_and_its_limit(gpu):
    shared = {"model": "kl_f8", "format": "bf16", "batch": 12}
    rows = [
        {**shared, "step": "diffusers", "images/s": 20.0},
        {**shared, "step": "performance=off", "images/s": 50.0, "GFLOP per image": 4000.0},
        {**shared, "step": "performance=off", "images/s": 60.0, "batch": 64},
    ]
    gpu.add_shares(rows, [{"format": "bf16", "TFLOP/s of 3x3 convolutions": 400.0}])
    assert [row.get("of the convolutions' peak") for row in rows] == [None, "50.0%", "60.0%"]
    faster = "times those of diffusers"
    assert [row.get(faster) for row in rows] == [None, "2.50", None]
    assert not any("GFLOP per image" in row for row in rows)


def test_wheels_leave_out_what_is_there(script):
    wheels = script("wheels")
    missing = wheels.closure(["latentae"]) - wheels.closure(["torch", "transformers"])
    assert {"diffusers", "datasets", "lpips", "matplotlib"} <= missing
    assert not {"torch", "numpy", "safetensors", "huggingface-hub"} & missing
    assert {"pydantic", "pydantic-core"} <= wheels.closure(["pydantic"])
    assert wheels.torchvision_for("2.11") == "0.26.0"
    assert wheels.installed_size("lpips") > 1000
    assert (wheels.platform_of("lpips"), wheels.platform_of("pydantic-core")) == ("any", "machine")
