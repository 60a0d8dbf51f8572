import json
import math
from types import SimpleNamespace

import pytest
import torch

from latentae import distributed
from latentae.data import CenterCrop, ImageDataset
from latentae.quantizers import EMAQuantizer, FiniteScalarQuantizer, Quantizer, create_quantizer
from latentae.training.codebook import (
    MOST_BATCHES,
    CodebookMonitor,
    UnusedCodesAlarm,
    monitor_codebook,
    start_codebook,
)
from tests.quantizers.test_quantizer import NoWaiting
from tests.training.launch import in_two_ranks

TABLE = {"num_codes": 4, "code_dim": 2}
GROUPED = {**TABLE, "groups": 2, "member": {"type": "ema"}}


def watch(kind="vector", images_per_step=2, epoch_images=6, least_usage=None, **arguments):
    quantizer = create_quantizer(kind, **(arguments or TABLE))
    return CodebookMonitor(
        quantizer, images_per_step=images_per_step, epoch_images=epoch_images, least_usage=least_usage
    )


def maps(*codes):
    return torch.tensor([[codes]])


def step(one, number, *codes, accepted=True):
    one.add(maps(*codes))
    one.after_update(number, torch.tensor(accepted))


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
    one.after_update(1)
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
    one.after_update(1)
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
    one = CodebookMonitor(None, images_per_step=1, epoch_images=1)
    one.add(maps(0))
    one.add(None)
    one.after_update(1)
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
    assert "40 choices used 25.0% of the 4 codes" in said[4]
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
            one.after_update(number, accepted)
    assert one.last_epoch is not None


def test_sizes_come_from_the_run(tiny):
    config = tiny("gradient_accumulation_steps=3", "guard.min_codebook_usage=0.25")
    images = ImageDataset(["image"] * 7, CenterCrop(32, None), channels=3)
    one = monitor_codebook(create_quantizer("ema", **TABLE), config, images)
    assert (one.images_per_step, one.epoch_images, one.alarm.least_usage) == (6, 7, 0.25)


