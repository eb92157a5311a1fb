"""Away from a terminal a bar is a line now and then."""

import io
from typing import Any

import pytest

from interp import progress
from interp.progress import LineBar, progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def lines_of(clock: Clock, seconds_a_step: float, steps: int = 100, **options: Any) -> list[str]:
    out = io.StringIO()
    with progress_bar(total=steps, description="heads", file=out, **options) as bar:
        for _ in range(steps):
            clock.now += seconds_a_step
            bar.set_postfix(loss=1.0)
            bar.update()
    assert "\r" not in out.getvalue()
    return out.getvalue().splitlines()


def test_a_line_every_half_minute_and_one_at_the_end(clock: Clock) -> None:
    lines = lines_of(clock, 3.0)  # 300 seconds
    assert len(lines) == 11
    assert all("heads" in line for line in lines)
    assert "100/100" in lines[-1]


def test_a_short_bar_is_one_line(clock: Clock) -> None:
    assert len(lines_of(clock, 0.01)) == 1


def test_nothing_is_written_where_nothing_is_asked_for(clock: Clock) -> None:
    assert lines_of(clock, 3.0, shown=False) == []


def test_items_are_handed_on(clock: Clock) -> None:
    out = io.StringIO()
    assert list(progress_bar([1, 2, 3], description="x", file=out)) == [1, 2, 3]
    assert out.getvalue().count("\n") == 1


def test_an_output_that_is_gone_does_not_stop_the_work() -> None:
    out = io.StringIO()
    bar = LineBar(total=2, file=out)
    bar.update()
    out.close()
    bar.close()
