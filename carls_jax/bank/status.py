"""Errors between processes: how each exception class travels, and what it becomes at the client.

The class name travels with the message, so a client raises what the server raised. Over gRPC a
status code goes with them; codes without a name come from gRPC itself, or from a stranger.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import suppress

import grpc
from grpc import StatusCode

from carls_jax import errors
from carls_jax.errors import BankInternalError, BankOverloadedError, CarlsError

CLASS_TRAILER = "carls-error"
# Seconds; goes with a BankOverloadedError after which a client may try again.
RETRY_TRAILER = "carls-retry-after"
# gRPC sends a message as a trailer, where a letter takes up to twelve bytes.
MAX_MESSAGE_LETTERS = 2000
MAX_TRAILERS_BYTES = 1 << 16

_logger = logging.getLogger(__name__)

# The first class of a code is what the bare code becomes. A class that is not named here travels
# with the code of its nearest base; one that is named twice, with its first code.
ERRORS_OF_CODE: dict[StatusCode, tuple[type[CarlsError], ...]] = {
    StatusCode.INVALID_ARGUMENT: (errors.InvalidInputError,),
    StatusCode.NOT_FOUND: (errors.NotFoundError,),
    StatusCode.RESOURCE_EXHAUSTED: (errors.BankOverloadedError, errors.BankFullError),
    StatusCode.UNAVAILABLE: (errors.BankUnavailableError, errors.BankClosedError),
    StatusCode.DEADLINE_EXCEEDED: (errors.BankTimeoutError,),
    StatusCode.CANCELLED: (errors.BankUnavailableError,),  # a server that stops says so
    StatusCode.UNIMPLEMENTED: (errors.ProtocolMismatchError,),
    StatusCode.FAILED_PRECONDITION: (errors.BankError, errors.BankIdentityError),
    StatusCode.PERMISSION_DENIED: (errors.AccessDeniedError,),
    StatusCode.INTERNAL: (errors.BankInternalError,),
    StatusCode.DATA_LOSS: (errors.BankInternalError, errors.SnapshotCorruptError),
    StatusCode.UNKNOWN: (errors.BankInternalError, errors.CarlsError),
    # Codes that a bank never sends.
    StatusCode.UNAUTHENTICATED: (errors.AccessDeniedError,),
    StatusCode.OUT_OF_RANGE: (errors.InvalidInputError,),
    StatusCode.ALREADY_EXISTS: (errors.BankError,),
    StatusCode.ABORTED: (errors.BankError,),
}


def _with_subclasses(cls: type[CarlsError]) -> Iterator[type[CarlsError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _with_subclasses(child)


_CODE_OF_ERROR: dict[type[CarlsError], StatusCode] = {
    error: code for code, named in reversed(ERRORS_OF_CODE.items()) for error in named
}
_ERROR_OF_NAME = {
    cls.__name__: cls for cls in _with_subclasses(CarlsError) if cls.__module__ == errors.__name__
}


def as_sent(error: Exception) -> CarlsError:
    """Returns what tells a client of an error; one that is not ours is a defect, and logged."""
    if isinstance(error, CarlsError):
        return error
    _logger.error("a defect of the server ended a request", exc_info=error)
    return BankInternalError(f"the server failed: {type(error).__name__}: {error}")


def pack_error(error: Exception) -> bytes:
    """Turns an error into the bytes that carry it where gRPC does not."""
    sent = as_sent(error)
    text = f"{type(sent).__name__} {_retry_after(sent)}\n{message_of(sent)}"
    return text.encode(errors="backslashreplace")


def unpack_error(raw: bytes) -> CarlsError:
    """Undoes `pack_error`; a class that is not known here becomes BankInternalError."""
    head, _, message = raw.decode(errors="replace").partition("\n")
    name, _, retry_after = head.partition(" ")
    if name in _ERROR_OF_NAME:
        return _noted(_ERROR_OF_NAME[name](message), retry_after)
    return BankInternalError(f"the server failed: {head}: {message}")


def code_of(error: CarlsError) -> StatusCode:
    """Returns the status code that carries an error."""
    return next(_CODE_OF_ERROR[cls] for cls in type(error).__mro__ if cls in _CODE_OF_ERROR)


def message_of(error: CarlsError) -> str:
    """Returns an error's message, cut where it is too long to travel."""
    message = str(error)
    if len(message) <= MAX_MESSAGE_LETTERS:
        return message
    return f"{message[:MAX_MESSAGE_LETTERS]} … ({len(message)} letters)"


def trailers_of(error: CarlsError) -> tuple[tuple[str, str], ...]:
    """Returns the trailing metadata that carries what the code and the message do not say."""
    named = (CLASS_TRAILER, type(error).__name__)
    if retry_after := _retry_after(error):
        return (named, (RETRY_TRAILER, retry_after))
    return (named,)


def sent_class(error: grpc.RpcError) -> type[CarlsError] | None:
    """Returns the class that the server raised; None: gRPC itself failed."""
    for trailer in error.trailing_metadata() or ():
        if trailer.key == CLASS_TRAILER:
            return _ERROR_OF_NAME.get(str(trailer.value))
    return None


def sent_error(error: grpc.RpcError) -> CarlsError | None:
    """Returns the error that the server raised; None: gRPC itself failed."""
    cls = sent_class(error)
    if cls is None:
        return None
    trailers = {one.key: str(one.value) for one in error.trailing_metadata() or ()}
    return _noted(cls(error.details()), trailers.get(RETRY_TRAILER, ""))


def _retry_after(error: CarlsError) -> str:
    if isinstance(error, BankOverloadedError) and error.retry_after_s is not None:
        return f"{error.retry_after_s:.3f}"
    return ""


def _noted(error: CarlsError, retry_after: str) -> CarlsError:
    """Returns an error with what the server said of trying again, if that is a time."""
    with suppress(ValueError):
        if isinstance(error, BankOverloadedError) and math.isfinite(seconds := float(retry_after)):
            error.retry_after_s = max(seconds, 0.0)
    return error


def class_of(code: StatusCode) -> type[CarlsError]:
    """Returns the class that a bare status code becomes."""
    return ERRORS_OF_CODE[code][0]
