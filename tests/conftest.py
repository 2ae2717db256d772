"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

# All are read when torch and transformers are imported. No test may reach for the Hugging Face Hub.
# And torch's threads must sleep, not spin, between the many small operations of tiny models, or two
# processes on one machine slow each other down twentyfold; those of several share the cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_share, 1)))

import pytest

from tests.otlp_receiver import OtlpReceiver, grpc_receiver, http_receiver
from tests.providers import Telemetry, in_memory_telemetry
from tests.smollm2 import LoadedModel, load, with_eager_attention


def pytest_addoption(parser: pytest.Parser) -> None:
    """How thoroughly architectures and combinations are tried, and for how long threads."""
    parser.addoption(
        "--zoo",
        choices=("core", "full"),
        default="core",
        help="the decoding modes that every architecture is tried with (default: %(default)s)",
    )
    parser.addoption(
        "--combinations",
        type=int,
        default=10,
        metavar="COUNT",
        help="how many combinations each way of decoding is tried with (default: %(default)s)",
    )
    parser.addoption(
        "--soak",
        type=float,
        default=20,
        metavar="SECONDS",
        help="how long models generate in several threads at once (default: %(default)s)",
    )


def pytest_configure() -> None:
    """Forget the OpenTelemetry and CoreVital settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "COREVITAL_")) and not name.startswith(
            ("COREVITAL_CACHE", "COREVITAL_TEST_")
        ):
            del os.environ[name]


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """OpenTelemetry providers that keep everything in memory; the global ones stay untouched."""
    with in_memory_telemetry() as providers:
        yield providers


@pytest.fixture
def otlp_grpc() -> Iterator[OtlpReceiver]:
    """A real OTLP receiver over gRPC."""
    with grpc_receiver() as receiver:
        yield receiver


@pytest.fixture
def otlp_http() -> Iterator[OtlpReceiver]:
    """A real OTLP receiver over HTTP."""
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M-Instruct with its tokenizer, on sdpa attention."""
    return load()


@pytest.fixture(scope="session")
def smollm2_eager(smollm2: LoadedModel) -> LoadedModel:
    """The same weights, not copied, on eager attention."""
    return with_eager_attention(smollm2)
