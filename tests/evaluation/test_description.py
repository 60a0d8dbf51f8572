import subprocess

import pytest
import torch

import latentae
from latentae.evaluation import description
from latentae.evaluation.assembly import Assembled
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.description import describe_model, describe_protocol, hardware
from latentae.evaluation.models import Subject
from latentae.evaluation.protocol import PROTOCOLS
from latentae.evaluation.request import Request
from latentae.report.results import Value


@pytest.fixture
def assembled():
    drift = [torch.tensor([21.0, float("nan"), 23.0]), torch.tensor([18.0, float("nan"), 20.0])]
    values = {"psnr": torch.tensor([20.0, 21.0, 25.0]), "cycle_psnr_10": drift[1], "cycle_psnr_2": drift[0]}
    metrics = {"psnr": Value(22.0)}
    broken = ["b.png: it is empty"]
    return Assembled(metrics, values, torch.arange(3), {"mean": [0.0]}, broken, "cd" * 32, ["Few."])


def test_everything_that_numbers_depend_on(assembled, source, measures, tmp_path):
    request = Request(["kl"], "images", tmp_path, limit=3, value_range=(0.0, 5.0))
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3, 3)
    said = describe_protocol(request, "test", blocks, measures, assembled, torch.device("cpu"))
    assert said["name"] == "native"
    assert said["images"] == 3
    assert said["unreadable"] == ["b.png: it is empty"]
    assert said["data"] == {
        "name": "images",
        "split": "test",
        "limit": 3,
        "value_range": (0.0, 5.0),
        "list_sha256": blocks.list_sha256,
        "pixels_sha256": "cd" * 32,
    }
    assert said["networks"] == measures.identities
    assert said["networks"]["inception"] == "means-1"
    assert said["code"]["latentae"] == latentae.__version__
    assert said["hardware"].startswith("1 x ")


def test_a_model(assembled, models, measures):
    measures.remarks.append("No rFID.")
    details = describe_model(Subject("vq", "run", models["vq"]), assembled, measures)
    assert (details.class_name, details.path) == ("VQVAE", "run")
    assert details.parameters == sum(parameter.numel() for parameter in models["vq"].parameters())
    assert (details.downsampling_factor, details.latent_channels) == (2, 4)
    assert list(details.cycle_psnr.items()) == [("2", 22.0), ("10", 19.0)]
    assert details.percentiles["psnr"]["50"] == 21.0
    assert details.remarks == [
        "No rFID.",
        "Few.",
        "1 of 4 images could not be measured and count nowhere, such as b.png: it is empty",
    ]


def test_hardware():
    assert len(hardware(torch.device("cpu"))) > 2


def test_the_commit_is_that_of_the_checkout(monkeypatch, tmp_path):
    def git(*arguments, cwd, **options):
        return subprocess.CompletedProcess(arguments, 0, f"of {cwd.name}\n", "")

    monkeypatch.setattr(description.subprocess, "run", git)
    monkeypatch.setattr(description, "__file__", str(tmp_path / "latentae/evaluation/description.py"))
    assert description.commit() is None  # an installed package, perhaps inside of another checkout
    (tmp_path / ".git").mkdir()
    assert description.commit() == f"of {tmp_path.name}"
