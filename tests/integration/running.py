"""Runs programs: a server for a while, a tool to its end. Each is stopped, whatever happens."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from tests.integration.programs import Program

LOOPBACK: Final = "127.0.0.1"
REPOSITORY: Final = Path(__file__).parents[2]

RUNNING: Final[list[Server]] = []


class _Process(Protocol):
    def alive(self) -> bool: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def output(self) -> str: ...


class Server:
    """A program that runs; ``name`` is that of its kind."""

    def __init__(self, name: str, process: _Process) -> None:
        self.name = name
        self._process = process

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.alive()

    def kill(self) -> None:
        """End it without a warning, as a crash would."""
        self._process.kill()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._process.stop()

    def output(self) -> str:
        """Everything that it has written to standard output and standard error."""
        return self._process.output()


@contextmanager
def running(
    program: Program,
    arguments: Sequence[str],
    folder: Path,
    is_ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    patience_s: float = 30,
) -> Iterator[Server]:
    """Run a server in ``folder``, the only one it may write to.

    ``arguments`` may name files in ``folder`` and in this repository. Raises RuntimeError, with
    what the server wrote, where it ends or is not ready after ``patience_s`` seconds.
    """
    server = Server(program.kind.name, _start(program, arguments, folder, environment or {}))
    RUNNING.append(server)
    try:
        deadline = time.monotonic() + patience_s
        while not is_ready():
            if not server.alive() or time.monotonic() > deadline:
                state = "is not ready" if server.alive() else "has ended"
                raise RuntimeError(f"{server.name} {state}:\n{server.output()[-4000:]}")
            time.sleep(0.05)
        yield server
    finally:
        server.stop()
        RUNNING.remove(server)


def run(
    program: Program,
    *arguments: str | Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end in ``folder``; the result has its two outputs in ``stdout``."""
    texts = [str(argument) for argument in arguments]
    if program.binary is None:
        return _run_container(program, texts, folder, environment or {})
    return subprocess.run(
        [str(program.binary), *texts],
        cwd=folder,
        env=_environment(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.create_server((LOOPBACK, 0)) as free:
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a loopback port."""
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def answers(url: str) -> bool:
    """Whether a page is there."""
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    # Not the proxies of this machine: all servers are on loopback.
    inherited = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return inherited | dict(more)


def _start(
    program: Program, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> _Process:
    if program.binary is None:
        return _Container(program, arguments, folder, environment)
    return _Binary(program, arguments, folder, environment)


class _Binary:
    def __init__(
        self,
        program: Program,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._log = folder / f"{program.kind.name}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(program.binary), *arguments],
                cwd=folder,
                env=_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)

    def output(self) -> str:
        return self._log.read_text(errors="replace")


class _Container:
    """On the host's network, so that ports and addresses are those of a binary."""

    def __init__(
        self,
        program: Program,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._container = _container(program, arguments, folder, environment)
        self._container.start()
        self._last_words: str | None = None

    def _status(self) -> str:
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        return str(wrapped.status)

    def alive(self) -> bool:
        return self._last_words is None and self._status() == "running"

    def stop(self) -> None:
        if self._last_words is not None:
            return
        if self.alive():
            self._container.get_wrapped_container().stop(timeout=20)
        self._last_words = self.output()
        self._container.stop()

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def output(self) -> str:
        if self._last_words is not None:
            return self._last_words
        return _logs(self._container)


def _run_container(
    program: Program, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    with _container(program, arguments, folder, environment) as container:
        status = container.get_wrapped_container().wait(timeout=120)["StatusCode"]
        output = _logs(container)
    return subprocess.CompletedProcess(list(arguments), status, output)


def _container(
    program: Program, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Any:
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(program.kind.image).with_command(list(arguments))
    container.with_kwargs(
        network_mode="host",
        entrypoint=program.kind.entrypoint,
        user=f"{os.getuid()}:{os.getgid()}",
        working_dir=str(folder),
    )
    # At the same paths as here, so that a configuration means the same.
    container.with_volume_mapping(str(REPOSITORY), str(REPOSITORY), "ro")
    container.with_volume_mapping(str(folder), str(folder), "rw")
    for key, value in environment.items():
        container.with_env(key, value)
    return container


def _logs(container: Any) -> str:
    return "".join(part.decode(errors="replace") for part in container.get_logs())
