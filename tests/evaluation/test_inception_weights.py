import pytest
import torch

from latentae.evaluation import inception_weights
from latentae.evaluation.inception_weights import FILE, find_inception_weights
from latentae.weights import WeightsNotFoundError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's hub cache, empty; nothing can be downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "checkpoints"


def test_a_path_is_taken_as_it_is(tmp_path):
    file = tmp_path / "mine.pth"
    file.write_bytes(b"x")
    assert find_inception_weights(file) == file
    with pytest.raises(WeightsNotFoundError, match=r"gone\.pth is not there"):
        find_inception_weights(tmp_path / "gone.pth")


def test_offline_says_what_to_do(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsNotFoundError, match=f"HF_HUB_OFFLINE is set(?s:.*)copy {FILE}"):
        find_inception_weights()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(WeightsNotFoundError, match="the download failed: no network"):
        find_inception_weights()


def test_the_cache_is_checked(hub, monkeypatch):
    hub.mkdir()
    (hub / FILE).write_bytes(b"weights")
    with pytest.raises(WeightsNotFoundError, match="damaged"):
        find_inception_weights()
    monkeypatch.setattr(inception_weights, "_HASH", inception_weights._digest(hub / FILE)[:8])
    assert find_inception_weights() == hub / FILE


def test_it_is_downloaded_with_its_hash(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    asked = {}

    def download(url, target, hash_prefix, progress):
        asked.update(url=url, hash=hash_prefix)
        (hub / FILE).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert find_inception_weights() == hub / FILE
    assert asked["url"].endswith(FILE)
    assert asked["hash"] == "6726825d"