def count(folder):
    """Two epochs of two steps of two micro-batches, of which the second step is refused."""
    one = watch("grouped", images_per_step=4, epoch_images=8, **GROUPED)
    codes = torch.randint(4, (4, 2, 2, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    for number, micro_batches in enumerate(codes, 1):
        for batch in micro_batches:  # [2, depth, 3, 3]
            one.add(batch.chunk(distributed.world_size())[distributed.rank()])
        one.after_update(number, torch.tensor(number != 2))
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


EVEN = torch.full((1, 16), 100)
FEW = torch.zeros(1, 16, dtype=torch.int64)
FEW[0, :4] = 400


def alarm(kind="vector", least_usage=0.5, patience=3, **arguments):
    arguments = arguments or {"num_codes": 16, "code_dim": 4, "init": "uniform"}
    return UnusedCodesAlarm(create_quantizer(kind, **arguments), least_usage, patience)


def spoke(one, lines):
    return [number for number, counts in enumerate(lines) if one.check(counts) is not None]


def test_silent_while_codes_are_used():
    assert spoke(alarm(), [FEW, FEW, EVEN] * 5) == []


def test_it_speaks_once():
    assert spoke(alarm(), [EVEN, *[FEW] * 20, EVEN, *[FEW] * 20]) == [3]


def test_the_last_line_of_a_run_need_not_wait():
    one = alarm()
    assert one.check(EVEN, final=True) is None
    assert "25.0% of the 16 codes" in one.check(FEW, final=True)
    assert one.check(FEW, final=True) is None


def test_it_can_be_switched_off():
    assert spoke(alarm(least_usage=None), [FEW] * 20) == []


def test_what_it_says():
    sentence = alarm(patience=1).check(FEW)
    assert "1,600 choices used 25.0% of the 16 codes, perplexity 4" in sentence
    assert "guard.min_codebook_usage=0.5" in sentence
    assert (
        "model.quantizer.init=data, model.quantizer.revive_after=20, model.quantizer.gradient=rotation, "
        "model.quantizer.type=ema, model.quantizer.type=simvq, model.quantizer.type=fsq, or a lower "
        "optimizer.learning_rate"
    ) in sentence


def test_the_worst_table_is_named():
    one = alarm("grouped", num_codes=16, code_dim=4, groups=2, member={"type": "ema"}, patience=1)
    sentence = one.check(torch.cat([EVEN, FEW]))
    assert "25.0% of the 16 codes of table 1" in sentence
    assert "model.quantizer.member.revive_after=20" in sentence
    assert alarm("grouped", num_codes=16, code_dim=4, groups=2, member={"type": "ema"}).lines == 0


def test_of_a_large_table_only_what_is_within_reach_counts():
    """Of 2^18 codes 100,000 choices can reach 32 %: 20 % in use is no fault, 10 % is one."""
    counts = torch.zeros(1, 2**18, dtype=torch.int64)
    counts[0, : 2**18 // 5] = 1
    counts[0, 0] += 100_000 - int(counts.sum())
    assert alarm("lfq", bits=18, patience=1).check(counts) is None
    counts[0, 2**18 // 10 : 2**18 // 5] = 0
    counts[0, 0] += 100_000 - int(counts.sum())
    sentence = alarm("lfq", bits=18, patience=1).check(counts)
    assert "100,000 choices used 10.0% of the 262,144 codes (at most 31.7% " in sentence
    assert "model.quantizer.entropy_weight=0.2" in sentence


def test_nothing_counted_is_no_fault():
    assert alarm(patience=1).check(torch.zeros(1, 16, dtype=torch.int64)) is None


class Witness(Quantizer):
    """Remembers how many batches it was started from."""

    def __init__(self, latents_to_start):
        super().__init__(4, 2)
        self.latents_to_start = latents_to_start
        self.started_from = None

    def start(self, latents, generator):
        self.started_from = len(latents)


def batches():
    for number in range(100):
        yield {"images": torch.full((2, 2, 4, 4), float(number))}  # 32 latents


def model(quantizer, moves):
    """A model whose latents are its images."""
    encode = lambda images: SimpleNamespace(latents=images)  # noqa: E731
    return SimpleNamespace(quantize=quantizer, encode=encode, move_latents=moves.append)


def begin(quantizer):
    moves = []
    rest = start_codebook(model(quantizer, moves), batches(), torch.Generator())
    return rest, moves


@pytest.mark.parametrize(("wanted", "seen"), [(0, 1), (1, 1), (32, 1), (33, 2), (320, 10), (10**9, 16)])
def test_as_many_batches_as_are_wanted_within_reason(wanted, seen):
    quantizer = Witness(wanted)
    assert seen <= MOST_BATCHES
    rest, moves = begin(quantizer)
    assert moves == []
    assert quantizer.started_from == seen
    assert [int(batch["images"].max()) for batch in rest] == list(range(100))  # none is lost


def test_codes_are_placed_among_latents_of_several_batches():
    quantizer = EMAQuantizer(16, 2)  # wants 64 latents, of two batches
    begin(quantizer)
    assert set(quantizer.embedding.weight.round().flatten().tolist()) == {0.0, 1.0}


def test_what_needs_no_start_is_checked_all_the_same():
    quantizer = FiniteScalarQuantizer([3, 3])
    nan = iter([{"images": torch.full((1, 2, 2, 2), float("nan"))}])
    with pytest.raises(ValueError, match="8 of 8 values of the latents are NaN"):
        start_codebook(model(quantizer, []), nan, torch.Generator())


def test_latents_are_moved_for_codes_that_cannot_be():
    """The images of `batches` are constant, with as many in each: 0, 1, 2, ... in both channels."""
    quantizer = FiniteScalarQuantizer([3, 3])
    _, (change,) = begin(quantizer)  # wants 4096, and gets the 512 of 16 batches
    values = torch.arange(16.0, dtype=torch.float64)[:, None].expand(-1, 2)
    moved = change(values)
    torch.testing.assert_close(moved.mean(dim=0), torch.zeros(2, dtype=torch.float64))
    # Of the two directions one has no variance, and that along (1, 1) has 1.
    torch.testing.assert_close(moved.square().mean(dim=0), torch.full((2,), 0.5, dtype=torch.float64))
