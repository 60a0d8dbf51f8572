"""Says when a discriminator has stopped being of use: it has won, or it tells nothing apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Means = Mapping[str, float]

_WON = 0.98  # accuracy on both sides
_UNDECIDED = 0.02  # how far from one half the mean of both accuracies may be
_STILL = 0.02  # how far logits may move; the losses have margins of about one


class AdversaryWatch:
    """Judges the means of each log line, and speaks once of what has lasted for some lines.

    It speaks of the same again only after as many lines without it.

    Args:
        patience: how many lines in a row make a finding, or end one.
    """

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self._lines: list[Means] = []
        self._said: str | None = None
        self._since = 0

    def see(self, means: Means) -> str | None:
        """Takes the means of one log line, and returns a sentence where there is something to say.

        Args:
            means: by the names they are logged under; without ``logit_gap`` the discriminator has not learned
                since the last line, and without ``generator`` the autoencoder does not see it yet.
        """
        if "logit_gap" not in means:
            return None
        self._lines = [*self._lines, means][-self.patience :]
        sentence = _finding(self._lines) if len(self._lines) == self.patience else None
        kind = None if sentence is None else sentence.split(":")[0]
        if kind is not None and kind != self._said:
            self._said, self._since = kind, 0
            return sentence
        self._since = self._since + 1 if kind is None else 0
        # The last of ``patience`` lines without leaves the window after as many again.
        if self._since >= 2 * self.patience - 1:
            self._said = None
        return None


def _finding(lines: Sequence[Means]) -> str | None:
    if all("generator" in line and _worse_side(line) > _WON for line in lines):
        real, fake = (_mean(lines, f"accuracy_{side}") for side in ("real", "fake"))
        return (
            f"the discriminator has won: over the last {len(lines)} log lines it was right about {real:.1%} "
            f"of the images and {fake:.1%} of the reconstructions (logit gap "
            f"{_mean(lines, 'logit_gap'):.3g}), and what it says no longer guides the autoencoder. For the "
            "next run: discriminator.augment='[color, translation, cutout]', "
            "loss.adversarial.lecam.weight=0.001, discriminator.r1.weight=0.1, discriminator.update_every=2 "
            "or a lower discriminator.optimizer.learning_rate"
        )
    movement = max(line["logits_real"] for line in lines) - min(line["logits_real"] for line in lines)
    undecided = all(_is_undecided(line) for line in lines)
    if undecided and movement < _STILL:
        return (
            f"the discriminator tells nothing apart: over the last {len(lines)} log lines its logits stood "
            f"at {_mean(lines, 'logits_real'):.3g} for images and reconstructions alike, so that it teaches "
            "the autoencoder nothing. For the next run: a higher discriminator.optimizer.learning_rate, a "
            "lower discriminator.r1.weight or loss.adversarial.lecam.weight, fewer of discriminator.augment, "
            "or more loss.adversarial.discriminator_warmup_steps"
        )
    return None


def _worse_side(line: Means) -> float:
    return min(line["accuracy_real"], line["accuracy_fake"])


def _is_undecided(line: Means) -> bool:
    accuracy = (line["accuracy_real"] + line["accuracy_fake"]) / 2
    return abs(line["logit_gap"]) < _STILL and abs(accuracy - 0.5) < _UNDECIDED


def _mean(lines: Sequence[Means], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)
