"""Fixtures of the tests that run the examples and the README's programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.smollm2 import safetensors_folder


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """SmolLM2-135M-Instruct as a local folder; its name is the model's name in telemetry."""
    return safetensors_folder()
