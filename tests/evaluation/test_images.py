import numpy as np
import pytest
from PIL import Image

from latentae.evaluation import images as module
from latentae.evaluation.images import open_images


def draw(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")


def test_validation_else_test_else_what_there_is(tmp_path):
    draw(tmp_path / "train", 3)
    assert open_images(str(tmp_path))[0] == "train"
    draw(tmp_path / "test", 2)
    assert open_images(str(tmp_path))[0] == "test"
    draw(tmp_path / "val", 1)
    split, source = open_images(str(tmp_path))
    assert (split, len(source)) == ("validation", 1)
    split, source = open_images(str(tmp_path), "train")
    assert (split, len(source)) == ("train", 3)
    assert open_images("photos")[0] == "validation"


def test_a_hub_dataset_says_its_splits(monkeypatch):
    class Builder:
        class info:  # noqa: N801  # as in `datasets`
            splits = ("train", "test")

    opened = {}
    monkeypatch.setattr(module, "prepare_hub_dataset", lambda name, config: Builder)
    monkeypatch.setattr(module, "open_source", lambda name, **options: opened.update(options, name=name))
    assert open_images("owner/images", dataset_config="small", image_column="img")[0] == "test"
    assert opened == {
        "name": "owner/images",
        "split": "test",
        "image_column": "img",
        "dataset_config": "small",
        "value_range": None,
        "max_pixels": None,
    }


def test_no_such_data(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_images(str(tmp_path / "gone"))
    draw(tmp_path / "images", 2)
    with pytest.raises(ValueError, match="split 'test' is not in"):
        open_images(str(tmp_path / "images"), "test")
