from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import carls_jax as carls
from carls_jax.bank.tokens import Token, kept_token
from carls_jax.errors import AccessDeniedError, ConfigError
from carls_jax.launch.addresses import resolve
from carls_jax.launch.inspecting import bank_of
from carls_jax.launch.securing import Security, Shown, published, token_file, token_of

SECRET = "s3cret-" + "x" * 20
COMMAND = (sys.executable, "-m", "carls_jax.cli")


def test_a_unix_socket_wants_nothing(tmp_path):
    assert token_of(Security(), "unix:/socket", directory=tmp_path) == Shown()
    assert Shown().hint == ""
    assert not list(tmp_path.iterdir())
    for more in ({"token_file": Path("x")}, {"tls": carls.Tls()}, {"insecure": True}):
        with pytest.raises(ConfigError, match="unix:/socket: a unix socket is its owner's alone"):
            Security(**more).check("unix:/socket")
    Security(insecure=True).check("127.0.0.1:0")


def test_a_token_is_that_of_the_file_the_environment_or_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = token_of(Security(), "127.0.0.1:0", directory=Path("kept"))
    assert shown == Shown(kept_token(tmp_path / "kept" / "token"), tmp_path / "kept" / "token")
    assert shown.hint == f", token_file='{tmp_path}/kept/token'"
    assert shown.token.value not in repr(shown)

    monkeypatch.setenv("CARLS_TOKEN", SECRET)
    from_environment = token_of(Security(), "127.0.0.1:0", directory=Path("kept"))
    assert from_environment == Shown(Token(SECRET, "CARLS_TOKEN"))
    assert from_environment.hint == ", token=os.environ['CARLS_TOKEN']"
    given = token_of(Security(Path("given")), "127.0.0.1:0", directory=Path("kept"))
    assert given.path == tmp_path / "given"
    assert given.token.value not in (SECRET, shown.token.value)


def test_where_the_token_is_is_told_while_the_server_runs(tmp_path):
    assert token_file(tmp_path) is None
    with published(tmp_path, Shown(Token(SECRET), tmp_path / "token"), shard_index=0):
        assert token_file(tmp_path) == str(tmp_path / "token")
        # One that was started again with the token in its environment has no file any more.
        with published(tmp_path, Shown(Token(SECRET)), shard_index=0):
            assert token_file(tmp_path) is None
    assert token_file(tmp_path) is None


