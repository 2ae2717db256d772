"""What a model does in a way that a signal cannot be taken from."""

from __future__ import annotations


class Unobservable(Exception):
    """Why a signal ends here; not a failure, the reason is reported."""
