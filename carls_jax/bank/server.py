"""`BankServer`: offers a bank to other processes, by gRPC and, on one machine, shared memory."""

from __future__ import annotations

import logging
from concurrent import futures
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from carls_jax.bank.address import Address, parse_address
from carls_jax.bank.doorkeeper import Doorkeeper
from carls_jax.bank.frames import SERVICE_NAME
from carls_jax.bank.interface import Bank
from carls_jax.bank.listening import listen
from carls_jax.bank.pacing import Pacing
from carls_jax.bank.patience import Patience
from carls_jax.bank.same_host_server import DEFAULT_CONNECTIONS, offer
from carls_jax.bank.servicer import Servicer
from carls_jax.bank.staging import Staging
from carls_jax.bank.tls import Tls
from carls_jax.bank.tokens import Token
from carls_jax.errors import InvalidInputError

# Threads wait for table locks and for clients' frames, so there are more of them than cores.
DEFAULT_WORKERS = 16
DEFAULT_STAGED_BYTES = 1 << 30
# A frame's array bytes, and its message, which holds no arrays.
MAX_FRAME_BYTES = 8 << 20
# Each takes one of the 1,024 files that a process may usually have open, as each table does.
DEFAULT_CONNECTIONS_BY_GRPC = 256
# Of all clients, worked on or waiting for a thread; of one connection, which waits with the rest.
MAX_CALLS = 1024
MAX_CALLS_PER_CONNECTION = 128
# As for same-host clients.
DEFAULT_STALL_S = 60.0

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # otherwise two servers could share a port unnoticed
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
    # Connections that say nothing: of machines that have gone, of clients that call no more (theirs
    # connect again by themselves), and of those that never begin.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Pings more often than this end a connection, after two that are forgiven.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
)

_logger = logging.getLogger(__name__)


class BankServer:
    """Serves a bank at an address, from construction until `stop`, or to the end of a `with` block.

    The bank stays the caller's to close, after the server. Methods may be called from several
    threads at once.

    Args:
      bank: What is served, usually a `LocalBank`.
      address: "host:port", where port 0 is a free one, or "unix:/path". A socket is open to its
        owner alone (mode 0600), and its directory is made if it is not there.
      token: What every request at a TCP port must show; at a unix socket there is none.
      tls: The server's certificate at a TCP port, and whose clients it takes.
      insecure: Lets requests, and the token, travel as they are beyond this machine.
      max_workers: Requests that are worked on at once; more wait.
      max_staged_bytes: Bytes of arrays that all requests together may hold in memory while they
        arrive. A request beyond is refused with BankOverloadedError.
      max_same_host_connections: Connections of clients on this machine, at a unix address: one for
        each call under way, and one for each client that reads tables in the server's memory.
        Further ones use gRPC, as all do with 0. Each takes 2 MiB.
      max_connections: Connections by gRPC; further ones are closed.
      max_stall_s: Seconds that a call by gRPC may wait for its client to send or take the next
        message. Then it ends.
      max_rows_per_s: Rows that each client may read and write in a second; it is told by
        BankOverloadedError when to go on. A client is a connection at a TCP port and a process at a
        unix socket. Lookups in shared memory do not count. None: no limit.

    Raises:
      InvalidInputError: The address is malformed, or no address of this machine; or there is no
        token at a TCP port, or no TLS beyond this machine.
      AddressInUseError: A live server, or another file, is at the address.
    """

    def __init__(
        self,
        bank: Bank,
        address: str,
        *,
        token: Token | str | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        max_workers: int = DEFAULT_WORKERS,
        max_staged_bytes: int = DEFAULT_STAGED_BYTES,
        max_same_host_connections: int = DEFAULT_CONNECTIONS,
        max_connections: int = DEFAULT_CONNECTIONS_BY_GRPC,
        max_stall_s: float = DEFAULT_STALL_S,
        max_rows_per_s: float | None = None,
    ) -> None:
        wanted = parse_address(address)
        shown = Token(token) if isinstance(token, str) else token
        _check_secured(wanted, shown, tls, insecure=insecure)
        pacing = None if max_rows_per_s is None else Pacing(max_rows_per_s)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers, thread_name_prefix="bank-server"),
            interceptors=[Doorkeeper(shown)] if shown else [],
            options=[*_OPTIONS, ("grpc.max_allowed_incoming_connections", max_connections)],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._address = listen(self._server, wanted, tls=tls)
        staging = Staging(bank, max_bytes=max_staged_bytes, pacing=pacing)
        self._patience = Patience(max_stall_s)
        self._server.add_generic_rpc_handlers((Servicer(staging, self._patience).handler(),))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._same_host = offer(
            staging,
            self._address.same_host_path,
            max_connections=max_same_host_connections,
        )
        self._server.start()
        for name in ("", SERVICE_NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _logger.info("bank %s listens at %s", bank.identity.bank_id, self.address)

    @property
    def address(self) -> str:
        """The address that clients give to `connect`, with the port that was chosen."""
        return str(self._address)

    def stop(self, grace_s: float = 5.0) -> None:
        """Takes no more requests, lets those under way end for so long, and frees the address."""
        self._health.enter_graceful_shutdown()
        if self._same_host:
            self._same_host.turn_away()  # frees its path before another server may take the address
        ended = self._server.stop(grace_s)
        if self._same_host:
            self._same_host.wait(grace_s)
        ended.wait()
        self._patience.stop()

    def __enter__(self) -> BankServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _check_secured(
    address: Address, token: Token | None, tls: Tls | None, *, insecure: bool
) -> None:
    """Raises InvalidInputError if others than a bank's users could use it."""
    if address.path:
        if token or tls:
            raise InvalidInputError(
                f"address={str(address)!r}: a unix socket is its owner's alone, so leave out "
                "token=... and tls=..."
            )
        return
    if token is None:
        raise InvalidInputError(
            f"address={str(address)!r}: every user of this machine could connect to a TCP port, so "
            "it needs a token: give token=..., such as secrets.token_urlsafe(32), or a unix socket"
        )
    if not (address.is_loopback or tls or insecure):
        raise InvalidInputError(
            f"address={str(address)!r} is open to other machines, and without TLS others on the "
            "way can read the token and all rows: give the server a certificate (tls=Tls(cert=..., "
            "key=...), or --tls-cert and --tls-key), or say that it may be so (insecure=True, or "
            "--insecure)"
        )
