from __future__ import annotations

from types import SimpleNamespace

import pytest

from carls_jax.bank.access import Access, access_of
from carls_jax.bank.address import parse_address
from carls_jax.bank.connect import connect
from carls_jax.bank.tls import Tls
from carls_jax.bank.tokens import Token, kept_token
from carls_jax.errors import AccessDeniedError, InvalidInputError

SECRET = "s3cret-" + "x" * 20
NOTHING = {"token": None, "token_file": None, "tls": None, "insecure": False}


@pytest.fixture
def variables(monkeypatch):
    """Gives a function that sets environment variables for the test."""
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    "address", ["bank.example:1", "192.0.2.1:1", "0.0.0.0:1", "[::]:1", "[2001:db8::1]:1"]
)
def test_nothing_is_sent_beyond_this_machine_that_others_can_read(
    address, variables, certificates: SimpleNamespace
):
    for tokened in ({}, {"token": SECRET}):
        with pytest.raises(InvalidInputError, match=r"without TLS others.*tls=.*insecure=") as told:
            connect(address, **tokened)
        assert SECRET not in str(told.value)
    connect(address, token=SECRET, tls=Tls(ca=certificates.ca)).close()
    connect(address, token=SECRET, insecure=True).close()
    variables(CARLS_INSECURE="1")
    connect(address, token=SECRET).close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1"])
def test_on_this_machine_tls_is_a_choice(address):
    connect(address, token=SECRET).close()


def test_a_token_is_not_sent_to_a_unix_socket():
    access = Access(Token(SECRET))
    assert access.metadata(parse_address("unix:/socket")) == ()
    assert access.metadata(parse_address("127.0.0.1:1")) == Token(SECRET).metadata


def test_what_is_not_given_is_taken_of_the_environment(
    tmp_path, variables, certificates: SimpleNamespace
):
    assert access_of(**NOTHING) == Access()
    variables(CARLS_TOKEN=SECRET, CARLS_TLS_CA=certificates.ca, CARLS_INSECURE="0")
    assert access_of(**NOTHING) == Access(
        Token(SECRET, "CARLS_TOKEN"), Tls(ca=certificates.ca), insecure=False
    )
    variables(
        CARLS_TLS_CERT=certificates.client["cert"],
        CARLS_TLS_KEY=certificates.client["key"],
        CARLS_INSECURE="1",
    )
    found = access_of(**NOTHING)
    assert (found.tls, found.insecure) == (Tls(ca=certificates.ca, **certificates.client), True)

    kept = kept_token(tmp_path / "token")
    given = access_of(**{**NOTHING, "token_file": tmp_path / "token", "tls": Tls()})
    assert (given.token, given.tls) == (kept, Tls())
    assert access_of(**{**NOTHING, "token": "u" * 16}).token == Token("u" * 16)


def test_two_tokens_are_one_too_many(tmp_path):
    with pytest.raises(InvalidInputError, match="give one of them"):
        connect("127.0.0.1:1", token=SECRET, token_file=tmp_path / "token")


def test_a_bank_that_needs_no_token_does_not_look_for_one(variables):
    variables(CARLS_TOKEN_FILE="/nowhere")
    connect("local:").close()
    connect("unix:/nowhere/socket").close()
    with pytest.raises(InvalidInputError, match="CARLS_TOKEN_FILE=/nowhere: no token can be read"):
        connect("127.0.0.1:1")


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, "this client showed no token: "),
        (Token(SECRET, "CARLS_TOKEN"), "this client showed the token of CARLS_TOKEN: "),
    ],
)
def test_a_refusal_tells_what_was_shown_and_the_way_out(token, expected):
    told = str(Access(token).explained(AccessDeniedError("no")))
    assert told.startswith(f"no; {expected}connect with token_file=..., or set CARLS_TOKEN_FILE")
    assert SECRET not in told


def test_no_repr_shows_a_token():
    assert SECRET not in repr(Access(Token(SECRET)))
    with connect("127.0.0.1:1,127.0.0.1:2", token=SECRET, source="me") as bank:
        assert SECRET not in repr(bank)
