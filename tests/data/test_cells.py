import datasets
import numpy as np
import pytest

from latentae.data import BrokenImageError
from latentae.data.cells import choose_image_column, decode_cell, image_table
from latentae.data.table import find_image_column
from tests.data.pictures import png_bytes, write_png
from tests.data.test_table import image_table as table_of_images


def test_the_column_of_type_image_wins():
    features = {"jpg": datasets.Value("binary"), "photograph": datasets.Image(), "x": datasets.Value("int64")}
    assert choose_image_column(features) == "photograph"
    assert choose_image_column(features, "jpg") == "jpg"
    with pytest.raises(ValueError, match="'photo' is not there; columns: jpg, photograph, x"):
        choose_image_column(features, "photo")


def test_then_usual_names_and_then_arrays():
    binary, image, array = datasets.Value("binary"), datasets.Image(), datasets.Array2D((2, 2), "uint8")
    assert choose_image_column({"png": binary, "img": binary}) == "img"
    assert choose_image_column({"mask": image, "image": image}) == "image"
    assert choose_image_column({"mask": array, "image": binary}) == "image"
    assert choose_image_column({"mask": array, "x": binary}) == "mask"
    with pytest.raises(ValueError, match="no image column; set image_column to one of x, y"):
        choose_image_column({"x": binary, "y": binary})
    for kind in (image, array):
        with pytest.raises(ValueError, match="several image columns; set image_column to one of a, b"):
            choose_image_column({"a": kind, "b": kind})
    # As `datasets` has them in a table.
    both = table_of_images([1], "mask").add_column("image", [b""]).cast_column("image", datasets.Image())
    assert (find_image_column(both), find_image_column(both, "mask")) == ("image", "mask")


def test_tables_are_cut_and_left_undecoded():
    table, dtype = image_table(table_of_images([7]), "image", datasets.Image())
    assert (table.column_names, dtype) == (["image"], None)
    assert decode_cell(table[0]["image"], "row 0", dtype, None, 1, None)[0, 0, 0] == 7
    numbers = datasets.Dataset.from_dict({"image": [1]})
    for each in (numbers, numbers.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"image_column 'image' holds Value\(.*int64.*\), no images"):
            image_table(each, "image", each.features["image"])


def test_cells(tmp_path):
    path = str(write_png(tmp_path / "a.png", 8))
    for cell, expected in (({"bytes": png_bytes(9), "path": "x"}, 9), ({"bytes": None, "path": path}, 8)):
        assert decode_cell(cell, "row 0", None, None, 3, None)[0, 0].tolist() == [expected] * 3
    array = np.full((2, 2), 30)
    assert decode_cell(array, "row 0", "int16", (20, 40), 1, None).tolist() == [[[0.5]] * 2] * 2
    with pytest.raises(BrokenImageError, match=r"^row 0: an array \[2, 2\] is no image of 3"):
        decode_cell(array, "row 0", "uint8", None, 3, None)


def test_cells_without_an_image():
    gap = np.full((2, 2), np.nan)
    for cell, dtype in ((None, None), ({"bytes": None, "path": None}, None), (None, "uint8"), (gap, "uint8")):
        with pytest.raises(BrokenImageError, match=r"^row 0: the row has no image"):
            decode_cell(cell, "row 0", dtype, None, 3, None)
