import itertools

import pytest
import torch

from latentae.data import FolderSource, ImageDataset, RandomCrop
from latentae.data.loader import epoch_order
from latentae.latents.views import Views, view_loader


@pytest.fixture
def dataset(picture_folder):
    return ImageDataset(FolderSource(picture_folder), RandomCrop(8, downscale=(1, 1)), channels=3, seed=5)


def indices(loader):
    return [view for batch in loader for view in batch["indices"].tolist()]


def test_a_view_is_an_epoch_of_an_image(dataset):
    views = Views(dataset)
    assert views[3]["index"] == 3
    assert views[15]["index"] == 15
    assert torch.equal(views[3]["images"], dataset[0, 3]["images"])
    assert torch.equal(views[15]["images"], dataset[1, 3]["images"])
    assert not torch.equal(views[15]["images"], views[3]["images"])  # another crop


def test_one_epoch_has_every_image_once_in_the_training_order(dataset):
    seen = indices(view_loader(dataset, batch_size=5, seed=2))
    assert seen == epoch_order(12, 2, 0).tolist()
    assert sorted(seen) == list(range(12))
    assert seen != indices(view_loader(dataset, batch_size=5, seed=3))


def test_epochs_stay_whole(dataset):
    seen = indices(view_loader(dataset, batch_size=5, fewest_views=25))
    assert sorted(seen) == list(range(36))
    assert sorted(seen[:12]) == list(range(12))
    assert sorted(indices(view_loader(dataset, batch_size=5, fewest_views=24))) == list(range(24))


def test_ranks_share_them_out(dataset):
    shares = [
        indices(view_loader(dataset, batch_size=2, max_views=11, rank=rank, world_size=3))
        for rank in range(3)
    ]
    whole = indices(view_loader(dataset, batch_size=2, max_views=11))
    assert [len(share) for share in shares] == [4, 4, 3]
    assert shares[1] == whole[2:4] + whole[8:10]
    assert sorted(itertools.chain(*shares)) == sorted(whole)


def test_a_rank_can_be_left_without(dataset):
    assert indices(view_loader(dataset, batch_size=12, rank=1, world_size=2)) == []


@pytest.mark.parametrize("name", ["batch_size", "max_views"])
def test_nothing_at_a_time_is_refused(dataset, name):
    with pytest.raises(ValueError, match=f"{name} is 0, but must be at least 1"):
        view_loader(dataset, **{"batch_size": 1, name: 0})


def test_torch_is_left_as_it_was(dataset):
    before = torch.get_rng_state()
    indices(view_loader(dataset, batch_size=5))
    assert torch.equal(torch.get_rng_state(), before)
