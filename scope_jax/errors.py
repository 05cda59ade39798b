"""Errors that say nothing about what a run was given: the same command may go well another time."""

import os


class NoRoom(OSError):
    """The disk is full where something was to be written."""

    def __init__(self, place: str | os.PathLike):
        super().__init__(
            f"{os.fspath(place)}: no room to write (disk or quota is full); earlier checkpoints are"
            " intact: make room and start the same command again"
        )


class StorageError(OSError):
    """A storage that cannot be read or written at the moment. It says nothing about the run:
    another try may succeed."""


class MachineError(RuntimeError):
    """The machine has no memory or no processes to spare at the moment. It says nothing about the
    run: another try may succeed."""
