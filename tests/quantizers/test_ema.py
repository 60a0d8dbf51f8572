import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from latentae.quantizers import EMAQuantizer
from tests.quantizers.conftest import draw


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


def test_the_update_equals_the_packages():
    theirs = VectorQuantize(
        dim=4,
        codebook_size=16,
        decay=0.8,
        eps=1e-5,
        commitment_weight=0.25,
        threshold_ema_dead_code=0,
        kmeans_init=False,
    ).double()
    ours = EMAQuantizer(16, 4, decay=0.8, init="uniform").double()
    codes = draw(16, 4, dtype=torch.float64)
    ours.embedding.weight.data.copy_(codes)
    ours.weights_changed()
    theirs._codebook.embed.data.copy_(codes[None])
    theirs._codebook.embed_avg.data.copy_(codes[None])
    theirs._codebook.cluster_size.data.fill_(1.0)
    for step in range(3):
        latents = draw(2, 4, 8, 8, seed=step, dtype=torch.float64)
        output = ours(latents)
        quantized, indices, loss = theirs(latents.permute(0, 2, 3, 1).flatten(1, 2))
        assert torch.equal(output.indices.flatten(1), indices)
        torch.testing.assert_close(output.loss, loss.sum())
        torch.testing.assert_close(output.quantized.flatten(2).mT, quantized)
        ours.commit(step + 1, torch.Generator())
        torch.testing.assert_close(ours.embedding.weight, theirs._codebook.embed[0])
    torch.testing.assert_close(ours.average_counts, theirs._codebook.cluster_size[0])


def test_what_is_not_kept_does_not_count():
    quantizer = quantizer_with([0.0, 10.0])
    latents, indices = torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1])
    quantizer.observe(latents, indices, torch.tensor(False))
    assert quantizer.pending_counts.tolist() == [0.0, 0.0]
    assert quantizer.pending_sums.tolist() == [[0.0], [0.0]]
    quantizer.observe(latents[:1], indices[:1], torch.tensor(True))
    assert quantizer.pending_sums.tolist() == [[1.0], [0.0]]


def test_averages_begin_anew_where_the_weights_were_set():
    quantizer = quantizer_with([0.0, 10.0])
    quantizer(torch.ones(1, 1, 2, 2))
    quantizer.commit(1, torch.Generator())
    quantizer.embedding.weight.data.copy_(torch.tensor([[3.0], [4.0]]))
    quantizer.weights_changed()
    assert quantizer.average_counts.tolist() == [1.0, 1.0]
    assert quantizer.average_sums.tolist() == [[3.0], [4.0]]
