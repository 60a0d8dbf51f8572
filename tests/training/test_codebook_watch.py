import json
import math

import pytest
import torch

from latentae import distributed
from latentae.data import CenterCrop, ImageDataset
from latentae.quantizers import create_quantizer
from latentae.training.codebook_watch import CodebookWatch, watch_codebook
from tests.quantizers.test_quantizer import NoWaiting
from tests.training.launch import in_two_ranks

TABLE = {"num_codes": 4, "code_dim": 2}
GROUPED = {**TABLE, "groups": 2, "member": {"type": "ema"}}


def watch(kind="vector", images_per_step=2, epoch_images=6, least_usage=None, **arguments):
    quantizer = create_quantizer(kind, **(arguments or TABLE))
    return CodebookWatch(
        quantizer, images_per_step=images_per_step, epoch_images=epoch_images, least_usage=least_usage
    )


def maps(*codes):
    return torch.tensor([[codes]])


def step(one, number, *codes, accepted=True):
    one.add(maps(*codes))
    one.commit(number, torch.tensor(accepted))


def test_of_the_lines_and_of_the_epoch():
    one = watch()
    step(one, 1, 0, 0)
    step(one, 2, 1, 1)
    line = one.read()
    assert line.numbers == pytest.approx({"codebook_usage": 0.5, "codebook_perplexity": 2.0})
    assert line.histograms == {}
    step(one, 3, 2, 2)  # the sixth image: an epoch is over
    step(one, 4, 3, 3)
    numbers = one.read().numbers
    assert numbers["codebook_usage"] == 0.5
    assert numbers["epoch_codebook_images"] == 6
    assert numbers["epoch_codebook_usage"] == 0.75
    assert numbers["epoch_codebook_perplexity"] == pytest.approx(3.0)
    assert numbers["epoch_codebook_deciles"] == pytest.approx([2 / 15] * 7 + [1 - 14 / 15, 0, 0])
    # Told once; the next epoch knows nothing of this one.
    step(one, 5, 3, 3)
    assert set(one.read().numbers) == {"codebook_usage", "codebook_perplexity"}
    step(one, 6, 3, 3)
    assert one.read().numbers["epoch_codebook_usage"] == 0.25


def test_micro_batches_are_one_step():
    one, other = watch(images_per_step=6), watch(images_per_step=6)
    for codes in ((0, 1), (2, 2), (1, 1)):
        one.add(maps(*codes))
    one.commit(1)
    step(other, 1, 0, 1, 2, 2, 1, 1)
    assert one.read().numbers == other.read().numbers


def test_a_step_that_was_not_made_counts_for_nothing():
    one = watch()
    step(one, 1, 0, 1)
    step(one, 2, 3, 3, accepted=False)
    step(one, 3, 0, 1)
    assert one.read().numbers["epoch_codebook_usage"] == 0.5


def test_histograms_are_in_multiples_of_an_even_share():
    one = watch("grouped", images_per_step=6, **GROUPED)
    one.add(torch.tensor([[[[0, 1, 2, 3]], [[0, 0, 0, 1]]]]))  # [B, depth, h, w]
    one.commit(1)
    line = one.read()
    assert line.histograms["code_shares_0"].tolist() == [1, 1, 1, 1]
    assert line.histograms["code_shares_1"].tolist() == [3, 1, 0, 0]
    assert (line.numbers["epoch_codebook_usage_0"], line.numbers["epoch_codebook_usage_1"]) == (1.0, 0.5)
    assert line.numbers["epoch_codebook_usage"] == 0.75
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert line.numbers["epoch_codebook_perplexity_1"] == pytest.approx(math.exp(entropy))
    assert sum(line.numbers["epoch_codebook_deciles_1"]) == pytest.approx(1)


def test_several_epochs_in_a_step_are_one():
    one = watch(images_per_step=20)
    step(one, 1, 0, 1)
    assert one.read().numbers["epoch_codebook_images"] == 20


def test_a_run_shorter_than_an_epoch_tells_of_its_part():
    one = watch(epoch_images=1000)
    step(one, 1, 0, 1)
    assert "epoch_codebook_usage" not in one.read().numbers
    step(one, 2, 2, 2)
    last = one.read(final=True)
    assert last.numbers["epoch_codebook_usage"] == 0.75
    assert last.numbers["epoch_codebook_images"] == 4
    assert last.histograms["code_shares"].tolist() == [1, 1, 2, 0]


