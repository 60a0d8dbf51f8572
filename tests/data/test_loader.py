import pickle
from collections import Counter
from itertools import islice

import pytest
import torch

from latentae.data import (
    CenterCrop,
    ImageDataset,
    ImageStream,
    RandomCrop,
    loader,
    training_loader,
    validation_loader,
)
from latentae.data.dataset import Sample
from latentae.data.loader import EndlessSampler, StreamBatches, batch_resolution, collate, epoch_order
from tests.data.pictures import ListShards, ListSource


def test_samples_become_a_batch():
    batch = collate(
        [
            Sample(images=torch.zeros(3, 2, 2), index=5, name="a", broken=""),
            Sample(images=torch.ones(3, 2, 2), index=7, name="b", broken="x: one\ny: two"),
        ]
    )
    assert batch["images"].mean(dim=(1, 2, 3)).tolist() == [0, 1]
    assert batch["indices"].tolist() == [5, 7]
    assert batch["names"] == ["a", "b"]
    assert batch["broken"] == ["x: one", "y: two"]


def test_resolutions_come_equally_often():
    chosen = [batch_resolution(3, seed=0, batch=batch) for batch in range(3000)]
    assert chosen == [batch_resolution(3, seed=0, batch=batch) for batch in range(3000)]
    assert all(900 < count < 1100 for count in Counter(chosen).values())
    assert batch_resolution(0, seed=0, batch=5) is None
    assert batch_resolution(1, seed=0, batch=5) == 0


def test_batch_b_is_made_by_the_same_part_wherever_a_resume_begins(monkeypatch):
    stream = ImageStream(ListShards([7, 9, 5]), RandomCrop(4), 3, shuffle_block=5)

    def batches(start: int, worker: int) -> list[list[int]]:
        monkeypatch.setattr("latentae.data.loader.worker_number", lambda: (worker, 3))
        made = StreamBatches(stream, 2, rank=1, world_size=2, seed=0, start_batch=start)
        return [batch["indices"].tolist() for batch in islice(made, 4)]

    whole = {worker + 3 * turn: batch for worker in range(3) for turn, batch in enumerate(batches(0, worker))}
    for start in range(5):
        for worker in range(3):
            expected = [whole[number] for number in range(start + worker, 12, 3)]
            assert batches(start, worker)[: len(expected)] == expected


def dataset(count: int, broken: tuple[int, ...] = ()) -> ImageDataset:
    return ImageDataset(ListSource(count, broken), RandomCrop(4, (1, 1.5), flip=True), channels=3, seed=7)


def take(data_loader, count: int) -> list[dict]:
    return list(islice(iter(data_loader), count))


def joined(batches: list[dict], key: str) -> torch.Tensor:
    return torch.cat([batch[key] for batch in batches])


def test_batches():
    batch = take(training_loader(dataset(20), batch_size=6), 1)[0]
    assert batch["images"].shape == (6, 3, 4, 4)
    assert batch["images"].dtype == torch.float32
    assert batch["indices"].dtype == torch.int64
    assert batch["broken"] == []
    assert batch["names"] == [f"picture{index}" for index in batch["indices"]]
    shown = batch["images"][:, 2].add(1).mul(127.5).round().mean(dim=(1, 2)).long()
    assert torch.equal(shown, batch["indices"])


def test_every_epoch_is_another_permutation():
    indices = joined(take(training_loader(dataset(21), batch_size=6), 14), "indices")  # four epochs
    epochs = indices.reshape(4, 21)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(21).expand(4, 21))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert epochs[2].tolist() == epoch_order(21, 0, 2).tolist()
    other = joined(take(training_loader(dataset(21), batch_size=6, seed=1), 1), "indices")
    assert not torch.equal(other, indices[:6])


