"""Kills what a launcher has started when the launcher itself is gone, however it went.

The guardian is a small process that reads a pipe. Each replica writes its process group there
just before it becomes the role's command; the end of the pipe comes when the launcher, the only
other holder of its writing end, has ended, and then every group that is left is killed.

Why not `prctl(PR_SET_PDEATHSIG)`: it reaches the replica alone and not the workers that the
replica started, it follows the thread that started the replica rather than the process, and only
Linux has it. Why not `preexec_fn`: it may deadlock where there are threads.

This file is also run by its path as a script, in a process without site-packages: it imports
nothing but the standard library, and `subprocess` only in the launcher. A replica starts 13 ms
later for it (measured).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

# Isolated (-I) and without `site` (-S): starts fast, and PYTHONPATH cannot change what runs.
_SCRIPT = (sys.executable, "-I", "-S", __file__)


class Guardian:
    """Owns the guardian process; to be used by one thread."""

    def __init__(self) -> None:
        import subprocess

        read_end, self._write_end = os.pipe()
        # A session of its own: Ctrl-C in the terminal must not reach it.
        self._process = subprocess.Popen(
            (*_SCRIPT, "watch"),
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)

    def __enter__(self) -> Guardian:
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the groups that are left and ends the guardian."""
        os.close(self._write_end)
        self._process.wait()

    @property
    def inherited_fd(self) -> int:
        """The file descriptor that a replica must inherit (`pass_fds`)."""
        return self._write_end

    def command(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """Returns a command that registers its process group and then becomes `argv`.

        Its process must be the leader of a group (`start_new_session=True`) and inherit
        `inherited_fd`. Where `argv` cannot be run it exits with code 127.
        """
        return (*_SCRIPT, "start", str(self._write_end), *argv)

    def forget(self, group: int) -> None:
        """Says that a process group has ended and its number may come to mean another."""
        os.write(self._write_end, b"-%d\n" % group)


def _start(write_end: int, argv: list[str]) -> None:
    # The launcher may be gone by now. The pipe is then held open by this process alone, until the
    # group is registered: no replica can slip through.
    os.write(write_end, b"+%d\n" % os.getpid())
    os.close(write_end)
    # Python ignores SIGPIPE, and what is ignored stays so in the program that takes over.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"cannot run {argv[0]!r}: {error}", file=sys.stderr)
        sys.exit(127)


def _watch() -> None:
    # Only the end of the pipe, or SIGKILL, ends the guardian.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):  # it ended in this very moment
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        _watch()
    else:
        _start(int(sys.argv[2]), sys.argv[3:])
