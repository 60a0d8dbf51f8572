import numpy as np

from latentae.latents.cache.measuring import forget_sizes, measure_sizes
from tests.data.pictures import ListSource


def test_sizes_are_measured_once(tmp_path):
    source = ListSource(3, broken=(1,))
    expected = np.array([[12, 12], [0, 0], [12, 12]])
    np.testing.assert_array_equal(measure_sizes(source, 3, workers=0, folder=tmp_path), expected)
    decoded = len(source.loaded)
    np.testing.assert_array_equal(measure_sizes(source, 3, workers=0, folder=tmp_path), expected)
    assert len(source.loaded) == decoded
    forget_sizes(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_other_images_or_a_damaged_file_are_measured_anew(tmp_path):
    measure_sizes(ListSource(3), 3, workers=0, folder=tmp_path)
    assert measure_sizes(ListSource(4), 3, workers=0, folder=tmp_path).shape == (4, 2)
    (tmp_path / "sizes.safetensors").write_bytes(b"short")
    assert measure_sizes(ListSource(4), 3, workers=0, folder=tmp_path).tolist() == [[12, 12]] * 4
