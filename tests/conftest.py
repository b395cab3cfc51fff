"""Strict settings for every test, made before JAX is imported; and certificates."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

from types import SimpleNamespace

import jax
import pytest
import trustme

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="kill and load for minutes, not seconds")
    parser.addoption("--kills", type=int, help="how many kills of a server (15; --long: 200)")
    parser.addoption("--seed", type=int, default=0, help="of the moments of kills and faults")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Gives PEM files: `ca`, `other_ca`, and certificates with their keys, as arguments of `Tls`.

    Of `ca`: `server` for this machine's own names, `elsewhere` for another's, and `client`. Of
    `other_ca`: `stranger`.
    """
    directory = tmp_path_factory.mktemp("certificates")

    def kept(name: str, *pems: trustme.Blob) -> str:
        path = directory / name
        path.write_bytes(b"".join(pem.bytes() for pem in pems))
        path.chmod(0o600)
        return str(path)

    def issued(name: str, authority: trustme.CA, *names: str) -> dict[str, str]:
        made = authority.issue_cert(*names)
        chain = kept(f"{name}.pem", *made.cert_chain_pems)
        return {"cert": chain, "key": kept(f"{name}.key", made.private_key_pem)}

    ca, other = trustme.CA(), trustme.CA()
    return SimpleNamespace(
        ca=kept("ca.pem", ca.cert_pem),
        other_ca=kept("other_ca.pem", other.cert_pem),
        server=issued("server", ca, "localhost", "127.0.0.1"),
        elsewhere=issued("elsewhere", ca, "bank.example"),
        client=issued("client", ca, "trainer@bank.example"),
        stranger=issued("stranger", other, "trainer@bank.example"),
    )
