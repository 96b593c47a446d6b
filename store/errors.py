"""The exception tree of the whole project.

Every exception that bad input can raise names the thing, its value and the remedy, in one line.
A programmer's error is an assertion instead, and expected trouble is a value that the caller must handle.
"""


class SageError(Exception):
    """Root of everything this project raises on purpose; the command line prints it as one line."""


class BadInputError(SageError):
    """Something that came from outside cannot be used as it is; exit code 2."""


class ConfigError(BadInputError):
    """A setting is unknown, has the wrong type or is out of range."""


class WorkloadError(BadInputError):
    """A workload file is missing, unreadable or has rows that make no sense."""


class ProtocolError(BadInputError):
    """A frame from the other side of the engine border cannot be decoded or speaks another version."""


class StoreError(SageError):
    """The history on disk cannot be read or written."""


class StoreLockedError(StoreError):
    """Another writer holds this history."""


class StoreSchemaError(StoreError):
    """The history was written by another, incompatible version; it is left untouched."""


class EngineError(SageError):
    """An engine that a command started itself did not come up or went away."""
