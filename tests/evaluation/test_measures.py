import pytest
import torch

from latentae.evaluation import measures as module
from latentae.evaluation.measures import Measures, open_measures
from latentae.losses.perceptual import LPIPS
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

    def missing(*arguments):
        raise WeightsNotFoundError("not here\nsecond line")

    for name in ("load_trunk", "InceptionFeatures", "VGG16Features"):
        monkeypatch.setattr(module, name, missing)
    return monkeypatch


def test_what_is_missing_is_said_and_replaced_by_nothing(nothing):
    measures = open_measures(CPU)
    assert measures.lpips == {}
    assert measures.features == {}
    assert measures.remarks == [
        "LPIPS (alex) left out: not here",
        "LPIPS (vgg) left out: not here",
        "rFID and KID left out: not here",
        "FD-VGG16 left out: not here",
    ]


def test_a_file_that_was_named_must_be_there(nothing, tmp_path):
    with pytest.raises(ValueError, match="not here"):
        open_measures(CPU, inception=tmp_path / "gone.pth")


def test_features_know_photographs_only(nothing):
    nothing.setattr(module, "InceptionFeatures", Network)
    nothing.setattr(module, "VGG16Features", Network)
    assert open_measures(CPU, channels=3).identities == {"inception": "network-1", "vgg16": "network-1"}
    measures = open_measures(CPU, channels=6, lpips=())
    assert measures.features == {}
    assert measures.remarks == [
        "rFID, KID and FD-VGG16 left out: their networks know photographs, not 6 channels"
    ]
    assert open_measures(CPU, features=False, lpips=()).remarks == []


def test_another_trunk_is_another_identity(alexnet_trunk):
    other = {**alexnet_trunk, "features.0.bias": alexnet_trunk["features.0.bias"] + 1}
    first, same, another = (
        Measures({"lpips_alex": LPIPS(trunk)}).identities["lpips_alex"]
        for trunk in (alexnet_trunk, alexnet_trunk, other)
    )
    assert first.startswith("lpips 0.1 heads on alex, ")
    assert first == same != another
