"""Chats are recognised by their token ids; texts are sent only where content capture is on."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TextStreamer

from corevital.assess.wording import printable, shortened
from tests.instrumentation import attributes, events
from tests.models import GenerativeModel, tiny_model
from tests.providers import Telemetry
from tests.smollm2 import LoadedModel
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import STEPS

MODE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
DETAILS = "gen_ai.client.inference.operation.details"
CHAT = [
    {"role": "system", "content": "You answer in verses."},
    {"role": "user", "content": "Why are zebras striped?"},
]
WORDS = ("verses", "zebras")


@pytest.fixture
def tokenizer(smollm2: LoadedModel) -> PreTrainedTokenizerBase:
    return smollm2.tokenizer


@pytest.fixture(scope="module")
def speaker(smollm2: LoadedModel) -> GenerativeModel:
    """A tiny model for the tokens of a real tokenizer."""
    return tiny_model("llama", vocab_size=len(smollm2.tokenizer))


def generate(model: GenerativeModel, inputs: Any, **options: Any) -> torch.Tensor:
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False} | options
    given = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    return model.generate(**given, **settings)


def operations(telemetry: Telemetry) -> list[str]:
    return [
        attributes(span)[gen_ai.GEN_AI_OPERATION_NAME]
        for span in telemetry.spans()
        if gen_ai.GEN_AI_OPERATION_NAME in attributes(span)
    ]


# Chats


@pytest.mark.parametrize(
    "result",
    [
        {"return_tensors": "pt", "return_dict": True},
        {"return_tensors": "pt", "return_dict": False},
        {"return_dict": True},
        {"return_dict": False},
        {"tokenize": False},
    ],
    ids=str,
)
def test_a_prompt_from_a_chat_template_is_a_chat(
    result: dict[str, Any],
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
) -> None:
    before = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, **result)
    instrument()
    found: Any = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, **result)

    assert type(found) is type(before)
    if isinstance(found, str):
        found = tokenizer(found, return_tensors="pt", add_special_tokens=False)
    elif isinstance(found, Mapping) and not isinstance(found["input_ids"], torch.Tensor):
        found = torch.tensor([found["input_ids"]])
    elif isinstance(found, list):
        found = torch.tensor([found])
    generate(speaker, found)
    assert operations(telemetry) == ["chat"]
    assert telemetry.spans()[0].name == "chat LlamaForCausalLM"


def test_a_batch_of_padded_chats_is_a_chat(
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
) -> None:
    instrument()
    chats = [CHAT, CHAT[1:]]
    generate(
        speaker,
        tokenizer.apply_chat_template(
            chats, padding=True, return_tensors="pt", return_dict=True, add_generation_prompt=True
        ),
    )

    assert operations(telemetry) == ["chat"]


@pytest.mark.parametrize("change", ["other words", "one token more", "one of a batch"])
def test_any_other_prompt_is_a_text_completion(
    change: str,
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
) -> None:
    instrument()
    inputs: Any = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    ids = inputs["input_ids"]
    if change == "other words":
        ids = tokenizer("Zebras are striped because", return_tensors="pt")["input_ids"]
    elif change == "one token more":
        ids = torch.cat((ids, ids[:, -1:]), dim=1)
    else:
        ids = torch.cat((ids, ids.flip(1)))
    generate(speaker, ids)

    assert operations(telemetry) == ["text_completion"]


def test_a_chat_is_recognised_in_another_thread(
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
) -> None:
    instrument()
    inputs = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    thread = threading.Thread(target=generate, args=(speaker, inputs))
    thread.start()
    thread.join()

    assert operations(telemetry) == ["chat"]


def test_a_template_that_cannot_be_filled_raises_as_before(
    tokenizer: PreTrainedTokenizerBase, instrument: Instrument
) -> None:
    template = "{{ raise_exception('no such role') }}"
    with pytest.raises(Exception, match="no such role") as before:
        tokenizer.apply_chat_template(CHAT, chat_template=template)
    instrument()
    with pytest.raises(Exception, match="no such role") as raised:
        tokenizer.apply_chat_template(CHAT, chat_template=template)

    assert type(raised.value) is type(before.value)


class OddMessage(dict[str, Any]):
    """A message that the template can read, and CoreVital cannot."""

    def get(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("read me by key")


def test_a_chat_that_cannot_be_read_is_templated_all_the_same(
    tokenizer: PreTrainedTokenizerBase, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE, "span_only")
    odd: Any = [OddMessage(message) for message in CHAT]
    before = tokenizer.apply_chat_template(odd, tokenize=False)
    instrument()

    assert tokenizer.apply_chat_template(odd, tokenize=False) == before


# Content


def texts_of(telemetry: Telemetry) -> dict[str, str]:
    """Everything that is sent, by where it is found."""
    spans = telemetry.spans()
    return {
        "span": json.dumps([attributes(span) for span in spans]),
        "span events": json.dumps([attributes(event) for span in spans for event in span.events]),
        "log events": json.dumps(
            [
                json.loads(log.to_json())
                for log in telemetry.logs()
                if log.log_record.event_name != DETAILS
            ]
        ),
        "details event": json.dumps(
            [
                json.loads(log.to_json())
                for log in telemetry.logs()
                if log.log_record.event_name == DETAILS
            ]
        ),
    }


def answer(model: GenerativeModel, tokenizer: Any, inputs: Any, **options: Any) -> list[str]:
    """Generate, and give back the text of every new token that is more than a sign."""
    tokens = generate(model, inputs, **options)[0, -STEPS:].tolist()
    words = [tokenizer.decode([token]) for token in tokens]
    return [word for word in words if len(word.strip()) > 2 and word.strip().isalpha()]


MODES: list[tuple[str | None, set[str]]] = [
    (None, set()),
    ("no_content", set()),
    ("span_only", {"span", "span events"}),
    ("event_only", {"details event", "log events"}),
    ("span_and_event", {"span", "span events", "details event", "log events"}),
]


@pytest.mark.parametrize(("mode", "places"), MODES)
def test_texts_are_sent_only_where_content_capture_allows_it(
    mode: str | None,
    places: set[str],
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode is not None:
        monkeypatch.setenv(MODE, mode)
    instrument(step_events="both")
    inputs = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    answered = answer(speaker, tokenizer, inputs)
    assert answered != []

    found = texts_of(telemetry)
    with_prompt = {place for place, text in found.items() if any(word in text for word in WORDS)}
    with_answer = {place for place, text in found.items() if any(w in text for w in answered)}
    assert with_prompt == places & {"span", "details event"}
    assert with_answer == places


@pytest.mark.parametrize(("mode", "places"), MODES)
def test_step_events_have_texts_only_where_content_capture_allows_it(
    mode: str | None,
    places: set[str],
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode is not None:
        monkeypatch.setenv(MODE, mode)
    instrument(step_events="both")
    inputs = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    tokens = generate(speaker, inputs)[0, -STEPS:].tolist()

    expected = [tokenizer.decode([token]) for token in tokens]
    (span,) = telemetry.spans()
    on_span = [
        attributes(event).get("corevital.step.token.text")
        for event in events(span, "corevital.step")
    ]
    in_log = [
        (log.log_record.attributes or {}).get("corevital.step.token.text")
        for log in telemetry.logs()
        if log.log_record.event_name == "corevital.step"
    ]
    assert on_span == (expected if "span events" in places else [None] * STEPS)
    assert in_log == (expected if "log events" in places else [None] * STEPS)


@pytest.mark.parametrize(("mode", "places"), MODES)
def test_the_narrative_has_the_text_of_a_token_only_where_spans_may_have_it(
    mode: str | None,
    places: set[str],
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode is not None:
        monkeypatch.setenv(MODE, mode)
    instrument(step_events="both")
    inputs = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    tokens = generate(speaker, inputs)[0, -STEPS:].tolist()

    (span,) = telemetry.spans()
    entropies = [
        attributes(event)["corevital.step.entropy"] for event in events(span, "corevital.step")
    ]
    peak = entropies.index(max(entropies))
    told = str(attributes(span)["corevital.narrative"])
    token = shortened(printable(str(tokenizer.decode([tokens[peak]]))), 24)
    assert f"(step {peak}" in told
    assert (f'(step {peak}, token "{token}")' in told) == ("span" in places)
    assert ('token "' in told) == ("span" in places)


def test_the_messages_of_a_chat_keep_their_roles(
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MODE, "span_only")
    instrument()
    inputs = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    tokens = generate(speaker, inputs)

    written = attributes(telemetry.spans()[0])
    asked = json.loads(written[gen_ai.GEN_AI_INPUT_MESSAGES])
    (answered,) = json.loads(written[gen_ai.GEN_AI_OUTPUT_MESSAGES])
    assert [message["role"] for message in asked] == ["system", "user"]
    assert [message["parts"][0]["content"] for message in asked] == [
        message["content"] for message in CHAT
    ]
    assert answered["role"] == "assistant"
    assert answered["finish_reason"] == "length"
    text = tokenizer.decode(tokens[0, -STEPS:], skip_special_tokens=True)
    assert answered["parts"] == [{"type": "text", "content": text}]


def test_of_content_in_parts_the_texts_are_sent(
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MODE, "span_only")
    instrument()
    parts = [{"type": "image", "url": "zebra.png"}, {"type": "text", "text": "What is this?"}]
    chat: Any = [{"role": "user", "content": parts}]
    template = "{% for m in messages %}{{ m['content'][1]['text'] }}{% endfor %}"
    inputs = tokenizer.apply_chat_template(
        chat,
        chat_template=template,
        return_tensors="pt",
        return_dict=True,
    )
    generate(speaker, inputs)

    (asked,) = json.loads(attributes(telemetry.spans()[0])[gen_ai.GEN_AI_INPUT_MESSAGES])
    assert [part["content"] for part in asked["parts"]] == ["What is this?"]


@pytest.fixture
def folder(speaker: GenerativeModel, tokenizer: Any, tmp_path: Path) -> Iterator[Path]:
    """A folder with a tokenizer, from which the tiny model says it was loaded."""
    tokenizer.save_pretrained(tmp_path)
    before = speaker.name_or_path
    speaker.name_or_path = str(tmp_path)
    yield tmp_path
    speaker.name_or_path = before


@pytest.mark.parametrize("source", ["argument", "streamer", "folder"])
def test_the_tokenizer_of_a_plain_prompt_is_found(
    source: str,
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MODE, "span_only")
    if source != "folder":
        for file in folder.iterdir():
            file.unlink()
    instrument()
    options: dict[str, Any] = {}
    if source == "argument":
        options["tokenizer"] = tokenizer
    elif source == "streamer":
        options["streamer"] = TextStreamer(tokenizer)
    prompt = "Zebras are striped because"
    generate(speaker, tokenizer(prompt, return_tensors="pt"), **options)

    (asked,) = json.loads(attributes(telemetry.spans()[0])[gen_ai.GEN_AI_INPUT_MESSAGES])
    assert asked["role"] == "user"
    assert asked["parts"] == [{"type": "text", "content": prompt}]


def test_without_a_tokenizer_one_warning_says_what_to_do(
    speaker: GenerativeModel,
    folder: Path,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(MODE, "span_only")
    for file in folder.iterdir():
        file.unlink()
    instrument()
    for _ in range(3):
        generate(speaker, torch.tensor([[5, 6, 7]]))

    warnings = [record for record in caplog.records if record.name.startswith("corevital")]
    assert len(warnings) == 1
    assert "Pass tokenizer= to generate" in warnings[0].getMessage()
    for span in telemetry.spans():
        assert gen_ai.GEN_AI_INPUT_MESSAGES not in attributes(span)
        assert "corevital.risk.score" in attributes(span)


def test_a_tokenizer_is_loaded_once_and_only_for_content_capture(
    speaker: GenerativeModel,
    folder: Path,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []
    load = AutoTokenizer.from_pretrained

    def watched(name: str, **options: Any) -> Any:
        loaded.append(name)
        return load(name, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", watched)
    instrumentor = instrument()
    generate(speaker, torch.tensor([[5, 6, 7]]))
    assert loaded == []
    instrumentor.uninstrument()

    monkeypatch.setenv(MODE, "span_only")
    instrument()
    for _ in range(2):
        generate(speaker, torch.tensor([[5, 6, 7]]))
    assert loaded == [str(folder)]


def test_a_time_limit_that_strikes_while_a_tokenizer_is_loaded_reaches_the_caller(
    speaker: GenerativeModel, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = TimeoutError("time is up")

    def strike(number: int, frame: FrameType | None) -> None:
        raise limit

    def load_forever(name: str, **options: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        threading.Event().wait()

    monkeypatch.setenv(MODE, "span_only")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_forever)
    instrument()
    before = signal.signal(signal.SIGALRM, strike)
    try:
        with pytest.raises(TimeoutError) as raised:
            generate(speaker, torch.tensor([[5, 6, 7]]))
    finally:
        signal.signal(signal.SIGALRM, before)

    assert raised.value is limit


def test_a_completion_hook_gets_the_texts_and_the_wire_does_not(
    speaker: GenerativeModel,
    tokenizer: PreTrainedTokenizerBase,
    telemetry: Telemetry,
    instrument: Instrument,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("fsspec")
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_COMPLETION_HOOK", "upload")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_UPLOAD_BASE_PATH", str(tmp_path))
    instrument(step_events="both")
    inputs = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)
    answered = answer(speaker, tokenizer, inputs)

    found = texts_of(telemetry)
    sent = {
        place for place, text in found.items() if any(word in text for word in (*WORDS, *answered))
    }
    assert sent == set()
    reference = attributes(telemetry.spans()[0])["gen_ai.input.messages_ref"]
    assert str(tmp_path) in reference
