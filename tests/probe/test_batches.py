import pytest
import torch

from latentae.probe.batches import LatentBatches, collect


class Numbered:
    """Latents [2, 1, 1] of their own number, plus a tenth of the epoch."""

    def __init__(self, count, labelled=True):
        self.count, self.labelled, self.epoch = count, labelled, None

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        sample = {"latents": torch.full((2, 1, 1), index + (self.epoch or 0) / 10)}
        return sample | ({"label": index % 3} if self.labelled else {})

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_each_image_once_an_epoch_in_another_order():
    batches = LatentBatches(Numbered(7), 3, seed=0)
    first = torch.cat([batches(step).latents[:, 0, 0, 0] for step in (0, 1)])
    second = torch.cat([batches(step).latents[:, 0, 0, 0] for step in (2, 3)])
    assert len(set(first.tolist())) == 6
    assert set(first.tolist()) <= set(range(7))
    assert {round(value % 1, 1) for value in second.tolist()} == {0.1}
    assert [int(value) for value in second] != first.int().tolist()


def test_any_step_first():
    whole = LatentBatches(Numbered(7), 3, seed=0)
    expected = [whole(step).latents for step in range(5)]
    assert torch.equal(LatentBatches(Numbered(7), 3, seed=0)(4).latents, expected[4])
    assert not torch.equal(LatentBatches(Numbered(7), 3, seed=1)(4).latents, expected[4])


def test_labels_and_offset():
    batch = collect(Numbered(7), [4, 2], torch.tensor([0.5, -1.0]))
    assert batch.latents.flatten().tolist() == [4.5, 3.0, 2.5, 1.0]
    assert batch.labels.tolist() == [1, 2]
    assert collect(Numbered(7, labelled=False), [4]).labels.tolist() == [0]


def test_fewer_images_than_a_batch():
    with pytest.raises(ValueError, match="2 training images, fewer than a batch of 3"):
        LatentBatches(Numbered(2), 3, seed=0)
