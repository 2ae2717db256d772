"""Bytes of attributes, spans and log records as OTLP sends them, without encoding them.

Rules: https://protobuf.dev/programming-guides/encoding. Messages and field numbers:
https://github.com/open-telemetry/opentelemetry-proto, ``common.proto``, ``trace.proto`` and
``logs.proto``, as the SDK's exporters fill them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry._logs import LogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AnyValue

_FIXED64: Final = 1 + 8
_TRACE_ID: Final = 1 + 1 + 16
_SPAN_ID: Final = 1 + 1 + 8
_ENUM: Final = 1 + 1
# Field 16 has a key of two bytes.
_SPAN_FLAGS: Final = 2 + 4
_RECORD_FLAGS: Final = 1 + 4


def attributes_size(attributes: Mapping[str, AnyValue]) -> int:
    """Bytes of all of ``attributes`` as fields of a span or a log record."""
    return sum(attribute_size(name, value) for name, value in attributes.items())


def attribute_size(name: str, value: AnyValue) -> int:
    """Bytes of one attribute as a field of a span or a log record."""
    return _field(_field(_text(name)) + _field(_value(value)))


def span_size(span: ReadableSpan) -> int:
    """Bytes of ``span`` when it will have ended, without its attributes, events and links."""
    context = span.get_span_context()
    state = context.trace_state if context is not None else {}
    parent = _SPAN_ID if span.parent is not None else 0
    status = _text_field(span.status.description) + (0 if span.status.is_unset else _ENUM)
    fixed = _TRACE_ID + _SPAN_ID + parent + _ENUM + 2 * _FIXED64 + _SPAN_FLAGS + _field(status)
    sent_state = ",".join(f"{key}={value}" for key, value in state.items())
    return fixed + _text_field(span.name) + _text_field(sent_state)


def record_size(record: LogRecord) -> int:
    """Bytes of a log record that belongs to a sampled span."""
    fixed = 2 * _FIXED64 + _ENUM + _RECORD_FLAGS + _TRACE_ID + _SPAN_ID
    named = _text_field(record.event_name) + _field(_value(record.body))
    return fixed + named + attributes_size(record.attributes or {})


def _value(value: AnyValue) -> int:
    if isinstance(value, bool):
        return 2
    if isinstance(value, float):
        return _FIXED64
    if isinstance(value, int):
        return 1 + (_varint(value) if value >= 0 else 10)
    if isinstance(value, str):
        return _field(_text(value))
    if isinstance(value, bytes):
        return _field(len(value))
    if isinstance(value, Mapping):
        return _field(attributes_size(value))
    if isinstance(value, Sequence):
        return _field(sum(_field(_value(each)) for each in value))
    return 0


def _field(length: int) -> int:
    """Bytes of a field below number 16 whose content has ``length`` bytes."""
    return 1 + _varint(length) + length


def _text_field(text: str | None) -> int:
    """Bytes of a text outside of attributes: an empty one is not sent."""
    return _field(_text(text)) if text else 0


def _varint(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def _text(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
