"""How far a run is: one total over all phases, said before what takes long."""

from io import StringIO

from circuitome.cli.progress import plain_lines
from circuitome.progress import WHOLE, of_whole


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Seconds so far."""
        return self.now


def test_every_phase_also_tells_of_the_whole_run():
    told, clock = [], Clock()
    tell = of_whole(lambda *call: told.append(call), 100.4, clock)
    tell("scoring edges", 0, 8)
    clock.now = 40.0
    tell("running circuits", 1, 9)
    clock.now = 130.0
    tell("running circuits", 9, 9)
    assert [call for call in told if call[0] == WHOLE] == [(WHOLE, 0, 100), (WHOLE, 40, 100), (WHOLE, 130, 131)]
    assert [call for call in told if call[0] != WHOLE][1] == ("running circuits", 1, 9)


def test_long_runs_say_so_first_and_lines_give_the_time_left_of_the_whole():
    stream, clock = StringIO(), Clock()
    tell = of_whole(plain_lines(stream, clock=clock), 300.0, clock)
    tell("scoring edges", 0, 8)
    clock.now = 10.0
    tell("scoring edges", 4, 8)
    clock.now = 60.0
    tell("running circuits", 1, 9)
    assert stream.getvalue() == "This takes about 5 min.\nrunning circuits 1/9, about 4 min left\n"


def test_short_runs_leave_no_line():
    stream, clock = StringIO(), Clock()
    tell = of_whole(plain_lines(stream, clock=clock), 50.0, clock)
    tell("scoring edges", 0, 8)
    clock.now = 29.0
    tell("scoring edges", 8, 8)
    assert not stream.getvalue()
