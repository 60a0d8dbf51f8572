"""Which networks are opened, with which weights, and what is said of those that are missing."""

from pathlib import Path

import pytest
import torch

from latentae.evaluation import networks as module
from latentae.evaluation.networks import METRICS_OF, choose_weights, open_measures
from latentae.weights import WeightsNotFoundError

CPU = torch.device("cpu")


class Network:
    dimensions = 4
    identity = "network-1"

    def __init__(self, *arguments):
        pass


@pytest.fixture
def nothing(monkeypatch):
    """No weights are to be had."""

    def missing(*arguments, **options):
        raise WeightsNotFoundError("not here\nsecond line")

    for name in ("load_trunk", "InceptionFeatures", "VGG16Features", "DINOv2Features", "CLIPFeatures"):
        monkeypatch.setattr(module, name, missing)
    return monkeypatch


def test_what_is_missing_is_said_and_replaced_by_nothing(nothing):
    measures = open_measures(CPU)
    assert measures.lpips == {}
    assert measures.features == {}
    assert measures.remarks == [
        "LPIPS (alex) left out: not here",
        "LPIPS (vgg) left out: not here",
        "rFID, KID, precision and recall left out: not here",
        "FD-VGG16 left out: not here",
    ]


def test_a_file_that_was_named_must_be_there(nothing, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pth, but there is no such file"):
        open_measures(CPU, inception=tmp_path / "gone.pth")
    (tmp_path / "here.pth").touch()
    with pytest.raises(ValueError, match="not here"):
        open_measures(CPU, inception=tmp_path / "here.pth")


def test_features_know_photographs_only(nothing):
    nothing.setattr(module, "InceptionFeatures", Network)
    nothing.setattr(module, "VGG16Features", Network)
    assert open_measures(CPU, channels=3).identities == {"inception": "network-1", "vgg16": "network-1"}
    measures = open_measures(CPU, channels=6, lpips=())
    assert measures.features == {}
    assert measures.remarks == [
        "rFID, KID, precision and recall and FD-VGG16 left out: their networks take photographs, "
        "not 6 channels"
    ]
    assert open_measures(CPU, features=False, lpips=()).remarks == []


def test_all_networks_that_an_evaluation_knows(nothing, tmp_path):
    for name in ("InceptionFeatures", "VGG16Features", "DINOv2Features"):
        nothing.setattr(module, name, Network)
    asked = []

    def clip(path, device, *, download):
        asked.append((path, download))
        return Network()

    nothing.setattr(module, "CLIPFeatures", clip)
    file = tmp_path / "dino.pth"
    file.touch()
    options = {"networks": list(METRICS_OF), "lpips": ()}
    measures = open_measures(CPU, weights=[f"dinov2={file}"], **options)
    assert list(measures.features) == ["inception", "vgg16", "dinov2", "clip"]
    assert [remark.partition(":")[0] for remark in measures.remarks] == [
        "FD-DINOv2 is of a network with 4 features, and published numbers are of one with 1024",
        "CLIP-MMD is of a network with 4 features, and published numbers are of one with 768",
    ]
    open_measures(CPU, weights=["clip"], **options)
    assert asked == [(None, False), (None, True)]


def test_weights_that_were_named_must_be_had(nothing):
    with pytest.raises(ValueError, match="not here"):
        open_measures(CPU, networks=["clip"], weights=["clip"], lpips=())


def test_files_of_weights(tmp_path):
    file = tmp_path / "a=b.pth"
    file.touch()
    assert choose_weights([f"clip={file}", "dinov2"], file) == {
        "inception": file,
        "clip": file,
        "dinov2": None,
    }
    for weights, says in (
        (
            ["vgg16=x"],
            "weights is 'vgg16=x', but must be NAME or NAME=FILE, with NAME one of inception, dinov2",
        ),
        (["clip", "clip"], "weights names clip twice"),
        (["clip=gone.pt"], r"weights is clip=gone\.pt, but there is no such file"),
    ):
        with pytest.raises(ValueError, match=says):
            choose_weights(weights)
    with pytest.raises(ValueError, match="weights names inception twice"):
        choose_weights(["inception"], file)
    with pytest.raises(ValueError, match=r"inception is gone\.pth, but there is no such file"):
        choose_weights([], Path("gone.pth"))
