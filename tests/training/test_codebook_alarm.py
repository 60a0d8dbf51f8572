import torch

from latentae.quantizers import create_quantizer
from latentae.training.codebook_alarm import CodebookAlarm

EVEN = torch.full((1, 16), 100)
FEW = torch.zeros(1, 16, dtype=torch.int64)
FEW[0, :4] = 400


def alarm(kind="vector", least_usage=0.5, patience=3, **arguments):
    arguments = arguments or {"num_codes": 16, "code_dim": 4, "init": "uniform"}
    return CodebookAlarm(create_quantizer(kind, **arguments), least_usage, patience)


def spoke(one, lines):
    return [number for number, counts in enumerate(lines) if one.see(counts) is not None]


def test_silent_while_codes_are_used():
    assert spoke(alarm(), [FEW, FEW, EVEN] * 5) == []


def test_it_speaks_once():
    assert spoke(alarm(), [EVEN, *[FEW] * 20, EVEN, *[FEW] * 20]) == [3]


def test_the_last_line_of_a_run_need_not_wait():
    one = alarm()
    assert one.see(EVEN, final=True) is None
    assert "25.0% of the 16 codes" in one.see(FEW, final=True)
    assert one.see(FEW, final=True) is None


def test_it_can_be_switched_off():
    assert spoke(alarm(least_usage=None), [FEW] * 20) == []


def test_what_it_says():
    sentence = alarm(patience=1).see(FEW)
    assert sentence == (
        "many codes are not used: 25.0% of the 16 codes occur in 1,600 choices, perplexity 4, less than "
        "guard.min_codebook_usage=0.5 asks for; for the next run, one of: model.quantizer.init=data, "
        "model.quantizer.revive_after=20, model.quantizer.gradient=rotation, model.quantizer.type=ema, "
        "model.quantizer.type=simvq, model.quantizer.type=fsq, or a lower optimizer.learning_rate"
    )


def test_the_worst_table_is_named():
    one = alarm("grouped", num_codes=16, code_dim=4, groups=2, member={"type": "ema"}, patience=1)
    sentence = one.see(torch.cat([EVEN, FEW]))
    assert "25.0% of the 16 codes of table 1 occur" in sentence
    assert "model.quantizer.member.revive_after=20" in sentence
    assert alarm("grouped", num_codes=16, code_dim=4, groups=2, member={"type": "ema"}).lines == 0


def test_of_a_large_table_only_what_is_within_reach_counts():
    """Of 2^18 codes 100,000 choices can reach 32 %: 20 % in use is no fault, 10 % is one."""
    counts = torch.zeros(1, 2**18, dtype=torch.int64)
    counts[0, : 2**18 // 5] = 1
    counts[0, 0] += 100_000 - int(counts.sum())
    assert alarm("lfq", bits=18, patience=1).see(counts) is None
    counts[0, 2**18 // 10 : 2**18 // 5] = 0
    counts[0, 0] += 100_000 - int(counts.sum())
    sentence = alarm("lfq", bits=18, patience=1).see(counts)
    assert "10.0% of the 262,144 codes occur in 100,000 choices (where 31.7% is within reach)" in sentence
    assert "model.quantizer.entropy_weight=0.2" in sentence


def test_nothing_counted_is_no_fault():
    assert alarm(patience=1).see(torch.zeros(1, 16, dtype=torch.int64)) is None