def test_without_a_quantizer_there_is_nothing_to_tell():
    one = CodebookWatch(None, images_per_step=1, epoch_images=1)
    one.add(maps(0))
    one.add(None)
    one.commit(1)
    assert one.read(final=True).numbers == {}
    one.load_state_dict(one.state_dict())
    assert one.shares() is None


def test_resumed_equals_uninterrupted(tmp_path):
    """Stopped between the end of an epoch and the line about it, and in the middle of an epoch."""
    codes = torch.randint(4, (12, 3), generator=torch.Generator().manual_seed(0)).tolist()
    whole, lines = watch(least_usage=1.0), {}
    for number, own in enumerate(codes, 1):
        step(whole, number, *own)
        if number in (5, 12):
            lines[number] = whole.read()
    for stop in (4, 8):
        first, rest = watch(least_usage=1.0), watch(least_usage=1.0)
        for number, own in enumerate(codes[:stop], 1):
            step(first, number, *own)
            if number == 5:
                first.read()
        torch.save(first.state_dict(), tmp_path / "state.pt")
        rest.load_state_dict(torch.load(tmp_path / "state.pt"))
        for number, own in enumerate(codes[stop:], stop + 1):
            step(rest, number, *own)
            line = rest.read() if number in (5, 12) else None
            if line is not None:
                assert line.numbers == lines[number].numbers
                assert "epoch_codebook_usage" in line.numbers
        assert rest.alarm.lines == whole.alarm.lines


def test_the_warning_is_given_once_also_over_a_resume():
    one = watch(epoch_images=2, least_usage=0.9)
    said = []
    for number in range(1, 8):
        step(one, number, *[0] * 40)
        said.append(one.read().warning)
    assert [warning is not None for warning in said] == [False] * 4 + [True, False, False]
    assert said[4].startswith("many codes are not used: 25.0% of the 4 codes occur in 40 choices")
    other = watch(epoch_images=2, least_usage=0.9)
    other.load_state_dict(one.state_dict())
    for number in range(8, 20):
        step(other, number, *[0] * 40)
        assert other.read().warning is None


def test_too_few_choices_are_not_judged():
    """In an epoch that has only begun, codes cannot all have been seen."""
    one = watch(epoch_images=1000, least_usage=1.0)
    for number in range(1, 10):
        step(one, number, 0, 0, 0, 0)
        one.read()
        assert one.alarm.lines == 0
    step(one, 10, 0, 0, 0, 0)  # ten choices for each of four codes
    one.read()
    assert one.alarm.lines == 1


def test_it_never_waits_for_the_device_within_a_step():
    one = watch("grouped", images_per_step=4, **GROUPED)
    indices = torch.zeros(2, 2, 3, 3, dtype=torch.int64)
    accepted = torch.tensor(True)
    with NoWaiting():
        for number in (1, 2, 3):
            one.add(indices)
            one.add(indices)
            one.commit(number, accepted)
    assert one.last_epoch is not None


def test_sizes_come_from_the_run(tiny):
    config = tiny("gradient_accumulation_steps=3", "guard.min_codebook_usage=0.25")
    images = ImageDataset(["image"] * 7, CenterCrop(32, None), channels=3)
    one = watch_codebook(create_quantizer("ema", **TABLE), config, images)
    assert (one.images_per_step, one.epoch_images, one.alarm.least_usage) == (6, 7, 0.25)


def count(folder):
    """Two epochs of two steps of two micro-batches, of which the second step is refused."""
    one = watch("grouped", images_per_step=4, epoch_images=8, **GROUPED)
    codes = torch.randint(4, (4, 2, 2, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    for number, micro_batches in enumerate(codes, 1):
        for batch in micro_batches:  # [2, depth, 3, 3]
            one.add(batch.chunk(distributed.world_size())[distributed.rank()])
        one.commit(number, torch.tensor(number != 2))
        if number == 2:
            first = one.shares().tolist()
    counts, images = one.state_dict()["last_epoch"]
    return [first, counts.tolist(), images, one.read().numbers]


def test_two_ranks_equal_one(tmp_path):
    alone = json.loads(json.dumps(count(tmp_path)))
    assert in_two_ranks(count, tmp_path) == [alone, alone]
    _, counts, images, _ = alone
    assert images == 8
    assert [sum(table) for table in counts] == [2 * 2 * 2 * 9] * 2
