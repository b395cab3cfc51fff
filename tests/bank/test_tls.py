"""Real connections: servers and clients with certificates that the tests have made."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from carls_jax.bank.address import parse_address
from carls_jax.bank.connect import connect
from carls_jax.bank.local import LocalBank
from carls_jax.bank.server import BankServer
from carls_jax.bank.tls import Tls, why_not
from carls_jax.errors import (
    AccessDeniedError,
    BankIdentityError,
    BankUnavailableError,
    InvalidInputError,
)

TOKEN = "t" * 32


@pytest.fixture
def bank() -> Iterator[LocalBank]:
    with LocalBank() as bank:
        yield bank


def ask(address: str, tls: Tls | None) -> None:
    """Makes a call, with time enough to try again for long."""
    with connect(address, token=TOKEN, tls=tls, timeout_s=60) as remote:
        assert remote.stats().tables == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_client_that_trusts_the_authority_is_served(
    bank: LocalBank, certificates: SimpleNamespace, host: str
) -> None:
    tls = Tls(**certificates.server)
    with BankServer(bank, f"{host}:0", token=TOKEN, tls=tls) as server:
        ask(server.address, Tls(ca=certificates.ca))
        ask(server.address, Tls(ca=certificates.ca, **certificates.client))


@pytest.mark.parametrize("ca", ["other_ca", None])
def test_a_server_of_another_authority_is_not_the_bank(
    bank: LocalBank, certificates: SimpleNamespace, ca: str | None
) -> None:
    client = Tls(ca=getattr(certificates, ca)) if ca else Tls(**certificates.client)
    tls = Tls(**certificates.server)
    with (
        BankServer(bank, "127.0.0.1:0", token=TOKEN, tls=tls) as server,
        pytest.raises(BankIdentityError, match=r"local issuer certificate\. Give tls=Tls\(ca"),
    ):
        ask(server.address, client)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "not valid for '127.0.0.1'"), ("localhost", "not valid for 'localhost'")],
)
def test_a_certificate_of_another_name_is_not_the_banks(
    bank: LocalBank, certificates: SimpleNamespace, host: str, expected: str
) -> None:
    tls = Tls(**certificates.elsewhere)
    with (
        BankServer(bank, f"{host}:0", token=TOKEN, tls=tls) as server,
        pytest.raises(BankIdentityError, match=expected),
    ):
        ask(server.address, Tls(ca=certificates.ca))


def test_a_server_without_tls_gets_nothing_of_a_client_with_it(
    bank: LocalBank, certificates: SimpleNamespace
) -> None:
    with (
        BankServer(bank, "127.0.0.1:0", token=TOKEN) as server,
        pytest.raises(BankIdentityError, match=r"does not speak TLS.*--tls-cert"),
    ):
        ask(server.address, Tls(ca=certificates.ca))


def test_a_client_without_tls_is_told_to_use_it(
    bank: LocalBank, certificates: SimpleNamespace
) -> None:
    tls = Tls(**certificates.server)
    with (
        BankServer(bank, "127.0.0.1:0", token=TOKEN, tls=tls) as server,
        pytest.raises(AccessDeniedError, match=r"speaks TLS: connect with tls=.*CARLS_TLS_CA"),
    ):
        ask(server.address, None)


def test_mutual_tls_lets_those_in_that_its_authority_has_signed(
    bank: LocalBank, certificates: SimpleNamespace
) -> None:
    tls = Tls(ca=certificates.ca, **certificates.server)
    with BankServer(bank, "127.0.0.1:0", token=TOKEN, tls=tls) as server:
        ask(server.address, Tls(ca=certificates.ca, **certificates.client))
        for own in ({}, certificates.stranger):
            with pytest.raises(AccessDeniedError, match=r"refuses this client's cert.*client-ca"):
                ask(server.address, Tls(ca=certificates.ca, **own))
        with pytest.raises(AccessDeniedError, match="speaks TLS"):
            ask(server.address, None)
        # The certificate is no token.
        client = Tls(ca=certificates.ca, **certificates.client)
        with (
            connect(server.address, token="u" * 32, tls=client) as remote,
            pytest.raises(AccessDeniedError, match=r"open to those with its token"),
        ):
            remote.stats()


def test_a_server_that_is_away_is_not_taken_for_a_wrong_certificate(
    certificates: SimpleNamespace,
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for tls in (None, Tls(ca=certificates.ca)):
            assert why_not(parse_address(address), tls) is None
            with (
                connect(address, token=TOKEN, tls=tls) as remote,
                pytest.raises(BankUnavailableError, match="no bank answers at"),
            ):
                remote.wait_ready(0.2)


def test_the_server_needs_a_certificate(bank: LocalBank, certificates: SimpleNamespace) -> None:
    with pytest.raises(InvalidInputError, match=r"Tls\(cert=None\): a server needs"):
        BankServer(bank, "127.0.0.1:0", token=TOKEN, tls=Tls(ca=certificates.ca))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"ca": "/nowhere"}, r"Tls\(ca='/nowhere'\): No such file"),
        ({"cert": "server.pem"}, "go together"),
        ({"key": "server.key"}, "go together"),
        ({"cert": "server.pem", "key": "/nowhere"}, "No such file"),
        ({"cert": "/nowhere", "key": "server.key"}, "No such file"),
        ({"cert": "server.pem", "key": "client.key"}, "do not fit.*KEY_VALUES_MISMATCH"),
        ({"ca": "server.key"}, "no PEM"),
        ({"cert": "server.key", "key": "server.key"}, "no PEM"),
        ({"cert": "server.pem", "key": "locked.key"}, "have a passphrase"),
        ({"cert": "server.pem", "key": "open.key"}, r"mode 0644\): chmod 600"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_anything_is_sent(
    certificates: SimpleNamespace, files: dict[str, str], expected: str
) -> None:
    directory = Path(certificates.ca).parent
    key = (directory / "server.key").read_bytes()
    (directory / "open.key").write_bytes(key)
    (directory / "open.key").chmod(0o644)
    lock = ["openssl", "pkey", "-aes128", "-passout", "pass:x", "-in", directory / "server.key"]
    subprocess.run([*lock, "-out", directory / "locked.key"], check=True, timeout=30)
    with pytest.raises(InvalidInputError, match=expected) as caught:
        Tls(**{name: os.path.join(directory, file) for name, file in files.items()})
    assert "PRIVATE" not in str(caught.value)
