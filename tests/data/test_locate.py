import pytest

from latentae.data.locate import locate, match_split, validation_split
from tests.data.pictures import make_files, write_png, write_shards


def split_names(located) -> dict[str, list[str]]:
    return {split: [path.name for path in paths] for split, paths in located.splits.items()}


def test_tar_files(tmp_path):
    write_shards(tmp_path, [1, 1])
    write_shards(tmp_path, [1], "val")
    make_files(tmp_path, "train-000.parquet")  # beside tar files a table is about them
    located = locate(str(tmp_path))
    assert located.kind == "tars"
    assert split_names(located) == {
        "train": ["train-000.tar", "train-001.tar"],
        "validation": ["val-000.tar"],
    }
    for name in ("train-{000..001}.tar", "train-*.tar"):
        located = locate(f"{tmp_path}/{name}")
        assert (located.kind, split_names(located)) == ("tars", {"train": ["train-000.tar", "train-001.tar"]})
    assert split_names(locate(f"{tmp_path}/val-000.tar")) == {"train": ["val-000.tar"]}
    # As many pictures as the tar files hold may be unpacked from them; fewer are asked about.
    for count in range(4):
        write_png(tmp_path / f"{count}.png", 1)
        if count < 2:
            with pytest.raises(ValueError, match=r"3 tar file\(s\) with more images .*\.tar' .*\.png'"):
                locate(str(tmp_path))
    assert locate(str(tmp_path)).kind == "images"


def test_patterns_of_tables(tmp_path):
    make_files(tmp_path, "a.parquet", "b.parquet")
    assert locate(f"{tmp_path}/*.parquet").kind == "tables"


def test_what_cannot_be_read(tmp_path):
    make_files(tmp_path, "tars/a.tar.gz", "mixed/a.tar", "mixed/a.parquet", "images/a.jpg", "images/b.jpg")
    for name in ("tars", "tars/a.tar.gz", "tars/*"):
        with pytest.raises(ValueError, match=r"a compressed tar file can only .* gunzip"):
            locate(f"{tmp_path}/{name}")
    located = locate(f"{tmp_path}/images/*.jpg")
    assert (located.kind, split_names(located)) == ("images", {"train": ["a.jpg", "b.jpg"]})
    for name in ("mixed/a*",):
        with pytest.raises(ValueError, match=r"stands for 2 files; give a folder of images, or \.tar"):
            locate(f"{tmp_path}/{name}")
    make_files(tmp_path, "images/metadata.csv")
    with pytest.raises(ValueError, match=r"is a list of images in a folder; give the folder, .*images \(and"):
        locate(f"{tmp_path}/images/metadata.csv")


def test_the_hub_and_photos():
    assert locate("photos").kind == "photos"
    assert locate("owner/data").kind == "hub"


def test_splits():
    assert match_split("x", "val[:5]", ["train", "validation"]) == "validation[:5]"
    with pytest.raises(ValueError, match="split 'test' is not in 'x'; there are: train"):
        match_split("x", "test", ["train"])
    assert validation_split(["train", "test", "valid"], "train") == "valid"
    assert validation_split(["train", "test"], "train[:9]") == "test"
    assert validation_split(["train", "test"], "test[:9]") is None


def test_a_folder_called_photos_and_the_built_in_ones_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "photos/a.png", 1)
    with pytest.raises(ValueError, match=r"there is .*photos, too: write '\./photos' .*'builtin:photos'"):
        locate("photos")
    assert locate("./photos").kind == "images"
    assert locate("builtin:photos").kind == "photos"


def test_addresses_are_answered_truthfully(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s3://bucket/{0..9}.tar", "https://example.org/a.tar", "gs://bucket/images", "file:///a"):
        with pytest.raises(ValueError, match="is an address") as caught:
            locate(name)
        assert repr(name) in str(caught.value)
    for name in ("hf://datasets/owner/data", "https://huggingface.co/datasets/owner/data/", "owner/data"):
        assert (locate(name).kind, locate(name).hub_id) == ("hub", "owner/data")
    with pytest.raises(ValueError, match=r"address of a part or a version .* as owner/name"):
        locate("hf://datasets/owner/data/train.parquet")
    (tmp_path / "owner").mkdir()
    with pytest.raises(ValueError, match=r"does not exist.*write 'hf://datasets/owner/data'"):
        locate("owner/data")


def test_a_misspelt_path_in_a_folder_that_exists_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "my/images/train/a.png", 1)
    (tmp_path / "my/notes").mkdir()
    for name, meant in (
        ("my/imagez", r"'my/images'\?; for the dataset of the hub write 'hf://datasets/my/imagez'"),
        ("./my/imagez/train", r"'my/images'\?"),
        ("my/images/trian", r"'my/images/train'\?"),
        (f"{tmp_path}/myy/images", rf"'{tmp_path}/my'\?"),
    ):
        with pytest.raises(ValueError, match=rf"does not exist .*: did you mean {meant}$"):
            locate(name)
    with pytest.raises(ValueError, match=r"does not exist \(the working folder is \S+\); for the dataset"):
        locate("my/dataset")
    assert locate("mine/imagez").kind == "hub"


@pytest.mark.parametrize(("suffix", "program"), [("tar.gz", "gunzip"), ("tgz", "gunzip"), ("tar.xz", "unxz")])
def test_compressed_tar_files_name_what_unpacks_them(tmp_path, suffix, program):
    make_files(tmp_path, f"a.{suffix}")
    for name in (tmp_path, tmp_path / f"a.{suffix}"):
        with pytest.raises(ValueError, match=rf"a\.{suffix}: a compressed tar .* {program}"):
            locate(str(name))


def test_a_pattern_with_files_of_another_split_says_so(tmp_path):
    make_files(tmp_path, "train-0.tar", "val-0.tar")
    assert "val-0.tar" in locate(f"{tmp_path}/*.tar").remarks[0]
    assert locate(f"{tmp_path}/train-*.tar").remarks == ()


def test_remarks_on_what_belongs_to_no_split(tmp_path):
    for name in ("train2017/a.png", "val2017/a.png", "unlabeled2017/a.png", "card.png"):
        write_png(tmp_path / name, 1)
    remarks = " ".join(locate(str(tmp_path)).remarks)
    assert f"{tmp_path}/unlabeled2017" in remarks
    assert "1 file (1 .png)" in remarks


@pytest.mark.parametrize("name", ["a" * 300, f"./{'é' * 200}", f"{'a' * 300}/b"])
def test_a_name_that_is_too_long_for_the_file_system(name: str) -> None:
    with pytest.raises(ValueError, match=r"^name '.{60,}\.\.\.' cannot be a path here: File name too long"):
        locate(name)


@pytest.mark.parametrize("name", [f"{'a' * 300}*.tar", f"{{{'a' * 300},b}}.tar"])
def test_a_pattern_may_be_long_but_not_the_names_it_stands_for(name: str) -> None:
    with pytest.raises(ValueError, match=r"^name '"):
        locate(name)