@pytest.fixture
def serve():
    """Returns a context manager that gives a bank server's process and what it says."""

    @contextmanager
    def start(*arguments: str, **environment: str):
        server = subprocess.Popen(
            (*COMMAND, "bank", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        said = SimpleNamespace(process=server, text="")
        try:
            while "connect with" not in said.text and (line := server.stdout.readline()):
                said.text += line
            yield said
        finally:
            server.terminate()
            said.text += server.communicate(timeout=30)[0]

    return start


def everything_in(directory: Path, *but: Path) -> bytes:
    """Returns all that files hold, and their names, but for some."""
    files = [one for one in directory.rglob("*") if one.is_file() and one not in but]
    return b"\n".join(bytes(one) + one.read_bytes() for one in files)


def test_a_token_is_nowhere_but_in_its_file(tmp_path, serve, capfd):
    run, token = tmp_path / "run", tmp_path / "run" / "token"
    with serve("--workdir", str(run), "--address", "127.0.0.1:0", "--journal=process") as server:
        secret = token.read_text().strip()
        assert f"token_file='{token}'" in server.text
        assert oct(token.stat().st_mode)[-3:] == "600"
        address = resolve(run, "bank-0", timeout_s=10)
        with bank_of(run) as bank:
            bank.table(carls.TableSpec("t", {"x": carls.Field()})).update([1], {"x": np.ones(1)})
            bank.snapshot("s")
        with carls.connect(address) as stranger, pytest.raises(AccessDeniedError) as caught:
            stranger.stats()
        commands = " ".join(" ".join(one.cmdline()) for one in _family(server.process.pid))
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("CARLS_")
        }
        explain = ("explain", "t", "1", "--address", address)
        for arguments, variables in (
            (("status", "--workdir", str(run)), {}),
            (explain, {"CARLS_TOKEN_FILE": str(token)}),
            (explain, {"CARLS_TOKEN": "w" * 32}),
        ):
            done = subprocess.run(
                (*COMMAND, *arguments),
                capture_output=True,
                text=True,
                env={**environment, **variables},
            )
            server.text += done.stdout + done.stderr
    assert "table t: 1 rows" in server.text
    assert "x = 1  (version 1" in server.text
    assert "refused 1 calls without the right token" in server.text
    assert "this client showed the token of CARLS_TOKEN: " in server.text
    shown = "\n".join((server.text, commands, str(caught.value), *capfd.readouterr()))
    assert secret not in shown
    assert secret.encode() not in everything_in(run, token)
    assert b"127.0.0.1" not in everything_in(run / "addresses")  # withdrawn


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_shards_share_a_token_that_the_first_has_made(tmp_path, serve):
    token = tmp_path / "token"
    options = ("--address=127.0.0.1:0", "--token-file", str(token), "--bank-id=b")
    with (
        serve("--root", str(tmp_path / "0"), "--shard=0/2", *options) as zero,
        serve("--root", str(tmp_path / "1"), "--shard=1/2", *options) as one,
    ):
        addresses = ",".join(server.text.split("'")[1] for server in (zero, one))
        with carls.connect(addresses, token_file=token) as bank:
            assert bank.identity.num_shards == 2
        with carls.connect(addresses, token="w" * 32) as bank, pytest.raises(AccessDeniedError):
            _ = bank.identity


def test_a_server_in_the_open_has_tls_of_both_sides(tmp_path, serve, certificates):
    own = certificates.server
    with serve(
        *("--root", str(tmp_path), "--address=0.0.0.0:0", "--tls-client-ca", certificates.ca),
        *("--tls-cert", own["cert"], "--tls-key", own["key"]),
        CARLS_TOKEN=SECRET,
    ) as server:
        assert "token=os.environ['CARLS_TOKEN']" in server.text
        assert not (tmp_path / "token").exists()
        address = f"localhost:{server.text.split(chr(39))[1].rpartition(':')[2]}"
        told = subprocess.run(
            (*COMMAND, "explain", "t", "1", "--address", address),
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "CARLS_TOKEN": SECRET,
                "CARLS_TLS_CA": certificates.ca,
                "CARLS_TLS_CERT": certificates.client["cert"],
                "CARLS_TLS_KEY": certificates.client["key"],
            },
        )
        assert "TableNotFoundError: no table 't'; this bank has none yet" in told.stderr
        tls = carls.Tls(ca=certificates.ca)
        with (
            carls.connect(address, token=SECRET, tls=tls) as bank,
            pytest.raises(AccessDeniedError, match="refuses this client's certificate"),
        ):
            bank.stats()
    assert SECRET not in server.text + told.stdout + told.stderr


def test_a_server_in_the_open_without_tls_does_not_start(tmp_path, serve):
    with serve("--root", str(tmp_path), "--address=0.0.0.0:0") as server:
        assert server.process.wait(30) == 1
    assert "bank: InvalidInputError: address='0.0.0.0:0' is open to other machines" in server.text
    assert "--tls-cert" in server.text
    assert "--insecure" in server.text


def test_files_that_cannot_be_are_told_before_anything_is_made(tmp_path, capsys):
    from carls_jax.cli import main

    for options, expected in (
        (["--tls-cert=/nowhere", "--tls-key=/nowhere"], "Tls(cert='/nowhere', key='/nowhere'): No"),
        (["--tls-cert=/nowhere"], "a certificate and its private key go together"),
    ):
        arguments = ["--root", str(tmp_path / "root"), "--address=127.0.0.1:0", *options]
        assert main(["bank", *arguments]) == 1
        assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bank", f"--token={SECRET}"])
    told = capsys.readouterr().err
    assert "has no '--token'; did you mean '--token-file'?" in told
    assert SECRET not in told
    assert not (tmp_path / "root").exists()
