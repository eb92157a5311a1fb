"""What a detector is worth at a realistic rate of false premises.

Where few questions have a false premise, most detections can be false alarms even at a low rate of
false alarms, and the answers that are changed for the worse can outnumber those that are mended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import rates_figure

RATES = (0.01, 0.05, 0.13)
"""Shares of questions with a false premise."""
QUESTIONS = 1000
"""Numbers of questions and answers are given for so many."""


@dataclass(frozen=True, eq=False)
class RateTable(Displayed):
    """What a detector is worth at some rates of false premises.

    Attributes:
        recall, false_alarms: shares of false premises and of other questions on which it fires.
        table: one row a rate: rate, precision (NaN if it never fires), and, for 1,000 questions,
            caught false premises, alarms (false ones), gained and lost right answers, and change.
    """

    recall: float
    false_alarms: float
    table: pd.DataFrame

    def plot(self) -> go.Figure:
        """The change of right answers at each rate."""
        return rates_figure(self.table)

    def _shown(self) -> Shown:
        words = (
            f"Fires on {self.recall:.0%} of false premises, on {self.false_alarms:.1%} of others."
        )
        return Shown(words, (self.table,), self.plot)


@checked
def at_rates(
    recall: float,
    false_alarms: float,
    *,
    rates: Sequence[float] = RATES,
    gain: float = 1.0,
    loss: float = 1.0,
) -> RateTable:
    """Precision, and the expected change of right answers, at each rate of false premises.

    Args:
        recall: share of false premises on which the detector fires.
        false_alarms: share of other questions on which it fires.
        gain: right answers gained for each false premise that it fires on.
        loss: right answers lost for each false alarm.

    Raises:
        UserError: a share outside 0 to 1.
    """
    named = {"recall": recall, "false_alarms": false_alarms, "gain": gain, "loss": loss}
    for name, value in (*named.items(), *(("a rate", rate) for rate in rates)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} lies between 0 and 1, not at {value}")
    rows = []
    for rate in rates:
        caught, alarms = QUESTIONS * rate * recall, QUESTIONS * (1 - rate) * false_alarms
        fired = caught + alarms
        gained, lost = caught * gain, alarms * loss
        precision = caught / fired if fired else float("nan")
        rows.append((rate, precision, caught, alarms, gained, lost, gained - lost))
    names = ["rate", "precision", "caught", "alarms", "gained", "lost", "change"]
    return RateTable(recall, false_alarms, pd.DataFrame(rows, columns=names))
