"""Whatever is sent to a server's port, it lives, answers, and has changed nothing but what it said.

With `scripts/test --long` 20,000 requests are sent that it refuses, otherwise 1,500.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.any_requests import any_frames, garbage, mutated_frames
from tests.integration.fuzzed_bank import IS_LONG, FuzzedBank, Twin, fuzzed_bank, without_times
from tests.integration.malformed_requests import cut, malformed, update

SCALE = 13 if IS_LONG else 1
PER_EXAMPLE = 20
pytestmark = pytest.mark.timeout(1200 if IS_LONG else 120)
# What a server's memory may grow by; a leak of 20 KB a request would be more in the long mode.
MAX_GROWTH_BYTES = 300 << 20


def examples(number: int) -> settings:
    return settings(
        max_examples=number * SCALE,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # What is sent is not small: to find the smallest would take longer than the test.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedBank]:
    with fuzzed_bank(tmp_path_factory.mktemp("fuzzed"), "127.0.0.1:0") as fuzzed:
        yield fuzzed


def test_malformed_requests_are_refused_and_change_nothing(fuzzed: FuzzedBank) -> None:
    before, files = fuzzed.state(), on_disk(fuzzed)

    @examples(45)
    @given(st.lists(malformed(), min_size=PER_EXAMPLE, max_size=PER_EXAMPLE))
    def send(requests: list[tuple[str, list[bytes], str]]) -> None:
        for what, frames, method in requests:
            assert fuzzed.ask(frames, method) is None, what
        assert fuzzed.bank.stats().sequence == before["sequence"]

    send()
    fuzzed.check_alive()
    assert on_disk(fuzzed) == files
    assert fuzzed.state() == before


def on_disk(fuzzed: FuzzedBank) -> list[str]:
    """Returns the names of the files that the server may have made, but for its snapshots."""
    where = fuzzed.root.parent
    names = (str(one.relative_to(where)) for one in where.rglob("*"))
    return sorted(name for name in names if not name.startswith("root/snapshots/"))


def test_any_requests_change_what_they_say_and_nothing_else(
    fuzzed: FuzzedBank, tmp_path: Path
) -> None:
    twin = Twin(fuzzed, tmp_path)

    @examples(30)
    @given(
        st.lists(
            any_frames() | any_frames() | mutated_frames() | garbage,
            min_size=PER_EXAMPLE,
            max_size=PER_EXAMPLE,
        )
    )
    def send(requests: list[tuple[list[bytes], str]]) -> None:
        for frames, method in requests:
            raw = fuzzed.ask(frames, method)
            if raw is not None:
                twin.follow(frames)
            thaw(fuzzed, twin, frames)
        assert fuzzed.bank.stats().sequence == twin.bank.stats().sequence

    send()
    fuzzed.check_alive()
    assert without_times(fuzzed.state()) == without_times(twin.state())
    twin.bank.close()


def thaw(fuzzed: FuzzedBank, twin: Twin, frames: list[bytes]) -> None:
    """Ends what a valid request to freeze began, so that the next change need not wait for it."""
    for uuid in ("1" * 32, "2" * 32):
        if uuid.encode() in b"".join(frames):
            fuzzed.bank.thaw(uuid)
            twin.bank.thaw(uuid)


def test_half_requests_change_nothing(fuzzed: FuzzedBank) -> None:
    """Streams that end, or are taken back, before all bytes came; calls of no message or two."""
    before = fuzzed.state()

    @examples(10)
    @given(st.data())
    def send(data: st.DataObject) -> None:
        asked, sent = update()
        whole = b"".join(one[3] for one in sent)
        for _ in range(PER_EXAMPLE):
            frames = cut(data.draw, asked, whole[: data.draw(st.integers(0, len(whole) - 1))])
            if data.draw(st.booleans()):
                fuzzed.begin(frames)
            else:
                number = data.draw(st.integers(0, len(frames)))
                assert fuzzed.ask(frames[:number], "stream") is None
                assert fuzzed.ask(frames[:number], "call") is None
        assert fuzzed.bank.stats().sequence == before["sequence"]

    send()
    fuzzed.check_alive()
    assert fuzzed.state() == before


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@st.composite
def http2_frame(draw: st.DrawFn) -> bytes:
    """Draws a frame of HTTP/2, of any kind, that may say that it is longer than it is."""
    content = draw(st.binary(max_size=40))
    length = draw(st.just(len(content)) | st.integers(0, 2**24 - 1))
    stream = draw(st.integers(0, 5) | st.integers(0, 2**32 - 1))
    kind, flags = draw(st.integers(0, 10)), draw(st.integers(0, 255))
    return length.to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


ON_THE_PORT = st.one_of(
    st.binary(max_size=300),
    st.lists(http2_frame(), max_size=5).map(lambda some: PREFACE + SETTINGS + b"".join(some)),
    st.sampled_from([b"GET / HTTP/1.1\r\n\r\n", PREFACE[:9], PREFACE, b"\x16\x03\x01" * 99]),
)


def test_garbage_on_the_port_is_nobodys_request(fuzzed: FuzzedBank) -> None:
    before, files = fuzzed.state(), fuzzed.num_files
    host, _, port = fuzzed.address.rpartition(":")

    @examples(8)
    @given(st.lists(ON_THE_PORT, min_size=PER_EXAMPLE, max_size=PER_EXAMPLE))
    def send(all_bytes: list[bytes]) -> None:
        links = [socket.create_connection((host, int(port)), 10) for _ in all_bytes]
        for link, raw in zip(links, all_bytes, strict=True):
            link.sendall(raw)
            if len(raw) % 2:
                link.shutdown(socket.SHUT_WR)
        assert fuzzed.bank.stats().sequence == before["sequence"]
        for link in links:
            link.close()

    send()
    fuzzed.check_alive()
    assert fuzzed.state() == before
    wait_until(lambda: fuzzed.num_files <= files)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


@pytest.fixture(scope="module", autouse=True)
def enough(fuzzed: FuzzedBank) -> Iterator[None]:
    """Holds how many requests were refused in all, and that the server's memory did not grow."""
    first_bytes, began = fuzzed.rss_bytes, time.monotonic()
    first = fuzzed.bank.stats().sequence
    yield
    last_bytes, num_changes = fuzzed.rss_bytes, fuzzed.bank.stats().sequence - first
    print(
        f"{fuzzed.num_refused} requests refused, {fuzzed.counts['valid']} valid ones made "
        f"{num_changes} changes, in {time.monotonic() - began:.0f} s; the server's memory: "
        f"{first_bytes >> 20} MiB before, {last_bytes >> 20} MiB after; "
        f"{dict(fuzzed.counts.most_common())}"
    )
    assert fuzzed.num_refused >= 20_000 or not IS_LONG
    assert last_bytes - first_bytes < MAX_GROWTH_BYTES
