"""What is not installed is named with the command that installs it."""

from __future__ import annotations

import pytest

from corevital.cli.errors import CommandError
from corevital.cli.extra import require


def test_what_is_installed_is_no_error() -> None:
    require("calibrate", "sklearn", "matplotlib")


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(CommandError) as raised:
        require("calibrate", "sklearn", "no_such_module")

    assert str(raised.value) == (
        "this command needs more (No module named 'no_such_module'): "
        'pip install "corevital[calibrate]"'
    )
    assert raised.value.status == 1
