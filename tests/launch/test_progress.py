from __future__ import annotations

import dataclasses
import io
import json
import time

import pytest

from carls_jax.launch import LaunchEvent, ReplicaStatus, Screen, open_screen
from carls_jax.launch.progress import LiveScreen, PlainScreen

TRAINER = ReplicaStatus("trainer", 0, "running", pid=12, started_at=time.time(), restarts=0)
MAKER = ReplicaStatus("maker", 1, "restarting", pid=None, started_at=time.time(), restarts=2)


@pytest.fixture
def write_metrics(tmp_path):
    def write(name: str, **values) -> None:
        path = tmp_path / "metrics" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps({"time": time.time(), "role": name, **values}) + "\n")

    return write


def words(stream: io.StringIO) -> list[list[str]]:
    """The words of each line, without the time of day."""
    return [line.split("  ")[1:] for line in stream.getvalue().splitlines()]


def test_plain_lines_show_state_step_metrics_and_age(tmp_path, write_metrics):
    stream = io.StringIO()
    write_metrics("trainer-0", step=7, loss=0.25)
    write_metrics("trainer-0", step=8, loss=0.125)
    PlainScreen(tmp_path, stream=stream).draw([TRAINER, MAKER])
    assert [line[:-1] for line in words(stream)] == [
        ["trainer-0", "running", "step 8", "loss 0.125"],
        ["maker-1", "restarting", "restarts 2"],
    ]
    assert all(line[-1].endswith(" s ago") for line in words(stream))


def test_a_replica_has_no_second_plain_line_before_its_time(tmp_path, write_metrics):
    stream = io.StringIO()
    screen = PlainScreen(tmp_path, stream=stream, every_s=1000.0)
    for step in range(3):
        write_metrics("trainer-0", step=step)
        screen.draw([TRAINER])
    assert len(words(stream)) == 1


def test_a_replica_that_is_done_has_its_last_line_at_once(tmp_path, write_metrics):
    stream = io.StringIO()
    screen = PlainScreen(tmp_path, stream=stream, every_s=1000.0)
    write_metrics("trainer-0", step=1)
    screen.draw([TRAINER])
    write_metrics("trainer-0", step=2)
    screen.draw([dataclasses.replace(TRAINER, state="done", pid=None)])
    assert [line[1:3] for line in words(stream)] == [["running", "step 1"], ["done", "step 2"]]


def test_a_replica_without_news_has_no_second_plain_line(tmp_path, write_metrics):
    stream = io.StringIO()
    screen = PlainScreen(tmp_path, stream=stream, every_s=0.0)
    write_metrics("trainer-0", step=1)
    screen.draw([TRAINER])
    screen.draw([TRAINER])
    write_metrics("trainer-0", step=2)
    screen.draw([TRAINER])
    assert [line[2] for line in words(stream)] == ["step 1", "step 2"]


def test_an_event_has_a_plain_line_at_once(tmp_path):
    stream = io.StringIO()
    screen = PlainScreen(tmp_path, stream=stream)
    screen.show(LaunchEvent("started", "maker-0", "started, pid 5"))
    screen.show(LaunchEvent("finished", "", "the program has ended"))
    assert words(stream) == [["maker-0", "started, pid 5"], ["the program has ended"]]


def test_metrics_may_be_named_for_the_role_alone(tmp_path, write_metrics):
    stream = io.StringIO()
    write_metrics("trainer", step=3)
    PlainScreen(tmp_path, stream=stream).draw([TRAINER])
    assert "step 3" in stream.getvalue()


def test_only_the_first_numbers_are_shown(tmp_path, write_metrics):
    stream = io.StringIO()
    write_metrics("trainer-0", step=3, note="text", a=1, b=None, c=3, d=4, e=5)
    PlainScreen(tmp_path, stream=stream).draw([TRAINER])
    assert words(stream)[0][3:-1] == ["a 1", "b not finite", "c 3", "d 4"]


def test_the_live_screen_shows_a_table_and_the_events_as_they_are(tmp_path, write_metrics):
    stream = io.StringIO()
    write_metrics("trainer-0", step=8, loss=0.125)
    with LiveScreen(tmp_path, stream=stream) as screen:
        screen.show(LaunchEvent("ended", "maker-1", "ended [red] with exit code 1"))
        screen.draw([TRAINER, MAKER])
    text = stream.getvalue()
    assert "maker-1  ended [red] with exit code 1" in text
    assert "trainer-0  running     12   0         8     loss 0.125" in text
    assert "maker-1    restarting       2" in text


def test_the_screen_suits_the_stream(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(open_screen(tmp_path, stream=Terminal()), LiveScreen)
    assert isinstance(open_screen(tmp_path, stream=io.StringIO()), PlainScreen)


def test_the_base_screen_shows_nothing(capfd):
    with Screen() as screen:
        screen.show(LaunchEvent("started", "maker-0", "started"))
        screen.draw([TRAINER])
    assert capfd.readouterr() == ("", "")
