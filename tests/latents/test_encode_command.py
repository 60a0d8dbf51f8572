import pytest
import torch
from safetensors.torch import save_file

from latentae import LatentDataset, cli
from latentae.latents.cache import encode_dataset
from tests.latents.conftest import make_kl, make_vq


def main(arguments):
    return cli.main(["encode", *arguments])


def test_images_are_encoded_once(classes, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "kl")
    (classes / "dog/broken.png").write_bytes(b"no picture")
    arguments = [str(tmp_path / "kl"), "--data", str(classes), "--out", str(tmp_path / "out"), "--flips"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "note: 1 image(s) could not be decoded" in shown.out
    assert "10 images in 1 shard(s)" in shown.out
    assert "bytes an image" in shown.out
    assert "left out: dog/broken.png: not an image" in shown.err
    assert main(arguments) == 0
    assert "complete, nothing to do: 10 images" in capsys.readouterr().out
    assert LatentDataset(tmp_path / "out", tmp_path / "kl").label_names == ["cat", "dog"]


def test_codes_alone(classes, tmp_path):
    make_vq().save_pretrained(tmp_path / "vq")
    out = ["--data", str(classes), "--out", str(tmp_path / "out"), "--no-annotations", "--codes-only"]
    assert main([str(tmp_path / "vq"), *out]) == 0
    assert set(LatentDataset(tmp_path / "out")[0]) == {"name", "index", "codes"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{kl}"], "the following arguments are required: --data, --out"),
        (
            ["{kl}", "--data", "{images}", "--out", "{out}", "--sizes", "any"],
            "--sizes: invalid choice: 'any'",
        ),
        (["{kl}", "--data", "{images}", "--out", "{out}", "--codes"], "error: codes are of VQ models"),
        (["{kl}", "--data", "{images}", "--out", "{images}"], "error: {images} holds other files"),
        (["{kl}", "--data", "{images}", "--out", "{out}", "--split", "dev"], "error: split 'dev' is not in"),
        (["{kl}", "--data", "{images}", "--out", "{out}", "--label-column", "a"], "label_column='a' is for"),
        (
            ["{kl}", "--data", "{images}", "--out", "{out}", "--no-annotations", "--label-column", "a"],
            "error: label_column is 'a', but annotations is false",
        ),
        (["{images}", "--data", "{images}", "--out", "{out}"], "error: "),
        (["{kl}", "--data", "{images}", "--out", "{out}", "--alpha"], "error: alpha is set, but the model"),
        (
            ["{kl}", "--data", "{images}", "--out", "{out}", "--image-size", "1"],
            "error: images of 1x1 pixels",
        ),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, classes, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "kl")
    places = {"kl": tmp_path / "kl", "images": classes, "out": tmp_path / "out"}
    assert main([word.format(**places) for word in arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert says.format(**places) in error
    assert "Traceback" not in error


def test_captions_of_a_metadata_file(classes, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "kl")
    names = sorted(path.relative_to(classes).as_posix() for path in classes.glob("*/*.png"))
    rows = [f'{name},"no. {number}, a picture"\n' for number, name in enumerate(names)]
    (classes / "metadata.csv").write_text("file_name,text\n" + "".join(rows))
    arguments = [str(tmp_path / "kl"), "--data", str(classes), "--out"]
    assert main([*arguments, str(tmp_path / "bare")]) == 0
    note = (
        f"note: {classes / 'metadata.csv'}: the column(s) text are not carried along; --caption-column NAME"
    )
    assert capsys.readouterr().err.count(note) == 1
    assert main([*arguments, str(tmp_path / "bare"), "--caption-column", "text"]) == 2
    assert "made with caption_column=None (now 'text')" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "out"), "--caption-column", "text"]) == 0
    assert "note" not in capsys.readouterr().err
    dataset = LatentDataset(tmp_path / "out")
    assert [dataset[index]["caption"] for index in (0, 9)] == ["no. 0, a picture", "no. 9, a picture"]
    (classes / "metadata.csv").write_text("file_name,text\n" + "".join(rows[1:]))
    assert main([*arguments, str(tmp_path / "new"), "--caption-column", "text"]) == 2
    assert f"error: {classes / names[0]} has no row in" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_unknown_scale_is_said_first_and_can_be_given_later(classes, tmp_path, capsys):
    model = make_kl(scaling_factor=None, block_out_channels=(32, 64), norm_num_groups=32)
    save_file(model.state_dict(), tmp_path / "published.safetensors")
    arguments = [str(tmp_path / "published.safetensors"), "--data", str(classes), "--image-size", "16"]
    arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    first = next(line for line in capsys.readouterr().err.splitlines() if "scale" in line)
    assert "scale of this model's latents is not known" in first
    assert "--family FAMILY --image-size 16" in first
    with pytest.raises(ValueError, match="--family"):
        LatentDataset(tmp_path / "out")

    raw = LatentDataset(tmp_path / "out", normalised=False, sample=False)[0]["latents"]
    assert main([*arguments, "--family", "sd1"]) == 0
    shown = capsys.readouterr()
    assert "not known" not in shown.err
    assert "complete, nothing to do" in shown.out
    latents = LatentDataset(tmp_path / "out", sample=False)[0]["latents"]
    assert torch.allclose(latents, raw * 0.18215)
    assert main([*arguments, "--family", "flux"]) == 2  # of 16 channels
    assert main(arguments) == 2  # the scale that is there is not forgotten
    assert "another scale or shift" in capsys.readouterr().err


def test_codes_alone_need_no_scale(classes, tmp_path, capsys):
    make_vq(scaling_factor=None).save_pretrained(tmp_path / "vq")
    out = ["--data", str(classes), "--out", str(tmp_path / "out"), "--codes-only"]
    assert main([str(tmp_path / "vq"), *out]) == 0
    assert "scale of this model" not in capsys.readouterr().err


def test_a_family_is_for_models_opened_by_path(classes, tmp_path):
    with pytest.raises(ValueError, match="give it to load_autoencoder"):
        encode_dataset(make_kl(), classes, tmp_path / "out", family="sd1")
