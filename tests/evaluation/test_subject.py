import torch

from latentae.evaluation.subject import Subject, weights_sha256


def test_the_hash_follows_every_weight(models):
    before = weights_sha256(models["kl"])
    assert before == weights_sha256(models["kl"])
    assert before != weights_sha256(models["vq"])
    models["kl"].decoder.conv_out.bias.data[0] += 1e-3
    assert before != weights_sha256(models["kl"])


def test_reduced_precision_only_where_asked(models):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    plain, reduced = (
        Subject("kl", "", models["kl"], autocast)(images).sample for autocast in (None, torch.bfloat16)
    )
    with torch.no_grad():
        assert torch.equal(plain, models["kl"](images).sample)
    assert reduced.dtype == torch.float32
    assert 0 < (plain - reduced).abs().max() < 0.1


def test_codes(models):
    assert Subject("kl", "", models["kl"]).num_codes is None
    assert Subject("vq", "", models["vq"]).num_codes == 16
