import pytest
import torch

from latentae.latents.inspection.codes import codebook_pictures, count_codes
from tests.latents.conftest import draw_tensors, make_kl
from tests.latents.inspection.conftest import make_quantized


def test_codes_are_counted_over_batches(vq):
    images = draw_tensors(6)
    with torch.no_grad():
        latents, indices = vq.encode(images).latents, vq.encode_indices(images)
    counts = count_codes(vq, latents.split(4))
    assert torch.equal(counts, torch.bincount(indices.flatten(), minlength=32))


def test_the_most_used_come_first_and_are_decoded_alone(vq):
    counts = torch.zeros(32, dtype=torch.int64)
    counts[[5, 9]] = torch.tensor([3, 7])
    (table,) = codebook_pictures(vq, counts).tables
    assert table.codes[:4].tolist() == [9, 5, 0, 1]
    assert table.counts[:3].tolist() == [7, 3, 0]
    assert (table.usage, len(table.codes)) == (2 / 32, 32)
    with torch.no_grad():
        whole = vq.decode_indices(torch.full((1, 5, 5), 9))
    torch.testing.assert_close(table.tiles[0], whole[0, :, 4:6, 4:6], rtol=0, atol=1e-5)


def test_as_many_as_asked_and_in_order_without_counts(vq):
    found = codebook_pictures(vq, most=3, batch_size=2)
    assert found.tables[0].codes.tolist() == [0, 1, 2]
    assert found.tables[0].tiles.shape == (3, 3, 2, 2)
    assert found.numbers()["tables"][0]["counts"] is None
    assert found.figure().picture.shape[2] == 3


def quantized(quantizer, **changes):
    return make_quantized(num_vq_embeddings=8, quantizer=quantizer, **changes)


def test_a_residual_table_stands_on_those_before_it():
    model = quantized({"type": "residual", "depth": 3, "member": {"type": "vector"}})
    counts = torch.zeros(3, 8, dtype=torch.int64)
    counts[0, 6] = counts[1, 2] = counts[2, 4] = 1
    found = codebook_pictures(model, counts)
    assert len(found.tables) == 3
    with torch.no_grad():
        indices = torch.tensor([6, 3]).view(1, 2, 1, 1).expand(1, 2, 5, 5)  # the third table is left out
        expected = model.decode_indices(indices)[0, :, 4:6, 4:6]
    third = found.tables[1].codes.tolist().index(3)
    torch.testing.assert_close(found.tables[1].tiles[third], expected, rtol=0, atol=1e-5)
    assert "on top of the most used codes" in found.about


def test_a_grouped_table_has_the_most_used_code_of_the_others():
    model = quantized({"type": "grouped", "groups": 2, "member": {"type": "vector"}}, vq_embed_dim=4)
    counts = torch.zeros(2, 8, dtype=torch.int64)
    counts[0, 6] = counts[1, 2] = 1
    found = codebook_pictures(model, counts)
    with torch.no_grad():
        indices = torch.tensor([1, 2]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
        expected = model.decode_indices(indices)[0, :, 4:6, 4:6]
    place = found.tables[0].codes.tolist().index(1)
    torch.testing.assert_close(found.tables[0].tiles[place], expected, rtol=0, atol=1e-5)
    assert "beside it" in found.about


@pytest.mark.parametrize("quantizer", [{"type": "fsq", "levels": [3, 3]}, {"type": "lfq", "bits": 3}])
def test_codes_of_a_fixed_grid_are_said_to_be_that(quantizer):
    model = make_quantized(quantizer=quantizer)
    with torch.no_grad():
        counts = count_codes(model, model.encode(draw_tensors(2)).latents)
    found = codebook_pictures(model, counts)
    assert int(counts.sum()) == 2 * 64
    assert "fixed grid" in found.about
    assert len(found.tables[0].codes) == model.num_codes


def test_bad_arguments_are_refused(vq):
    with pytest.raises(ValueError, match="a KLVAE has none"):
        codebook_pictures(make_kl())
    with pytest.raises(ValueError, match=r"counts are \[8\], but this model has 1 table\(s\) of 32"):
        codebook_pictures(vq, torch.zeros(8))
    with pytest.raises(ValueError, match="most is 0"):
        codebook_pictures(vq, most=0)
