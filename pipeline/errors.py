"""Errors that users can fix. The command line prints their message as one line, without a traceback."""

import errno

from .redaction import redact_text

# Error numbers of a full disk, an exhausted quota and a file that is too large. These errors are passed on to the
# command line, which has its own message for them.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class EquiscreenError(Exception):
    """Base class of the errors that users can fix.

    Example:
        >>> from equiscreen.pipeline import EquiscreenError, GraphStore
        >>> try:
        ...     GraphStore("missing.zarr")
        ... except EquiscreenError as error:
        ...     print(error)
        missing.zarr: no such store

    Args:
        message: The message, on one line; secrets in its URLs are hidden.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redact_text(message))


def detail(error: BaseException, about: str = "") -> str:
    """Shorten the text of a library's error to one line of at most 200 characters, to be quoted in another message.

    Secrets in URLs are hidden. The path in an operating-system error is left out, because the message that quotes the
    error already names the file. If the error has no text, the name of its type is returned.

    Args:
        error: Error to quote.
        about: URL that was opened; its secrets are hidden wherever the text quotes them.
    """
    named = isinstance(error, OSError) and error.filename is not None
    text = error.strerror if named and isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(redact_text(text, about).split())[:200] or type(error).__name__


class SourceError(EquiscreenError):
    """A source of structures is missing, cannot be read or holds nothing usable, or a setting for it is invalid."""


class UnreachableError(SourceError):
    """A remote file could not be fetched, or a worker does not see a file; a later attempt may succeed."""


class LabelError(EquiscreenError):
    """A label mapping is invalid or does not fit the data."""


class InvalidStructureError(EquiscreenError):
    """A structure cannot be read or turned into a graph; `featurize` records it in the failures table."""


class OutputExistsError(EquiscreenError):
    """An output already exists, is in use by another run, or cannot be written."""


class StoreError(EquiscreenError):
    """A store is missing, unfinished, damaged, changed during a run, or unsuitable for the task."""


def input_changed(path: object) -> StoreError:
    """Return the error of an input that was changed, replaced or removed during a run.

    Args:
        path: Path or URL of the input.
    """
    return StoreError(
        f"{path} has changed during this run; run the command again, with --overwrite if it then reports an "
        "unfinished run"
    )


class ConfigError(EquiscreenError):
    """A configuration file or setting is invalid."""


class CheckpointError(EquiscreenError):
    """A checkpoint or file of published weights is missing, damaged, not supported, or unsuitable for the task."""


class ModelFileError(EquiscreenError):
    """A model is unknown, missing, damaged, not exported by equiscreen, or does not fit the store."""


class TableSizeError(EquiscreenError, MemoryError):
    """A neighbour table is too large for one evaluation; like a lack of memory, it can be cured by smaller batches."""


class DeviceError(EquiscreenError):
    """The requested compute device is not available on this machine."""


class UnknownElementError(EquiscreenError):
    """A structure contains an element that the model does not support."""


class ExportError(EquiscreenError):
    """A network cannot be translated to ONNX, or the result failed one of its checks."""
