from __future__ import annotations

import os

import pytest

from carls_jax.bank.address import Address, parse_address
from carls_jax.errors import InvalidInputError


def test_a_socket_path_is_made_absolute() -> None:
    address = parse_address("unix:run/bank.sock")

    assert address.path == os.path.join(os.getcwd(), "run/bank.sock")
    assert str(address) == f"unix:{os.getcwd()}/run/bank.sock"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:0", "localhost", 0),
        ("10.0.0.7:8431", "10.0.0.7", 8431),
        ("bank-0.example:65535", "bank-0.example", 65535),
        ("[::1]:80", "[::1]", 80),
    ],
)
def test_a_host_and_port_are_read_and_written(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host=host, port=port)
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "bank",
        ":80",
        "host:",
        "host:http",
        "host:65536",
        "::1:80",
        "http://a:80",
        "a b:1",
    ],
)
def test_other_text_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(InvalidInputError, match="unix:/path/to/socket and host:port"):
        parse_address(text)


def test_a_path_must_fit_a_socket() -> None:
    fitting = "/" + "a" * 106
    assert parse_address(f"unix:{fitting}").path == fitting
    with pytest.raises(InvalidInputError, match="has 108 bytes and a socket's has at most 107"):
        parse_address(f"unix:{fitting}b")
    with pytest.raises(InvalidInputError, match="has 109 bytes"):
        parse_address(f"unix:{'/' + 'é' * 54}")


def test_memory_is_shared_through_a_socket_beside_the_first() -> None:
    assert parse_address("unix:/run/bank").same_host_path == "/run/bank.same-host"
    assert parse_address("127.0.0.1:80").same_host_path == ""
    fitting = "/" + "a" * 96
    assert len(parse_address(f"unix:{fitting}").same_host_path) == 107
    assert parse_address(f"unix:{fitting}b").same_host_path == ""


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("LocalHost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("[::ffff:10.0.0.1]:1", False),
        # What a name stands for may change, and gRPC reads more numbers than these are.
        ("localhost.example:1", False),
        ("127.1:1", False),
        ("unix:/localhost", False),
    ],
)
def test_an_address_is_loopback_as_it_is_written(address: str, is_loopback: bool) -> None:
    assert parse_address(address).is_loopback is is_loopback