def test_a_batch_larger_than_the_data_repeats_images_with_new_crops():
    batch = take(training_loader(dataset(3), batch_size=9), 1)[0]
    assert sorted(batch["indices"].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    of_first = batch["images"][batch["indices"] == 0]
    assert not torch.equal(of_first[0], of_first[1])


@pytest.mark.parametrize("count", [5, 24, 37])
def test_ranks_together_see_what_one_rank_sees(count):
    one = take(training_loader(dataset(count), batch_size=6), 9)
    ranks = [take(training_loader(dataset(count), batch_size=2, rank=r, world_size=3), 9) for r in range(3)]
    for step in range(9):
        parts = [ranks[rank][step] for rank in range(3)]
        for key in ("images", "indices"):
            assert torch.equal(one[step][key], joined(parts, key))


@pytest.mark.parametrize("start", [1, 4, 11])
def test_resuming_continues(start):
    options = {"batch_size": 4, "rank": 1, "world_size": 2}
    whole = take(training_loader(dataset(21), **options), start + 3)
    rest = take(training_loader(dataset(21), **options, start_batch=start), 3)
    for key in ("images", "indices"):
        assert torch.equal(joined(whole[start:], key), joined(rest, key))


def test_workers_change_nothing():
    expected = take(training_loader(dataset(11, broken=(4,)), batch_size=4), 7)
    for num_workers in (1, 2):
        data_loader = training_loader(dataset(11, broken=(4,)), batch_size=4, num_workers=num_workers)
        found = take(data_loader, 7)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours["images"], theirs["images"])
            assert torch.equal(ours["indices"], theirs["indices"])
            assert ours["broken"] == theirs["broken"]
    assert sum(len(batch["broken"]) for batch in expected) >= 2


def test_broken_images_are_reported():
    batches = take(training_loader(dataset(2, broken=(1,)), batch_size=4), 1)
    assert len(batches[0]["images"]) == 4
    assert len(batches[0]["broken"]) >= 2
    assert set(batches[0]["broken"]) == {"picture1: it is broken"}


def test_each_epoch_is_permuted_once(monkeypatch):
    calls = []

    def counted(num_images: int, seed: int, epoch: int):
        calls.append(epoch)
        return epoch_order(num_images, seed, epoch)

    monkeypatch.setattr(loader, "epoch_order", counted)
    sampler = EndlessSampler(100, batch_size=7, rank=1, world_size=2, seed=0, start_batch=10)
    list(islice(iter(sampler), 30))  # up to image 560
    assert calls == [1, 2, 3, 4, 5]


def test_workers_are_set_up():
    plain, parallel = training_loader(dataset(4), batch_size=2), training_loader(
        dataset(4), batch_size=2, num_workers=2, pin_memory=True, prefetch_factor=5
    )  # fmt: skip
    assert (plain.num_workers, plain.persistent_workers, plain.pin_memory) == (0, False, False)
    assert (parallel.num_workers, parallel.persistent_workers, parallel.pin_memory) == (2, True, True)
    assert parallel.prefetch_factor == 5
    assert training_loader(dataset(4), batch_size=2, num_workers=1).prefetch_factor == 2


class ThreadCountDataset(ImageDataset):
    """Says, in the place of the image, how many threads torch has where it is made."""

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        sample["images"] = torch.tensor([float(torch.get_num_threads())])
        return sample


