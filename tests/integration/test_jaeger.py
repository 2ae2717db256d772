"""Real generations, sent through the Collector, come back from Jaeger whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from tests.instrumentation import attributes
from tests.integration import servers
from tests.integration.application import Application, application
from tests.integration.overlays import BASE, only
from tests.integration.queries import jaeger_traces
from tests.integration.servers import COLLECTOR_CONFIG, TraceStore
from tests.integration.waiting import eventually
from tests.smollm2 import LoadedModel

SERVICE = "jaeger-test"
TOKENS = 40


@pytest.fixture(scope="module")
def app(
    smollm2: LoadedModel, jaeger: TraceStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    """An application that answered one question, and then a batch of two."""
    folder = tmp_path_factory.mktemp("collector")
    files = [BASE, COLLECTOR_CONFIG / "backends" / "jaeger.yaml", only(folder)]
    environment = {"JAEGER_ENDPOINT": jaeger.grpc.removeprefix("http://")}
    with (
        servers.collector(files, folder, environment=environment) as collector,
        application(collector.grpc, SERVICE) as app,
    ):
        inputs = smollm2.chat("Why is the sky blue?")
        smollm2.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
        smollm2.model.generate(
            **inputs, do_sample=True, num_return_sequences=2, max_new_tokens=TOKENS
        )
        app.flush()
        yield app


@pytest.fixture(scope="module")
def returned(app: Application, jaeger: TraceStore) -> dict[str, dict[str, Any]]:
    """What Jaeger has, by the id of the span."""
    sent = len(app.spans())

    def found() -> dict[str, dict[str, Any]]:
        spans = {
            span["spanID"]: span
            for trace in jaeger_traces(jaeger.url, SERVICE)
            for span in trace["spans"]
        }
        return spans if len(spans) >= sent else {}

    return eventually(found)


def span_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def values(tags: list[dict[str, Any]]) -> dict[str, Any]:
    """Tags as a mapping; Jaeger has no lists, it writes them as JSON."""
    return {tag["key"]: tag["value"] for tag in tags}


def same(sent: Any, tag: Any) -> bool:
    if isinstance(sent, tuple):
        return list(sent) == json.loads(tag)
    return bool(sent == tag) and isinstance(sent, bool) == isinstance(tag, bool)


def test_every_span_is_there(app: Application, returned: dict[str, dict[str, Any]]) -> None:
    # The call, the call of the batch, and a child for each of its sequences.
    assert len(app.spans()) == 4
    assert {span_id(span) for span in app.spans()} == set(returned)


def test_every_attribute_is_whole(app: Application, returned: dict[str, dict[str, Any]]) -> None:
    longest = 0
    for span in app.spans():
        tags = values(returned[span_id(span)]["tags"])
        for name, sent in attributes(span).items():
            assert name in tags
            assert same(sent, tags[name]), (name, sent, tags[name])
            longest = max(longest, len(str(tags[name])))
    assert longest > 400


def test_every_event_is_there_with_all_its_attributes(
    app: Application, returned: dict[str, dict[str, Any]]
) -> None:
    assessed = [span for span in app.spans() if "corevital.risk.score" in attributes(span)]
    assert len(assessed) == 3
    for span in assessed:
        logs = returned[span_id(span)]["logs"]
        assert len(logs) == len(span.events) > TOKENS / 2
        received = {identity(fields): fields for fields in (values(log["fields"]) for log in logs)}
        for event in span.events:
            fields = received[identity(attributes(event) | {"event": event.name})]
            assert fields.keys() == attributes(event).keys() | {"event"}
            for name, sent in attributes(event).items():
                assert same(sent, fields[name]), (event.name, name)


def identity(fields: dict[str, Any]) -> tuple[str, int | None]:
    """The name of an event, and of which step it is."""
    return fields["event"], fields.get("corevital.step.index")
