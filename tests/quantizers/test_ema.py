import pytest
import torch

from latentae.quantizers import EMAQuantizer


def quantizer_with(codes, **arguments):
    quantizer = EMAQuantizer(len(codes), 1, init="uniform", **arguments)
    quantizer.embedding.weight.data = torch.tensor(codes)[:, None]
    quantizer.start(torch.zeros(1, 1, 1, 1), torch.Generator())
    return quantizer


def test_one_update_by_hand():
    quantizer = quantizer_with([0.0, 10.0], decay=0.9, epsilon=1e-5)
    quantizer(torch.tensor([1.0, 2.0, 3.0, 11.0]).reshape(1, 1, 2, 2))
    quantizer.commit(1, torch.Generator())
    counts = [0.9 + 0.1 * 3, 0.9 + 0.1 * 1]
    sums = [0.0 + 0.1 * 6, 9.0 + 0.1 * 11]
    total = sum(counts)
    smoothed = [(n + 1e-5) / (total + 2e-5) * total for n in counts]
    expected = [s / n for s, n in zip(sums, smoothed, strict=True)]
    assert quantizer.embedding.weight.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_one_update_for_all_micro_batches_of_a_step():
    batches = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 11.0])]
    together, apart = (quantizer_with([0.0, 10.0]) for _ in range(2))
    together(torch.cat(batches).reshape(1, 1, 2, 2))
    for batch in batches:
        apart(batch.reshape(1, 1, 1, 2))
    for quantizer in (together, apart):
        quantizer.commit(1, torch.Generator())
    assert torch.equal(together.embedding.weight, apart.embedding.weight)


def test_only_the_commitment_is_a_loss():
    quantizer = quantizer_with([0.0, 10.0])
    output = quantizer(torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2))
    assert output.losses.keys() == {"commitment"}
    assert output.losses["commitment"].item() == pytest.approx(0.25 * 5.0)
    assert not quantizer.embedding.weight.requires_grad


def test_a_revived_code_starts_with_a_count_of_one():
    quantizer = quantizer_with([0.0, 100.0], revive_after=1)
    quantizer(torch.full((1, 1, 1, 2), 0.5))
    quantizer.commit(1, torch.Generator())
    assert quantizer.embedding.weight[1].item() == 0.5
    assert quantizer.upkeep["average_counts"][1] == 1.0
    assert quantizer.upkeep["average_sums"][1] == 0.5


def test_decay_outside_its_range():
    with pytest.raises(ValueError, match=r"decay is 1\.0"):
        EMAQuantizer(4, 2, decay=1.0)
