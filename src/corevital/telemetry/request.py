"""What a span says of a request before it is answered, and how much of it is to be observed."""

from __future__ import annotations

import hashlib
from typing import Final

from opentelemetry.trace import Span
from opentelemetry.util.genai.invocation import InferenceInvocation
from opentelemetry.util.genai.types import Error

from corevital.capture.decoding import GenerateCall
from corevital.capture.failure import is_own_failure
from corevital.record import CaptureMode
from corevital.settings import Settings
from corevital.telemetry.content import Content

MOST_MESSAGE_BYTES: Final = 300
_ELLIPSIS: Final = "..."


def capture_mode(settings: Settings, span: Span) -> CaptureMode:
    """The mode of the settings, or ``off`` for a span that is not sampled or not chosen."""
    if not span.is_recording() or not _is_chosen(span, settings.capture_ratio):
        return CaptureMode.OFF
    return settings.capture


def _is_chosen(span: Span, ratio: float) -> bool:
    """Choose a share of the traces, the same in every process, whatever the sampler chose."""
    trace_id = span.get_span_context().trace_id.to_bytes(16, "big")
    digest = hashlib.blake2b(trace_id, digest_size=8, person=b"corevital").digest()
    return int.from_bytes(digest, "big") < ratio * 2**64


def describe_request(invocation: InferenceInvocation, call: GenerateCall, content: Content) -> None:
    """Tell the invocation the call's settings, and its messages where they may be sent."""
    setting = call.setting
    invocation.max_tokens = setting("max_new_tokens")
    invocation.output_type = "text" if call.codebooks is None else None
    if setting("do_sample"):
        invocation.temperature = setting("temperature")
        invocation.top_k = setting("top_k")
        invocation.top_p = setting("top_p")
    choices = setting("num_return_sequences") or 1
    invocation.request_choice_count = choices if choices > 1 else None
    stop = setting("stop_strings")
    invocation.stop_sequences = [stop] if isinstance(stop, str) else stop
    if call.arguments.get("streamer") is not None:
        invocation.request_stream = True
    if invocation.should_capture_content:
        invocation.input_messages = content.input_messages()


def failure_of(error: BaseException) -> Error:
    """What a span tells of an exception: its type, and its message in `MOST_MESSAGE_BYTES`.

    Raises:
        Exception: what strikes here and is the application's own, such as a time limit.
    """
    try:
        failure = Error.from_exception(error)
    except Exception as unreadable:
        if not is_own_failure(unreadable):
            raise
        # The application's exception cannot say what it is; the span must end all the same.
        failure = Error(None, type(error).__qualname__, error)
    message = (failure.message or "").encode(errors="replace")
    if len(message) > MOST_MESSAGE_BYTES:
        beginning = message[: MOST_MESSAGE_BYTES - len(_ELLIPSIS)].decode(errors="ignore")
        failure.message = beginning + _ELLIPSIS
    return failure
