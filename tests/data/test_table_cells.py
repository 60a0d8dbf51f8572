import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from latentae.data import BrokenImageError, open_source, open_streams
from latentae.data.table_cells import StoredNumbers, choose_image_column, decode_cell, image_table
from tests.data.pictures import image_table as table_of_images
from tests.data.pictures import png_bytes, write_png


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
    assert (choose_image_column(both.features), choose_image_column(both.features, "mask")) == (
        "image",
        "mask",
    )


def test_tables_are_cut_and_left_undecoded():
    table, dtype = image_table(table_of_images([7]), "image", datasets.Image())
    assert (table.column_names, dtype) == (["image"], None)
    assert decode_cell(table[0]["image"], "row 0", dtype, None, None, 1, None)[0, 0, 0] == 7
    numbers = datasets.Dataset.from_dict({"image": [1]})
    for each in (numbers, numbers.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"image_column 'image' holds Value\(.*int64.*\), no images"):
            image_table(each, "image", each.features["image"])


def test_cells(tmp_path):
    path = str(write_png(tmp_path / "a.png", 8))
    for cell, expected in (({"bytes": png_bytes(9), "path": "x"}, 9), ({"bytes": None, "path": path}, 8)):
        assert decode_cell(cell, "row 0", None, None, None, 3, None)[0, 0].tolist() == [expected] * 3
    array = np.full((2, 2), 30)
    assert (
        decode_cell(array, "row 0", StoredNumbers("int16"), (20, 40), None, 1, None).tolist()
        == [[[0.5]] * 2] * 2
    )
    with pytest.raises(BrokenImageError, match=r"^row 0: an array \[2, 2\] is not an image of 3"):
        decode_cell(array, "row 0", StoredNumbers("uint8"), None, None, 3, None)


def test_cells_without_an_image():
    gap = np.full((2, 2), np.nan)
    numbers = StoredNumbers("uint8")
    for cell, dtype in ((None, None), ({"bytes": None, "path": None}, None), (None, numbers), (gap, numbers)):
        with pytest.raises(BrokenImageError, match=r"^row 0: the row has no image"):
            decode_cell(cell, "row 0", dtype, None, None, 3, None)


def lists(depth: int, kind) -> pyarrow.DataType:
    return kind if depth == 0 else pyarrow.list_(lists(depth - 1, kind))


def write_lists(path, images, kind) -> None:
    """A parquet file of nested lists; `images` are arrays, or lists as they are."""
    rows = [image.tolist() if isinstance(image, np.ndarray) else image for image in images]
    depth = np.ndim(images[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array(rows, lists(depth, kind))}), path)


GREY = np.array([[0, 51, 102, 3, 4], [153, 204, 255, 8, 9]])
COLOURS = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


@pytest.mark.parametrize(
    "kind", [pyarrow.int64(), pyarrow.int32(), pyarrow.uint8(), pyarrow.int16()], ids=str
)
def test_nested_lists_of_integers_are_pictures_of_eight_bits(kind, tmp_path):
    for name, stored in (("hw", GREY), ("hw1", GREY[..., None]), ("1hw", GREY[None])):
        write_lists(tmp_path / name / "a.parquet", [stored] * 2, kind)
        source = open_source(str(tmp_path / name))
        assert source.load(1, 1)[..., 0].tolist() == GREY.tolist()
        assert np.array_equal(source.load(1, 3), np.repeat(GREY[..., None], 3, axis=2))
        assert source.load(1, 4)[0, 1].tolist() == [51, 51, 51, 255]
    for name, stored in (("hwc", COLOURS), ("chw", np.moveaxis(COLOURS, 2, 0))):
        write_lists(tmp_path / name / "a.parquet", [stored] * 2, kind)
        source = open_source(str(tmp_path / name))
        assert np.array_equal(source.load(1, 3), COLOURS)
        assert source.load(1, 4)[0, 1].tolist() == [51, 204, 25, 255]
        assert source.load(1, 1)[0, 1].tolist() == [138]  # 0.299 * 51 + 0.587 * 204 + 0.114 * 25


def test_nested_lists_of_other_numbers(tmp_path):
    write_lists(tmp_path / "f" / "a.parquet", [COLOURS / 255] * 2, pyarrow.float64())
    assert np.allclose(open_source(str(tmp_path / "f")).load(0, 3), COLOURS / 255)
    write_lists(tmp_path / "u2" / "a.parquet", [GREY * 257] * 2, pyarrow.uint16())
    assert np.allclose(open_source(str(tmp_path / "u2")).load(0, 1)[..., 0], GREY / 255)
    # Eight bits in a wider type would be black as sixteen.
    write_lists(tmp_path / "u2low" / "a.parquet", [GREY] * 2, pyarrow.uint16())
    with pytest.raises(BrokenImageError, match=r"uint16, run from 0 to 255: set value_range=\[0, 255\]"):
        open_source(str(tmp_path / "u2low")).load(0, 1)
    for high in (255, 65535):
        ranged = open_source(str(tmp_path / "u2low"), value_range=(0, high))
        assert np.allclose(ranged.load(0, 1)[..., 0], GREY / high)
    write_lists(tmp_path / "i8" / "a.parquet", [GREY * 4] * 2, pyarrow.int64())
    with pytest.raises(BrokenImageError, match=r"train\[0\]: its numbers, int64, run from 0 to 1020"):
        open_source(str(tmp_path / "i8")).load(0, 1)
    ranged = open_source(str(tmp_path / "i8"), value_range=(0, 1020))
    assert np.allclose(ranged.load(0, 1)[..., 0], GREY / 255)
    stream = open_streams(str(tmp_path / "f"), holdout=0.5)
    (image,) = stream.train.read(0, start=1)
    assert np.allclose(image.load(3, None), COLOURS / 255)


def test_lists_that_are_no_images(tmp_path):
    write_lists(tmp_path / "flat" / "a.parquet", [GREY.ravel()] * 2, pyarrow.int64())
    with pytest.raises(ValueError, match=r"image_column 'image'.* do not state height and width"):
        open_source(str(tmp_path / "flat"))
    write_lists(tmp_path / "text" / "a.parquet", [[["a"]]], pyarrow.string())
    with pytest.raises(ValueError, match="no images"):
        open_source(str(tmp_path / "text"))
    (tmp_path / "struct").mkdir()
    table = pyarrow.table({"image": [{"pixels": [[1]]}] * 2, "label": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "struct" / "a.parquet")
    with pytest.raises(ValueError, match=r"'image' holds .*no images; other columns: label"):
        open_source(str(tmp_path / "struct"))
    rows = [[[1, 2], [3, 4]], None, [[1, None], [3, 4]], [[1], [3, 4]], [], [[]]]
    write_lists(tmp_path / "gaps" / "a.parquet", rows[:1], pyarrow.int64())
    table = pyarrow.table({"image": pyarrow.array(rows, lists(2, pyarrow.int64()))})
    pyarrow.parquet.write_table(table, tmp_path / "gaps" / "a.parquet")
    source = open_source(str(tmp_path / "gaps"))
    assert source.load(0, 1)[..., 0].tolist() == [[1, 2], [3, 4]]
    for row, reason in enumerate(("no image", "null", "differ in length", "empty", "empty"), start=1):
        with pytest.raises(BrokenImageError, match=rf"train\[{row}\]: .*{reason}"):
            source.load(row, 1)
