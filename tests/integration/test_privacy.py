"""With the privacy overlay, nothing that somebody wrote or a model answered leaves the Collector.

The application captures all content and sends it everywhere it can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from corevital import semconv
from tests.integration import servers
from tests.integration.application import Application, application
from tests.integration.overlays import BASE, SIGNALS, to_files
from tests.integration.servers import COLLECTOR_CONFIG
from tests.smollm2 import LoadedModel

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
PROMPT = "Please write a story about my cousin Bartholomew, who keeps zebras in Wolverhampton."
FAILS = "Zanzibar"
PERSON = "bartholomew@example.com"
RESOURCE = {
    "process.command_line": f"corevital run --prompt '{PROMPT}'",
    "host.name": "wolverhampton-1",
}


class Output(NamedTuple):
    """All that left a Collector, and what must not."""

    text: str
    content: set[str]
    app: Application

    @property
    def words(self) -> set[str]:
        """Every word in it, in names and in values."""
        return words(self.text)

    def exports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


def words(text: str) -> set[str]:
    """Words of four letters or more, in lower case; an escape of JSON is no letter."""
    return set(re.findall(r"[^\W\d_]{4,}", re.sub(r"\\[nrt\"\\]", " ", text).lower()))


@contextmanager
def exported(folder: Path, *overlays: Path, environment: dict[str, str]) -> Iterator[Any]:
    """Run an application against a Collector; what it wrote is in the list at the end."""
    text: list[str] = []
    files = [BASE, *overlays, to_files(folder)]
    with servers.collector(files, folder, environment=environment) as collector:
        with application(collector.grpc, "privacy", resource=RESOURCE, step_events="both") as app:
            yield app, text
            app.flush()
        # Stopping, it writes what it still has.
        collector.server.stop()
        text.extend((folder / f"{signal}.jsonl").read_text() for signal in SIGNALS)


def run(smollm2: LoadedModel, folder: Path, *overlays: Path) -> Output:
    """Chat, and fail, with an application's own span and log around it."""
    with exported(folder, *overlays, environment={"PRIVACY_SALT": "pepper"}) as (app, text):
        inputs = smollm2.chat(PROMPT)
        tracer = app.tracer_provider.get_tracer("application")
        of_person = {"user.id": PERSON, "url.query": f"q={PROMPT}", "input.value": PROMPT}
        with tracer.start_as_current_span("GET /ask", attributes=of_person):
            result = smollm2.model.generate(
                **inputs, do_sample=False, max_new_tokens=40, tokenizer=smollm2.tokenizer
            )
            with pytest.raises(RuntimeError, match=FAILS):
                smollm2.model.generate(**inputs, max_new_tokens=5, streamer=Refuses())
        app.logger_provider.get_logger("application").emit(body=f"asked: {PROMPT}")
    answer = smollm2.tokenizer.decode(result[0, inputs["input_ids"].shape[1] :])
    return Output("".join(text), words(f"{PROMPT} {answer} {FAILS} {PERSON}"), app)


class Refuses:
    """A streamer that fails with what it was given."""

    def put(self, value: object) -> None:
        raise RuntimeError(f"{FAILS}: {PROMPT}")

    def end(self) -> None:
        """Nothing to do."""


@pytest.fixture(scope="module")
def outputs(
    smollm2: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Output]]:
    """What leaves a Collector with the overlay, and without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CAPTURE, "SPAN_AND_EVENT")
        patch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental")
        yield {
            "open": run(smollm2, tmp_path_factory.mktemp("open")),
            "private": run(
                smollm2,
                tmp_path_factory.mktemp("private"),
                COLLECTOR_CONFIG / "privacy.yaml",
            ),
        }


def test_without_the_overlay_all_content_is_there(outputs: dict[str, Output]) -> None:
    opened = outputs["open"]

    assert len(opened.content) > 15
    assert opened.content <= opened.words


def test_with_it_none_is(outputs: dict[str, Output]) -> None:
    private = outputs["private"]
    # Words of names and of the descriptions of metrics are no content.
    names = [each.name for each in semconv.ATTRIBUTES]
    descriptions = re.findall(r'"description":"(.*?)"', private.text)
    own = words(" ".join([*names, *descriptions]))

    assert private.content & private.words - own == set()
    assert len(private.content - own) > 15


def test_no_token_can_be_read_back(outputs: dict[str, Output]) -> None:
    for name in (semconv.STEP_TOKEN_ID, semconv.STEP_TOKEN_TEXT, semconv.NARRATIVE):
        assert f'"{name}"' in outputs["open"].text
        assert f'"{name}"' not in outputs["private"].text


def test_every_span_event_and_log_is_still_there(outputs: dict[str, Output]) -> None:
    opened, private = (count(output.exports()) for output in outputs.values())

    assert private == opened
    assert opened["spans"] == 3
    assert opened["events"] > 40
    assert opened["logs"] > 40


def count(exports: list[dict[str, Any]]) -> dict[str, int]:
    spans = [
        span
        for export in exports
        for resource in export.get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    logs = [
        log
        for export in exports
        for resource in export.get("resourceLogs", ())
        for scope in resource["scopeLogs"]
        for log in scope["logRecords"]
    ]
    return {
        "spans": len(spans),
        "events": sum(len(span.get("events", ())) for span in spans),
        "logs": len(logs),
    }


def test_numbers_stay(outputs: dict[str, Output]) -> None:
    names = {
        each.name
        for each in semconv.ATTRIBUTES
        if each.type in (semconv.Type.DOUBLE, semconv.Type.DOUBLES)
    }
    there, still = ({n for n in names if f'"{n}"' in each.text} for each in outputs.values())

    assert still == there
    assert len(there) > 40


def test_equal_prompts_stay_equal_without_being_known(outputs: dict[str, Output]) -> None:
    opened, private = (hashes(output.text) for output in outputs.values())

    # Both calls had the same prompt.
    assert len(opened) == len(private) == 1
    assert opened != private
    assert len(private.pop()) == 64


def hashes(text: str) -> set[str]:
    found = re.findall(
        rf'"key":"{re.escape(semconv.PROMPT_HASH)}","value":\{{"stringValue":"(\w+)"', text
    )
    return set(found)
