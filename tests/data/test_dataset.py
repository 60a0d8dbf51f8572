import threading
from functools import partial

import numpy as np
import pytest
import torch

from latentae.data import (
    BrokenImageError,
    CachedSource,
    CenterCrop,
    FolderSource,
    ImageDataset,
    RandomCrop,
    check_images,
    without_broken,
)
from latentae.data.dataset import make_sample
from latentae.data.source import EncodedImage
from tests.data.pictures import ListSource, write_png

SOURCE = ListSource(5, broken=(1, 2))


def candidates(*indices: int) -> list[EncodedImage]:
    return [EncodedImage(SOURCE.name(index), partial(SOURCE.load, index)) for index in indices]


def first_sample(*indices: int):
    rng = np.random.default_rng(0)
    return make_sample(
        candidates(*indices), RandomCrop(4), rng, channels=3, minimum_side=None, index=indices[0]
    )


def test_the_first_that_can_be_decoded():
    made = first_sample(1, 2, 4, 3)
    assert made["images"][2].add(1).mul(127.5).round().mean() == 4
    assert (made["index"], made["name"]) == (1, "picture4")
    assert made["broken"] == "picture1: it is broken\npicture2: it is broken"
    assert first_sample(3)["broken"] == ""


def test_none_can_be_decoded():
    with pytest.raises(
        BrokenImageError, match="2 images in a row cannot be decoded, the first being picture1"
    ):
        first_sample(1, 2)


def dataset(source: ListSource, seed: int = 0, **options) -> ImageDataset:
    return ImageDataset(source, RandomCrop(4, (1, 1.5), flip=True), channels=3, seed=seed, **options)


def value(sample) -> int:
    """Which picture of a ListSource this is: the value of its last channel."""
    return int(sample["images"][-1].add(1).mul(127.5).round().mean())


def test_sample():
    sample = dataset(ListSource(5))[0, 3]
    assert sample["images"].shape == (3, 4, 4)
    assert value(sample) == 3
    assert (sample["index"], sample["broken"]) == (3, "")
    assert len(dataset(ListSource(5))) == 5


def test_samples_depend_on_seed_epoch_and_index_only():
    ours = dataset(ListSource(30), seed=1)
    forwards = {index: ours[2, index]["images"] for index in range(30)}
    again = dataset(ListSource(30), seed=1)
    for index in reversed(range(30)):
        assert torch.equal(again[2, index]["images"], forwards[index])
    position = slice(0, 2)  # the channels that show where the crop was
    assert any(not torch.equal(forwards[i][position], forwards[0][position]) for i in range(1, 30))
    assert any(not torch.equal(ours[3, i]["images"], forwards[i]) for i in range(30))
    assert any(
        not torch.equal(dataset(ListSource(30), seed=2)[2, i]["images"], forwards[i]) for i in range(30)
    )


def test_broken_images_are_replaced_by_determined_others():
    source = ListSource(10, broken=(3, 4, 5, 6, 7))
    samples = [dataset(source)[epoch, 3] for epoch in range(30)]
    replacements = [value(sample) for sample in samples]
    assert set(replacements) == {0, 1, 2, 8, 9}
    assert replacements == [value(dataset(source)[epoch, 3]) for epoch in range(30)]
    for sample in samples:
        assert sample["index"] == 3
        assert sample["broken"].split("\n")[0] == "picture3: it is broken"
    assert max(len(sample["broken"].split("\n")) for sample in samples) > 1


def test_gives_up_after_max_retries():
    source = ListSource(10, broken=tuple(range(10)))
    with pytest.raises(
        BrokenImageError, match="3 images in a row cannot be decoded, the first being picture1"
    ):
        dataset(source, max_retries=2)[0, 1]
    assert len(source.loaded) == 3


def test_minimum_side_is_the_transforms():
    source = ListSource(2)
    ImageDataset(source, RandomCrop((4, 6)), 3)[0, 0]
    ImageDataset(source, CenterCrop(4), 3)[0, 0]
    assert source.loaded == [(0, 12), (0, None)]


def test_bad_arguments():
    with pytest.raises(ValueError, match="no images"):
        dataset(ListSource(0))
    with pytest.raises(ValueError, match="seed=-1"):
        dataset(ListSource(1), seed=-1)
    with pytest.raises(ValueError, match="max_retries=-1"):
        dataset(ListSource(1), max_retries=-1)


def test_check_images():
    source = ListSource(1000, broken=(0, 10, 11, 500))
    assert check_images(source, 3) == [f"picture{index}: it is broken" for index in (0, 10, 11, 500)]
    source.loaded.clear()
    assert check_images(source, 3, limit=4) == ["picture0: it is broken", "picture500: it is broken"]
    assert sorted(index for index, _ in source.loaded) == [0, 250, 500, 750]
    assert check_images(source, 3, limit=0) == []
    with pytest.raises(ValueError, match="check_images=-1"):
        check_images(source, 3, limit=-1)
    with pytest.raises(ValueError, match="channels=0"):
        check_images(source, 0)


