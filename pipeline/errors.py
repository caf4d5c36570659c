"""Errors that a user can mend. The command line prints their message as one line, without a traceback."""


class EquiscreenError(Exception):
    """Base of all errors that name what is wrong and what to do about it."""


def detail(error: BaseException) -> str:
    """What a library's error says, on one line and not too long, for the brackets of a message of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class SourceError(EquiscreenError):
    """A structure file is missing, empty or of no known format."""


class UnreachableError(SourceError):
    """A file elsewhere could not be fetched; it may be another time."""


class LabelError(EquiscreenError):
    """A label mapping does not fit the data."""


class InvalidStructureError(EquiscreenError):
    """One structure cannot become a graph; it becomes a row of the failures table."""


class OutputExistsError(EquiscreenError):
    """The output path is taken."""


class StoreError(EquiscreenError):
    """A store is missing, unfinished, damaged or of another schema."""


class ConfigError(EquiscreenError):
    """A configuration file or setting is wrong."""


class CheckpointError(EquiscreenError):
    """A file is no checkpoint of ours."""


class ModelFileError(EquiscreenError):
    """A file is no ONNX model of ours, or does not fit the store."""


class DeviceError(EquiscreenError):
    """A device to compute with does not exist here."""


class UnknownElementError(EquiscreenError):
    """A model is asked about an element that it has never seen."""


class ExportError(EquiscreenError):
    """The lowered network failed one of its checks."""
