"""How the decoder refuses: with the name of an error of the document's section "Errors"."""

from __future__ import annotations


class Refused(Exception):
    """These bytes are not what the document allows.

    Attributes:
        error: The name of the error.
    """

    def __init__(self, error: str, why: str) -> None:
        super().__init__(f"{error}: {why}")
        self.error = error


def demand(condition: bool, why: str, error: str = "FormatError") -> None:
    """Refuse unless `condition` holds."""
    if not condition:
        raise Refused(error, why)
