import shutil
import subprocess
import sys

import pytest

from latentae.config import dump_config
from latentae.models.adapting import describe_architecture
from latentae.training.origin import describe_pretrained
from tests.training.pretrained_models import fine_tuning, make_pretrained, write_pretrained


@pytest.fixture
def place(tmp_path):
    return write_pretrained(make_pretrained(), tmp_path, "our folder")


def test_the_model_itself_is_asked(place, tmp_path):
    asked = describe_pretrained({"output_dir": str(tmp_path / "run"), "model": {"pretrained": place}})
    assert asked == describe_architecture(make_pretrained())


def test_what_a_single_file_does_not_show_is_taken_from_the_config(tmp_path):
    place = write_pretrained(make_pretrained(), tmp_path, "LDM file")
    model = {"pretrained": place, "norm_num_groups": 2}
    assert describe_pretrained({"model": model})["norm_num_groups"] == 2
    with pytest.raises(ValueError, match="norm_num_groups"):
        describe_pretrained({"model": {**model, "norm_num_groups": "many"}})


def test_a_run_that_has_learned_something_is_asked_in_its_place(tiny, tmp_path, place):
    config = fine_tuning(tiny, place, "model.latent_channels=6")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(config))
    data = {"output_dir": str(run), "model": {"pretrained": place}}
    assert describe_pretrained(data)["latent_channels"] == 4  # nothing was learned yet

    (run / "checkpoints/step_000003").mkdir(parents=True)
    shutil.rmtree(place)
    assert describe_pretrained(data) == config.model.model_dump(mode="json", by_alias=True)
    with pytest.raises(ValueError, match="there is no file or folder elsewhere"):
        describe_pretrained({"output_dir": str(run), "model": {"pretrained": "elsewhere"}})


def test_torch_is_not_loaded_to_be_ready():
    code = "import sys, latentae.training.origin; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
