"""Says when a run leaves codes unused, and what helps the quantizer that it has."""

from __future__ import annotations

from torch import Tensor

from latentae.quantizers import Quantizer, reachable_usage, table_healths

# Fewer choices than this a code tell little of the codes: of 1,024 that are all alike 37 % are missed by
# 1,024 choices, and one in 22,000 by ten times as many.
ENOUGH_PER_CODE = 10


class CodebookAlarm:
    """Judges the codes at each log line, and speaks once in a run, of what has lasted for some lines.

    In its first steps any codebook is used little: the encoder has yet to tell images apart.

    Args:
        quantizer: for its remedies.
        least_usage: share of the codes below which it speaks, of what codes that are all equally likely would
            reach in as many choices; None: it never does.
        patience: how many lines in a row make a finding.

    Attributes:
        lines: the latest lines in a row that were below.
        said: whether it has spoken.
    """

    def __init__(self, quantizer: Quantizer, least_usage: float | None, patience: int = 5) -> None:
        self.quantizer = quantizer
        self.least_usage = least_usage
        self.patience = patience
        self.lines = 0
        self.said = False

    def see(self, counts: Tensor, *, final: bool = False) -> str | None:
        """Takes how often each code was chosen, and returns a sentence where there is something to say.

        Args:
            counts: [depth, K], of as many choices in each table.
            final: whether this is the run's last line, whose finding need not have lasted.
        """
        if self.least_usage is None or self.said:
            return None
        tables = table_healths(counts)
        worst = min(range(len(tables)), key=lambda table: tables[table].usage)
        positions = int(counts[0].sum())
        reachable = reachable_usage(self.quantizer.num_codes, positions)
        self.lines = self.lines + 1 if tables[worst].usage < self.least_usage * reachable else 0
        if self.lines < (1 if final else self.patience):
            return None
        self.said = True
        return self._sentence(tables[worst].usage, tables[worst].perplexity, positions, reachable, worst)

    def _sentence(self, usage: float, perplexity: float, positions: int, reachable: float, table: int) -> str:
        codes = f"{self.quantizer.num_codes:,} codes"
        if self.quantizer.depth is not None:
            codes += f" of table {table}"
        limit = "" if reachable > 0.995 else f" (where {reachable:.1%} is within reach)"
        changes = ", ".join(f"model.quantizer.{remedy}" for remedy in self.quantizer.remedies())
        return (
            f"many codes are not used: {usage:.1%} of the {codes} occur in {positions:,} choices{limit}, "
            f"perplexity {perplexity:.3g}, less than guard.min_codebook_usage={self.least_usage:g} asks for; "
            f"for the next run, one of: {changes}, or a lower optimizer.learning_rate"
        )
