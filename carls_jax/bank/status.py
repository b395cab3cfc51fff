"""Errors across gRPC: which status code carries each exception class, and back.

The class name travels beside the code, so a client raises the class that the server raised, with
the same message. Codes without a name come from gRPC itself, or from a stranger at the address.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from grpc import StatusCode

from carls_jax import errors
from carls_jax.errors import CarlsError

CLASS_TRAILER = "carls-error"
# gRPC sends a message as a trailer, where a letter takes up to twelve bytes.
MAX_MESSAGE_LETTERS = 2000
MAX_TRAILERS_BYTES = 1 << 16

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
    """Returns the trailing metadata that carries an error's class."""
    return ((CLASS_TRAILER, type(error).__name__),)


def sent_class(error: grpc.RpcError) -> type[CarlsError] | None:
    """Returns the class that the server raised; None: gRPC itself failed."""
    for trailer in error.trailing_metadata() or ():
        if trailer.key == CLASS_TRAILER:
            return _ERROR_OF_NAME.get(str(trailer.value))
    return None


def class_of(code: StatusCode) -> type[CarlsError]:
    """Returns the class that a bare status code becomes."""
    return ERRORS_OF_CODE[code][0]
