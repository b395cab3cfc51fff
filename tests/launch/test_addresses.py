from __future__ import annotations

import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from carls_jax.errors import ConfigError, NotFoundError
from carls_jax.launch import addresses, publish, resolve, socket_directory, withdraw


def test_what_was_published_is_resolved(tmp_path):
    publish(tmp_path, "bank-0", "127.0.0.1:4711")
    assert resolve(tmp_path, "bank-0", timeout_s=0) == "127.0.0.1:4711"


def test_the_last_address_counts(tmp_path):
    publish(tmp_path, "bank", "unix:/old")
    publish(tmp_path, "bank", "unix:/new")
    assert resolve(tmp_path, "bank", timeout_s=0) == "unix:/new"


def test_resolve_waits_for_a_server_that_starts_later(tmp_path):
    server = threading.Timer(0.1, publish, (tmp_path, "bank", "unix:/bank"))
    server.start()
    assert resolve(tmp_path, "bank", timeout_s=10) == "unix:/bank"
    server.join()


def test_resolve_tells_which_addresses_are_known(tmp_path):
    publish(tmp_path, "other", "unix:/other")
    with pytest.raises(NotFoundError, match=r"'bank' .* published: \['other'\]"):
        resolve(tmp_path, "bank", timeout_s=0)


def test_clear_removes_the_addresses_of_an_earlier_launch(tmp_path):
    publish(tmp_path, "bank", "unix:/bank")
    addresses.clear(tmp_path)
    with pytest.raises(NotFoundError):
        resolve(tmp_path, "bank", timeout_s=0)


def test_clear_accepts_a_workdir_without_addresses(tmp_path):
    addresses.clear(tmp_path / "missing")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden"])
def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path, name):
    for use in (
        lambda: publish(tmp_path, name, "x"),
        lambda: resolve(tmp_path, name, timeout_s=0),
        lambda: withdraw(tmp_path, name),
    ):
        with pytest.raises(ConfigError, match="must begin with"):
            use()


def test_an_empty_address_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="after binding"):
        publish(tmp_path, "bank", "")


def test_what_was_withdrawn_is_not_found(tmp_path):
    publish(tmp_path, "bank", "unix:/bank")
    withdraw(tmp_path, "bank")
    with pytest.raises(NotFoundError):
        resolve(tmp_path, "bank", timeout_s=0)
    withdraw(tmp_path, "bank")  # nothing is there any more


def test_a_short_workdir_holds_its_sockets():
    with socket_directory("/run/here") as directory:
        assert directory == Path("/run/here")


def test_a_long_workdir_gets_a_private_directory_until_the_end(tmp_path):
    with socket_directory(tmp_path / ("long" * 30)) as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(directory / "bank-63.sock"))
    assert not directory.exists()


def test_the_longest_workdir_that_fits_is_used():
    fitting = Path("/" + "d" * (107 - len("//bank-63.sock")))
    assert len(str(fitting / "bank-63.sock")) == 107
    with socket_directory(fitting) as directory:
        assert directory == fitting
    with socket_directory(f"{fitting}d") as directory:
        assert directory.parent == Path(tempfile.gettempdir())


def test_a_temporary_directory_that_is_too_long_is_refused(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigError, match="may have 107 bytes"), socket_directory(long):
        pass
    assert not list(long.iterdir())
