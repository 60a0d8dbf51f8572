from collections import Counter
from itertools import islice

import torch

from latentae.data import ImageStream, RandomCrop
from latentae.data.batches import StreamBatches, batch_resolution, collate
from latentae.data.samples import Sample
from tests.data.pictures import ListShards


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
        monkeypatch.setattr("latentae.data.batches.worker_number", lambda: (worker, 3))
        made = StreamBatches(stream, 2, rank=1, world_size=2, seed=0, start_batch=start)
        return [batch["indices"].tolist() for batch in islice(made, 4)]

    whole = {worker + 3 * turn: batch for worker in range(3) for turn, batch in enumerate(batches(0, worker))}
    for start in range(5):
        for worker in range(3):
            expected = [whole[number] for number in range(start + worker, 12, 3)]
            assert batches(start, worker)[: len(expected)] == expected
