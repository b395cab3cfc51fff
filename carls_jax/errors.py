"""The exceptions of carls_jax, one tree.

CarlsError
├── InvalidInputError (ValueError)     the caller's argument cannot work; nothing was changed
│   ├── ShapeError                     an array has the wrong shape or width
│   ├── DtypeError                     an array has the wrong dtype
│   ├── KeyKindError                   integer keys for a string table, or the reverse
│   ├── NonFiniteError                 NaN or infinity where a number is needed
│   ├── SpecMismatchError              a TableSpec disagrees with the table that exists
│   ├── OptimizerNotAllowedError       an optimizer that mixes rows, or is unknown
│   └── ConfigError                    a config has an unknown or impossible value
├── NotFoundError (LookupError)        the thing that was named does not exist
│   ├── TableNotFoundError
│   ├── FieldNotFoundError
│   ├── KeyNotFoundError
│   ├── SnapshotNotFoundError
│   └── CheckpointNotFoundError
├── BankError                          the bank could not do it
│   ├── BankUnavailableError           no server answers at the address
│   ├── BankTimeoutError               no answer within the deadline
│   ├── BankOverloadedError            a bound on rows, bytes or memory was reached
│   ├── BankFullError                  a table has no room for another row
│   ├── BankClosedError                the bank object was closed
│   ├── ProtocolMismatchError          client and server speak different versions
│   ├── BankIdentityError              another bank answers than the one that was expected
│   ├── AccessDeniedError              the server refuses this client
│   ├── BankInternalError              a defect in the server; the message names the cause
│   └── BankStorageError               the disk is full or fails; the change was refused
├── JournalCorruptError                a journal is damaged elsewhere than at its end
├── SnapshotCorruptError               a snapshot is half-written or damaged
├── AddressInUseError                  a port or socket path is taken
└── LaunchError                        a role of a program failed too often
"""

from __future__ import annotations


class CarlsError(Exception):
    """Is the root of all errors that carls_jax raises."""


class InvalidInputError(CarlsError, ValueError):
    """Says that an argument cannot work; nothing was changed."""


class ShapeError(InvalidInputError):
    """Says that an array has the wrong shape or width."""


class DtypeError(InvalidInputError):
    """Says that an array has the wrong dtype."""


class KeyKindError(InvalidInputError):
    """Says that keys are of another kind (int or str) than their table's."""


class NonFiniteError(InvalidInputError):
    """Says that a value is NaN or infinite."""


class SpecMismatchError(InvalidInputError):
    """Says that a spec disagrees with the table that already exists."""


class OptimizerNotAllowedError(InvalidInputError):
    """Says that an optimizer is unknown or would mix rows."""


class ConfigError(InvalidInputError):
    """Says that a config has an unknown name or an impossible value."""


class NotFoundError(CarlsError, LookupError):
    """Says that something that was named does not exist."""


class TableNotFoundError(NotFoundError):
    """Says that no table has this name."""


class FieldNotFoundError(NotFoundError):
    """Says that the table has no field of this name."""


class KeyNotFoundError(NotFoundError):
    """Says that rows were required of keys that have none."""


class SnapshotNotFoundError(NotFoundError):
    """Says that no complete snapshot has this label or UUID."""


class CheckpointNotFoundError(NotFoundError):
    """Says that no finished checkpoint is there."""


class BankError(CarlsError):
    """Says that the bank could not do what was asked."""


class BankUnavailableError(BankError):
    """Says that no server answers at the address."""


class BankTimeoutError(BankError, TimeoutError):
    """Says that no answer came within the deadline."""


class BankOverloadedError(BankError):
    """Says that a request exceeds a bound of the server; it was refused, and nothing was changed.

    Attributes:
      retry_after_s: Seconds after which the same request may be tried again, since others hold what
        it needs, or it came too soon. None: it will be refused again.
    """

    def __init__(self, *args: object, retry_after_s: float | None = None) -> None:
        super().__init__(*args)
        self.retry_after_s = retry_after_s


class BankFullError(BankError):
    """Says that a table has no room for another row."""


class BankClosedError(BankError):
    """Says that this bank object was closed."""


class ProtocolMismatchError(BankError):
    """Says that client and server speak different protocol versions."""


class BankIdentityError(BankError):
    """Says that another bank answers than the one that was expected."""


class AccessDeniedError(BankError):
    """Says that the server refuses this client."""


class BankInternalError(BankError):
    """Says that the server failed in a way that is its own defect."""


class BankStorageError(BankError):
    """Says that a change was refused, since the disk that must keep it is full or fails."""


class JournalCorruptError(CarlsError):
    """Says that a journal is damaged elsewhere than at its end: what it held cannot be known."""


class SnapshotCorruptError(CarlsError):
    """Says that a snapshot is half-written or damaged."""


class AddressInUseError(CarlsError):
    """Says that a port or a socket path is already taken."""


class LaunchError(CarlsError):
    """Says that a role of a program could not be kept running."""
