"""Errors that a user can fix."""


class ServingError(ValueError):
    """An export, a request or a file of rows is wrong; the message is one line."""


class DamagedError(ServingError):
    """A file of an export differs from its checksum."""
