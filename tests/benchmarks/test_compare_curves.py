import json

from benchmarks.compare_curves import differences, draw, read_curves


def test_differences_are_between_the_same_steps():
    first, second = {1: 1.0, 2: 3.0, 3: 4.0}, {1: 1.5, 2: 3.0, 3: 3.0, 4: 9.0}
    assert differences(first, second) == (0.5, 1.0, 1.5)


def test_a_run_s_lines_become_curves_that_are_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1 / step, "note": "x"} for step in (1, 2, 4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    curves = read_curves(path)
    assert curves == {"loss": {1: 1.0, 2: 0.5, 4: 0.25}}
    picture = draw(["loss"], curves, curves)
    colours = {colour for _, colour in picture.getcolors(2**20)}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= colours
