import os
from types import SimpleNamespace

import psutil
import pytest

from latentae.files import write_json
from latentae.training import summary
from latentae.training.run_folder import RunFolder
from latentae.training.summary import describe, find_start_command, finished_summary

SUMMARY = {
    "step": 200,
    "psnr": 22.619,
    "ssim": 0.7,
    "lpips": 0.1634,
    "images": 36,
    "codebook_usage": 0.91,
    "seconds": 301.4,
}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.model.mkdir()
    write_json(folder.model / "config.json", {"_class_name": "VQModel"})
    return folder


def test_numbers_and_places(folder, tmp_path):
    text = describe(folder, SUMMARY)
    for part in (
        "22.62 dB",
        "0.700",
        "0.163",
        "91%",
        "36 images",
        "samples/step_000200.png",
    ):
        assert part in text
    assert "Next:" not in text  # for Python code that trains there is no command to repeat
    assert str(tmp_path / "model") in text
    assert "diffusers.VQModel.from_pretrained" in text


def test_pictures_of_whole_images_are_named_where_there_are_some(folder):
    assert "whole images" not in describe(folder, SUMMARY)
    folder.samples.mkdir()
    folder.whole(200).touch()
    assert "samples/whole_000200.png" in describe(folder, SUMMARY)


def test_a_model_that_no_stock_class_holds(folder):
    write_json(folder.model / "config.json", {"_class_name": "VQVAE"})
    assert "latentae.load_autoencoder" in describe(folder, SUMMARY)


def test_rows_of_codes_are_for_models_with_codes(folder):
    assert "codes in use" in describe(folder, SUMMARY)
    assert "codes in use" not in describe(folder, {**SUMMARY, "codebook_usage": None})


@pytest.mark.parametrize(
    ("given", "again"),
    [
        (
            ["scripts/train_vqgan.py", "--config", "q", "max_steps=200", "output_dir=a b"],
            "python scripts/train_vqgan.py --config q 'output_dir=a b' max_steps=400",
        ),
        (["bin/latentae", "train", "vqgan", "seed=1"], "latentae train vqgan seed=1 max_steps=400"),
    ],
)
def test_the_command_that_continues_is_the_one_that_was_given(folder, monkeypatch, given, again):
    monkeypatch.setattr("sys.argv", given)
    assert f"{again}  # continues this run" in describe(folder, SUMMARY)


def test_finished_only_with_all_steps_and_a_model(tmp_path):
    folder = RunFolder(tmp_path)
    assert finished_summary(folder, SimpleNamespace(max_steps=200)) is None
    write_json(folder.summary, SUMMARY)
    assert finished_summary(folder, SimpleNamespace(max_steps=200)) is None
    folder.model.mkdir()
    assert finished_summary(folder, SimpleNamespace(max_steps=200)) == SUMMARY
    assert finished_summary(folder, SimpleNamespace(max_steps=201)) is None


def test_where_the_scale_is_from(folder):
    assert "0.3700 (measured on the training images)" in describe(folder, {**SUMMARY, "scaling_factor": 0.37})
    kept = {**SUMMARY, "scaling_factor": 0.37, "scale_source": "of the pretrained model"}
    assert "0.3700 (of the pretrained model)" in describe(folder, kept)


SCRIPT = ["scripts/train_vqgan.py", "--config", "q", "max_steps=2"]
COMMAND = ["/usr/lib/latentae/cli.py", "train", "vqgan", "seed=1"]
PYTHON = "/usr/bin/python"


@pytest.fixture(autouse=True)
def names(monkeypatch):
    monkeypatch.setattr(summary, "_program_name", lambda name: name)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def start(monkeypatch, own, *ancestors, **environment):
    monkeypatch.setattr("sys.argv", own)
    monkeypatch.setattr(summary, "_parent_command_lines", lambda: list(ancestors))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return find_start_command()


@pytest.mark.parametrize(
    ("own", "parent", "words"),
    [
        (
            SCRIPT,
            [PYTHON, "/bin/torchrun", "--nproc_per_node", "2", *SCRIPT],
            "torchrun --nproc_per_node 2 SCRIPT",
        ),
        (
            SCRIPT,
            [PYTHON, "/bin/accelerate", "launch", "--quiet", *SCRIPT],
            "accelerate launch --quiet SCRIPT",
        ),
        (
            COMMAND,
            [PYTHON, "-m", "torch.distributed.run", "--nproc_per_node=4", "-m", "latentae.cli", *COMMAND[1:]],
            "python -m torch.distributed.run --nproc_per_node=4 -m latentae.cli",
        ),
        (SCRIPT, ["bash", "-c", "python " + " ".join(SCRIPT)], "python SCRIPT"),
        (
            SCRIPT,
            [PYTHON, "/bin/torchrun", "--nproc_per_node", "2", "other.py", *SCRIPT[1:]],
            "python SCRIPT",
        ),
        (["/bin/latentae", "train", "vqgan"], ["bash"], "latentae"),
    ],
)
def test_the_launcher_of_this_process(monkeypatch, own, parent, words):
    found = start(monkeypatch, own, parent)
    assert list(found.words) == words.replace("SCRIPT", SCRIPT[0]).split()
    assert found.note == ""


def test_a_script_between_the_launcher_and_this_process(monkeypatch):
    torchrun = [PYTHON, "/bin/torchrun", "--nproc_per_node=8", *SCRIPT]
    assert start(monkeypatch, SCRIPT, ["bash", "wrapper.sh"], torchrun).words[:2] == (
        "torchrun",
        "--nproc_per_node=8",
    )


def test_processes_that_no_launcher_was_seen_to_start(monkeypatch):
    assert start(monkeypatch, SCRIPT, ["slurmstepd"], WORLD_SIZE="8").note == ", started as 8 processes"


def test_other_nodes(monkeypatch):
    torchrun = [PYTHON, "/bin/torchrun", "--nnodes", "2", "--nproc_per_node", "4", *SCRIPT]
    found = start(monkeypatch, SCRIPT, torchrun, WORLD_SIZE="8", LOCAL_WORLD_SIZE="4")
    assert found.words[1:3] == ("--nnodes", "2")
    assert found.note == ", started on each of 2 nodes"


def test_the_processes_above_this_one():
    assert summary._parent_command_lines()[0] == psutil.Process(os.getppid()).cmdline()


def test_processes_that_the_system_hides(monkeypatch):
    def hidden(process):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "parents", hidden)  # as /proc mounted with hidepid=1
    assert summary._parent_command_lines() == []
