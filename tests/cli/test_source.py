"""What ``--model`` may name, and what is answered when it names nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from corevital.cli.errors import CommandError
from corevital.cli.source import Source, locate
from tests.cli.conftest import Command, finished, process

NOWHERE = "http://127.0.0.1:9"


def test_a_folder_with_a_configuration_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()

    source = locate(str(tmp_path))

    assert source == Source(str(tmp_path))
    assert source.name == tmp_path.name


def test_a_gguf_file_is_a_model_of_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "tiny.Q4_1.gguf"
    file.touch()

    source = locate(str(file))

    assert source == Source(str(tmp_path), "tiny.Q4_1.gguf")
    assert source.name == "tiny.Q4_1"


@pytest.mark.parametrize(
    ("missing", "said"),
    [(("gguf",), "need gguf,"), (("gguf", "accelerate"), "need gguf and accelerate,")],
)
def test_without_the_extra_a_gguf_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "tiny.gguf"
    file.touch()
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(CommandError, match=said) as refused:
        locate(str(file))

    assert 'pip install "corevital[gguf]"' in str(refused.value)


def test_a_gguf_file_that_does_not_exist_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="there is no file"):
        locate(str(tmp_path / "no.gguf"))


def test_a_folder_without_a_configuration_names_the_gguf_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()

    with pytest.raises(CommandError, match=r"no config.json; name one of .*: tiny\.gguf"):
        locate(str(tmp_path))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()

    with pytest.raises(CommandError, match="is no GGUF file"):
        locate(str(file))


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "no body/nothing"])
def test_what_cannot_be_the_name_of_a_hub_model_is_not_asked_for(name: str) -> None:
    with pytest.raises(CommandError, match="no file, no folder, and no name of a hub model"):
        locate(name)


def test_an_unknown_model_in_offline_mode_is_a_failure_in_one_line(corevital: Command) -> None:
    status, out, err = corevital("run", "--model", "nobody/nothing", "--prompt", "Hi")

    assert (status, out) == (1, "")
    assert err == (
        "corevital: error: nobody/nothing is no local folder and not in the hub's cache, "
        "and offline mode is on (HF_HUB_OFFLINE)\n"
    )


def test_without_a_network_the_failure_comes_at_once() -> None:
    started = time.monotonic()
    status, out, err = finished(
        process(
            *("run", "--model", "nobody/nothing", "--prompt", "Hi"),
            HF_HUB_OFFLINE="0",
            HF_ENDPOINT=NOWHERE,
        )
    )

    assert (status, out) == (1, "")
    assert "the Hugging Face Hub cannot be reached" in err
    assert err.count("\n") == 1
    # The hub's own client would try again for 24 seconds.
    assert time.monotonic() - started < 12


def test_a_cached_model_is_used_where_the_hub_cannot_be_reached(tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--something"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    status, _, err = finished(
        process(
            *("run", "--model", "somebody/something", "--prompt", "Hi"),
            HF_HUB_OFFLINE="0",
            HF_ENDPOINT=NOWHERE,
            HF_HUB_CACHE=str(tmp_path / "hub"),
        )
    )

    assert status == 1
    assert "cannot load somebody/something: Unrecognized model" in err


@pytest.mark.parametrize(
    ("code", "hub_code", "said"),
    [
        (404, "RepoNotFound", "the Hugging Face Hub has no model nobody/nothing"),
        (403, "GatedRepo", "access to nobody/nothing is restricted"),
    ],
)
def test_what_the_hub_refuses_is_a_failure_in_one_line(code: int, hub_code: str, said: str) -> None:
    with hub_that_answers(code, hub_code) as address:
        status, out, err = finished(
            process(
                *("run", "--model", "nobody/nothing", "--prompt", "Hi"),
                HF_HUB_OFFLINE="0",
                HF_ENDPOINT=address,
            )
        )

    assert (status, out) == (1, "")
    assert err.startswith(f"corevital: error: {said}")
    assert err.count("\n") == 1


@contextmanager
def hub_that_answers(code: int, hub_code: str) -> Iterator[str]:
    """A server that answers every question as the hub does for such a model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", hub_code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
