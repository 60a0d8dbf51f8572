import pytest

from latentae.training.adversary_watch import AdversaryWatch

HEALTHY = {
    "accuracy_real": 0.8,
    "accuracy_fake": 0.7,
    "logits_real": 0.5,
    "logits_fake": -0.4,
    "logit_gap": 0.9,
    "generator": 0.4,
}
WON = HEALTHY | {"accuracy_real": 1.0, "accuracy_fake": 0.99, "logits_real": 6.0, "logit_gap": 11.0}
# Both sides' logits lie a hair above the boundary.
EVEN = HEALTHY | {"accuracy_real": 1.0, "accuracy_fake": 0.0, "logits_real": 0.001, "logit_gap": 1e-4}


def said(lines, patience=3):
    watch = AdversaryWatch(patience)
    sentences = [watch.see(line) for line in lines]
    return [number for number, sentence in enumerate(sentences) if sentence is not None], sentences


def test_silent_while_the_game_is_open():
    assert said([HEALTHY, WON, WON, HEALTHY] * 5)[0] == []


def test_a_discriminator_that_has_won_is_named_once():
    numbers, sentences = said([HEALTHY, *[WON] * 20])
    assert numbers == [3]
    assert (
        "has won: over the last 3 log lines it was right about 100.0% of the images and 99.0%" in sentences[3]
    )
    assert "logit gap 11" in sentences[3]
    assert "discriminator.update_every=2" in sentences[3]


def test_a_discriminator_that_tells_nothing_apart_is_named_once():
    numbers, sentences = said([EVEN] * 20)
    assert numbers == [2]
    assert "tells nothing apart: over the last 3 log lines its logits stood at 0.001" in sentences[2]


@pytest.mark.parametrize(
    "change",
    [{"logit_gap": 0.5}, {"accuracy_fake": 0.3}, {"logits_real": 0.3}],
    ids=lambda change: str(change),
)
def test_one_line_that_differs_begins_the_count_anew(change):
    assert said([EVEN, EVEN, EVEN | change, EVEN, EVEN, EVEN])[0] == [5]


def test_it_speaks_again_after_as_many_lines_without():
    assert said([*[WON] * 3, *[HEALTHY] * 2, *[WON] * 3])[0] == [2]
    assert said([*[WON] * 3, *[HEALTHY] * 3, *[WON] * 3])[0] == [2, 8]
    assert said([*[WON] * 3, *[EVEN] * 3])[0] == [2, 5]


def test_winning_in_the_warm_up_is_no_finding():
    warm_up = {name: value for name, value in WON.items() if name != "generator"}
    assert said([*[warm_up] * 10, *[WON] * 3])[0] == [12]


def test_lines_in_which_it_did_not_learn_do_not_count():
    assert said([{"loss": 1.0}, WON, {"loss": 1.0}, WON, WON])[0] == [4]