def test_workers_have_one_thread_of_torch():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        counting = ThreadCountDataset(ListSource(4), RandomCrop(4), 3)
        batch = take(training_loader(counting, batch_size=2, num_workers=1), 1)[0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert batch["images"].tolist() == [[1], [1]]


def test_global_randomness_is_not_touched():
    state = torch.random.get_rng_state()
    take(training_loader(dataset(4), batch_size=2), 2)
    take(validation_loader(dataset(4), batch_size=2), 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_datasets_can_be_sent_to_spawned_workers():
    ours = dataset(4)
    assert torch.equal(pickle.loads(pickle.dumps(ours))[1, 2]["images"], ours[1, 2]["images"])


@pytest.mark.parametrize(
    ("count", "world_size", "num_workers"), [(10, 1, 0), (10, 3, 0), (10, 3, 1), (2, 4, 0), (7, 7, 0)]
)
def test_validation_sees_each_image_once_in_order(count, world_size, num_workers):
    indices, sizes = [], []
    for rank in range(world_size):
        batches = list(
            validation_loader(
                dataset(count), batch_size=3, rank=rank, world_size=world_size, num_workers=num_workers
            )
        )
        indices += [index for batch in batches for index in batch["indices"].tolist()]
        sizes.append(sum(len(batch["images"]) for batch in batches))
    assert indices == list(range(count))
    assert max(sizes) - min(sizes) <= 1


def test_validation_repeats():
    data_loader = validation_loader(dataset(5), batch_size=2)
    assert len(data_loader) == 3
    first, second = list(data_loader), list(data_loader)
    assert torch.equal(joined(first, "images"), joined(second, "images"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2 must be one of the 2"),
        ({"rank": -1}, "rank=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
    ],
)
@pytest.mark.parametrize("make", [training_loader, validation_loader])
def test_bad_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(dataset(4), **{"batch_size": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"), [({"start_batch": -1}, "start_batch"), ({"seed": -2}, "seed=-2")]
)
def test_bad_training_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        training_loader(dataset(4), batch_size=2, **options)


SIZES = [(4, 4), (2, 6), (6, 2)]


def in_sizes(count: int) -> ImageDataset:
    return ImageDataset(
        ListSource(count), RandomCrop(4), channels=3, resolutions=[RandomCrop(size) for size in SIZES]
    )


def sizes(batches: list[dict]) -> list[tuple[int, int]]:
    return [tuple(batch["images"].shape[2:]) for batch in batches]


def test_a_batch_has_one_resolution_on_all_ranks_and_after_a_resume():
    one = take(training_loader(in_sizes(11), batch_size=4), 30)
    assert set(sizes(one)) == set(SIZES)
    for rank in range(2):
        half = take(training_loader(in_sizes(11), batch_size=2, rank=rank, world_size=2), 30)
        assert sizes(half) == sizes(one)
        for whole, part in zip(one, half, strict=True):
            assert torch.equal(whole["images"][2 * rank : 2 * rank + 2], part["images"])
    rest = take(training_loader(in_sizes(11), batch_size=4, start_batch=7), 5)
    assert sizes(rest) == sizes(one)[7:12]
    assert sizes(take(training_loader(in_sizes(11), batch_size=4, seed=1), 30)) != sizes(one)


def stream(**options) -> ImageStream:
    return ImageStream(
        ListShards([9, 5, 12, 3, 7], broken=(2, 40)), RandomCrop(4, (1, 1.5)), 3, shuffle_block=6, **options
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_resumes_exactly_with_as_many_workers(num_workers):
    options = {"batch_size": 3, "num_workers": num_workers, "rank": 1, "world_size": 2}
    whole = take(training_loader(stream(), **options), 17)
    for start in (1, 12):
        rest = take(training_loader(stream(), **options, start_batch=start), 5)
        for expected, found in zip(whole[start:], rest, strict=False):
            assert torch.equal(expected["images"], found["images"])
            assert torch.equal(expected["indices"], found["indices"])
            assert (expected["names"], expected["broken"]) == (found["names"], found["broken"])


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 2)])
def test_a_stream_is_divided_among_ranks_and_workers(world_size, num_workers):
    data = ImageStream(ListShards([6, 6, 6, 6]), RandomCrop(4), 3, shuffle_block=3)
    seen = []
    for rank in range(world_size):  # every reader has as many shards an epoch, so they are in step
        batches = training_loader(
            data, batch_size=3, num_workers=num_workers, rank=rank, world_size=world_size
        )
        seen += joined(take(batches, 8 // world_size), "indices").tolist()
    assert sorted(seen) == [(shard << 32) + row for shard in range(4) for row in range(6)]


def test_a_stream_has_resolutions_too():
    batches = take(
        training_loader(stream(resolutions=[RandomCrop(size) for size in SIZES]), batch_size=2), 30
    )
    assert sizes(batches) == sizes(take(training_loader(in_sizes(11), batch_size=2), 30))


def test_a_stream_can_be_sent_to_spawned_workers():
    expected = take(training_loader(stream(), batch_size=4), 2)
    found = take(training_loader(pickle.loads(pickle.dumps(stream())), batch_size=4), 2)
    assert torch.equal(joined(expected, "images"), joined(found, "images"))


def test_batches_of_a_stream_are_checked():
    with pytest.raises(ValueError, match="start_batch=-1"):
        training_loader(stream(), batch_size=2, start_batch=-1)


def test_validation_leaves_out_what_cannot_be_decoded():
    broken = ImageDataset(ListSource(5, broken=(0, 1, 3)), CenterCrop(4), 3)
    first, second, third = validation_loader(broken, batch_size=2)
    assert [batch["indices"].tolist() for batch in (first, second, third)] == [[], [2], [4]]
    assert first["images"].shape == (0, 3, 4, 4)
    assert [line.split(":")[0] for line in first["broken"]][:1] == ["picture0"]
    assert second["names"] == ["picture2"]