def test_check_images_uses_threads(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    meeting = threading.Barrier(2, timeout=20)  # raises BrokenBarrierError unless two loads overlap

    class Meeting(ListSource):
        def load(self, index, channels, minimum_side=None):
            meeting.wait()
            return super().load(index, channels, minimum_side)

    assert check_images(Meeting(2), 3) == []


def test_without_broken():
    sound = ListSource(5)
    assert without_broken(sound, 3) == (sound, [])
    source, broken = without_broken(ListSource(6, broken=(1, 4)), 3)
    assert [source.name(index) for index in range(len(source))] == [f"picture{i}" for i in (0, 2, 3, 5)]
    assert broken == ["picture1: it is broken", "picture4: it is broken"]
    with pytest.raises(BrokenImageError, match="all 2 images are broken"):
        without_broken(ListSource(2, broken=(0, 1)), 3)


def test_errors_that_are_no_broken_image_are_not_hidden():
    class Faulty(ListSource):
        def load(self, index, channels, minimum_side=None):
            raise KeyError("a mistake in the source")

    for use in (lambda: dataset(Faulty(2))[0, 0], lambda: check_images(Faulty(2), 3)):
        with pytest.raises(KeyError, match="a mistake"):
            use()


def test_float_pictures():
    class Deep(ListSource):
        def load(self, index, channels, minimum_side=None):
            return np.full((9, 9, channels), 0.75, np.float32)

    torch.testing.assert_close(dataset(Deep(1))[0, 0]["images"], torch.full((3, 4, 4), 0.5))


def test_thirteen_channels_from_files_to_samples(tmp_path):
    levels = np.arange(13, dtype=np.uint16) * 5000
    np.save(tmp_path / "a.npy", np.broadcast_to(levels, (9, 11, 13)))
    np.save(tmp_path / "b.npy", np.broadcast_to(levels[:, None, None], (13, 9, 11)))
    np.save(tmp_path / "c.npy", np.broadcast_to(levels[:12], (9, 11, 12)))
    write_png(tmp_path / "d.png", 1)
    source = CachedSource(FolderSource(tmp_path))
    reasons = check_images(source, 13)
    assert [reason.partition(":")[0] for reason in reasons] == ["c.npy", "d.png"]
    sound, broken = without_broken(source, 13)
    assert (len(sound), broken) == (2, reasons)
    expected = torch.from_numpy(levels.astype(np.float32) / 65535 * 2 - 1)[:, None, None].expand(13, 6, 6)
    for transform in (CenterCrop(6), RandomCrop(6, (1, 1.5), flip=True)):
        samples = ImageDataset(sound, transform, channels=13)
        for index in range(2):
            torch.testing.assert_close(samples[0, index]["images"], expected)


def test_names():
    ours = dataset(ListSource(4, broken=(2,)))
    assert ours.name(3) == "picture3"
    assert ours[0, 3]["name"] == "picture3"
    replaced = ours[0, 2]
    assert replaced["name"] == f"picture{value(replaced)}"  # what is shown, not what is missing


def test_resolutions():
    ours = ImageDataset(
        ListSource(4), RandomCrop((4, 4)), 3, resolutions=[RandomCrop((2, 6)), RandomCrop((6, 2))]
    )
    assert [tuple(ours[key]["images"].shape[1:]) for key in ((0, 1), (0, 1, 0), (0, 1, 1))] == [
        (4, 4),
        (2, 6),
        (6, 2),
    ]
    assert ours.source.loaded == [(1, 12)] * 3  # decoded alike for all, so that a cache serves all


def test_ranks_share_the_work(monkeypatch):
    found, looked = [], []
    for rank in range(3):
        monkeypatch.setattr("latentae.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("latentae.distributed.world_size", lambda: 3)
        source = ListSource(10, broken=(0, 4, 9))
        found += check_images(source, 3)
        looked += [index for index, _ in source.loaded]
    assert sorted(looked) == list(range(10))
    assert found == [f"picture{index}: it is broken" for index in (0, 4, 9)]


def test_ranks_agree_on_what_is_sound(monkeypatch):
    parts = [torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])]
    for rank in range(2):
        monkeypatch.setattr("latentae.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("latentae.distributed.world_size", lambda: 2)

        def gather(own: torch.Tensor, rank: int = rank) -> torch.Tensor:
            assert own.tolist() == parts[rank].tolist()
            return torch.cat(parts)

        monkeypatch.setattr("latentae.distributed.all_gather_concat", gather)
        source, broken = without_broken(ListSource(6, broken=(0, 4)), 3)
        assert [source.name(index) for index in range(len(source))] == [f"picture{i}" for i in (1, 2, 3, 5)]
        assert broken == [f"picture{(0, 4)[rank]}: it is broken"]


def test_a_long_check_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr("latentae.data.dataset._SECONDS_OF_SILENCE", 0)
    source = ListSource(5)
    assert check_images(source, 3, 4, minimum_side=7) == []
    assert "opening images" in (said := capsys.readouterr().err)
    assert "/4 [" in said
    assert sorted(source.loaded) == [(0, 7), (1, 7), (2, 7), (3, 7)]
