import pytest
import torch

from latentae.latents.inspection.histograms import HistogramCounter, channel_histograms
from tests.latents.inspection.conftest import ink


def test_every_value_is_counted_in_its_bin():
    values = torch.randn(20, 2, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    found = channel_histograms(values.split(3))
    assert found.values == 20 * 64
    for channel, histogram in enumerate(found.channels):
        own = values[:, channel].flatten()
        counts = torch.histogram(own, histogram.edges).hist
        assert torch.equal(counts.long(), histogram.counts)
        assert int(histogram.counts.sum()) == 20 * 64
        assert histogram.mean == pytest.approx(own.mean().item(), abs=1e-12)
        assert histogram.std == pytest.approx(own.std(correction=0).item(), rel=1e-12)
        assert 4 <= histogram.std / (histogram.edges[1] - histogram.edges[0]).item() < 8.001


def test_batches_do_not_matter():
    values = torch.randn(12, 1, 4, 4, generator=torch.manual_seed(0)) * torch.logspace(-3, 3, 12).view(
        -1, 1, 1, 1
    )
    whole, parts = (channel_histograms(values.split(size)).channels[0] for size in (12, 1))
    assert torch.equal(whole.edges, parts.edges)
    assert torch.equal(whole.counts, parts.counts)


def test_a_far_value_after_many_near_ones_is_counted_too():
    near = torch.randn(1, 1, 64, 64, generator=torch.manual_seed(0), dtype=torch.float64)
    counter = HistogramCounter()
    counter.add(near)
    counter.add(torch.full((1, 1, 1, 1), 1000.0))
    (histogram,) = counter.result().channels
    assert int(histogram.counts[-1]) == 1
    assert histogram.edges[-2] <= 1000 < histogram.edges[-1]
    assert int(histogram.counts.sum()) == 64 * 64 + 1


def test_a_constant_channel_is_said_to_be_one():
    values = torch.randn(4, 2, 4, 4)
    values[:, 1] = 3.25
    found = channel_histograms(values)
    assert [channel.constant for channel in found.channels] == [False, True]
    assert found.channels[1].counts.tolist() == [64]
    assert found.channels[1].kurtosis == 0
    assert ink(found.figure().picture) > 1000


def test_the_figure_says_how_many_channels_it_leaves_out():
    found = channel_histograms(torch.randn(2, 20, 4, 4))
    assert "the first 16 of 20" in found.figure().title
    assert found.figure(20).title == "Values of the latent channels"


def test_no_latents_are_refused():
    with pytest.raises(ValueError, match="no latents"):
        channel_histograms([])
    with pytest.raises(ValueError, match="latents of 2 channels follow latents of 1"):
        channel_histograms([torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)])
