"""Writes ``docs/compatibility.md``: what is observed of a tiny model of every architecture.

Run as ``python -m docs.generate_compatibility``; it takes some minutes. The page says with which
release of ``transformers`` it was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import transformers

from corevital import GenerationRecord
from corevital.capture.layers import find_decoder_layers, find_encoder_layers
from corevital.record import (
    AttentionColumns,
    EncoderAttention,
    EncoderHidden,
    EncoderSummary,
    HiddenColumns,
)
from tests.zoo.architectures import Architecture, architectures, zoo
from tests.zoo.differential import Observation, observed, subjects
from tests.zoo.modes import MODES
from tests.zoo.overrides import LEFT_OUT, MORE

TARGET: Final = Path(__file__).with_name("compatibility.md")
_EVERYTHING: Final = "all"

Columns = HiddenColumns | AttentionColumns | EncoderHidden | EncoderAttention

HEAD: Final = """# Compatibility

What CoreVital observes of every architecture with which `transformers` {version} generates text
from text or speech, and of some that make audio: a tiny model of each, with random weights, decoded
in each of the ways below, on a CPU and with the default attention implementation.
`python -m docs.generate_compatibility` writes this page from what it sees.

`transformers` maps {mapped} pairs of model type and class to causal, sequence-to-sequence and
speech-to-text generation; {built} of them are here, {left_out} [cannot be](#left-out), and there
are {more} more, which make audio from text and have a `generate` of their own. In every mode, the
outputs of all of them are the same with CoreVital and without, bit for bit, and so are the
exceptions: `tests/end_to_end/test_differential.py` checks it. What is recorded is what
`transformers` shows in its own outputs, wherever it shows any:
`tests/end_to_end/test_figures.py` compares them.

## Decoding modes

"Runs" counts the architectures that `transformers` itself decodes in this mode on the machine that
made this page, which has no accelerator and no code from the Hub; "observed" counts those of them
whose steps CoreVital sees from inside. "Exception inside" is a generation that a user's own
stopping criterion ends by raising.

"""

ARCHITECTURES: Final = """
## Architectures

Of layers, "all" means every decoder layer; a tiny model has few, at least one of each kind. Layers
without attention (state spaces, convolutions) have none to observe. Of the prompt, "all" are its
surprisal, the transformation by each layer, and the attention basin. The numbers of modes are those
of the table above.

"""

ENCODER_DECODER: Final = """
## Encoder-decoder models

What is seen besides of those architectures that have an encoder. In the table above, attention is
that of the decoder to its own tokens, and of the prompt, "all" is the transformation by each layer
of the encoder and its attention basin: an encoder predicts no token, so there is no surprisal.

"""

LEFT_OUT_HEAD: Final = """
## Left out

"""


@dataclass(frozen=True, slots=True)
class Row:
    """What was seen of one architecture; ``modes`` has a reason, or ``None``, for each that ran."""

    architecture: Architecture
    signals: tuple[str, str, str, str]
    modes: dict[str, str | None]
    of_encoder: tuple[str, str, str] | None = None

    def line(self) -> str:
        """The row of the table of architectures."""
        seen = [at for at, mode in enumerate(MODES, 1) if self.modes.get(mode, "") is None]
        name = (f"`{self.architecture.model_type}`", f"`{self.architecture.class_name}`")
        return _line((*name, *self.signals, _ranges(seen)))

    def encoder_line(self) -> str:
        """The row of the table of encoder-decoders; empty for a decoder-only model."""
        if self.of_encoder is None:
            return ""
        name = (f"`{self.architecture.model_type}`", f"`{self.architecture.class_name}`")
        return _line((*name, *self.of_encoder))


def row(architecture: Architecture) -> Row:
    """Run one architecture in every mode under CoreVital."""
    subject, _ = subjects(architecture)
    layers, encoder = find_decoder_layers(subject.model), find_encoder_layers(subject.model)
    observations = observed(subject, MODES)
    count = len(layers.layers) if layers else 0
    records = observations["greedy"].records
    return Row(
        architecture,
        _signals(records, count),
        {mode: _reason(each) for mode, each in observations.items() if _ran(mode, each)},
        None if encoder is None else _encoder_signals(records, count, len(encoder.layers)),
    )


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    left_out = [each for each in architectures() if each.model_type in LEFT_OUT]
    head = HEAD.format(
        version=transformers.__version__,
        mapped=len(rows) + len(left_out) - len(MORE),
        built=len(rows) - len(MORE),
        more=len(MORE),
        left_out=len(left_out),
    )
    columns = ("Model type", "Class", "Logits", "Hidden states", "Attention", "Prompt", "Modes")
    encoder_columns = (
        *columns[:2],
        "Cross-attention",
        "Encoder: hidden states",
        "Encoder: attention",
    )
    return "".join(
        [
            head,
            _table(("", "Mode", "Runs", "Observed", "Why not"), _modes(rows)),
            ARCHITECTURES,
            _line(columns),
            _line(["---"] * len(columns)),
            *(each.line() for each in rows),
            ENCODER_DECODER,
            _line(encoder_columns),
            _line(["---"] * len(encoder_columns)),
            *(each.encoder_line() for each in rows),
            LEFT_OUT_HEAD,
            *(f"- `{each.model_type}` {LEFT_OUT[each.model_type][0]}.\n" for each in left_out),
        ]
    )


def _ran(mode: str, observation: Observation) -> bool:
    error = observation.outcome.error
    return error is None or (mode == "exception inside" and error[0] == "Interruption")


def _reason(observation: Observation) -> str | None:
    """Why the steps were not seen, ``None`` when they were."""
    logits = observation.records[-1].capture.logits
    return None if logits.available else logits.reason


def _signals(records: Sequence[GenerationRecord], layers: int) -> tuple[str, str, str, str]:
    """What was seen of the logits, the hidden states, the attention and the prompt."""
    record = records[-1]
    capture = record.capture
    if capture.logits.reason is not None:
        return (capture.logits.reason, "-", "-", "-")
    return (
        _EVERYTHING,
        capture.hidden.reason or _share(record.hidden, layers),
        capture.attention.reason or _share(record.attention, layers),
        capture.prompt.reason or _prompt_parts(record),
    )


def _encoder_signals(
    records: Sequence[GenerationRecord], decoder_layers: int, encoder_layers: int
) -> tuple[str, str, str]:
    """What was seen of the cross-attention and of the encoder."""
    record = records[-1]
    capture = record.capture
    if not capture.logits.available or capture.cross_attention is None:
        return ("-", "-", "-")
    encoder = record.encoder if record.encoder is not None else EncoderSummary()
    seen = (
        (capture.cross_attention, record.cross_attention, decoder_layers),
        (capture.encoder_hidden, encoder.hidden, encoder_layers),
        (capture.encoder_attention, encoder.attention, encoder_layers),
    )
    cross, hidden, attention = (
        (captured.reason if captured is not None else None) or _share(columns, layers)
        for captured, columns, layers in seen
    )
    return cross, hidden, attention


def _share(columns: Columns | None, layers: int) -> str:
    seen = 0 if columns is None else len(columns.layers)
    return _EVERYTHING if seen == layers else f"{seen} of {layers}"


def _prompt_parts(record: GenerationRecord) -> str:
    parts = {
        "transformation": record.prompt.layer_transformation,
        "basin": record.prompt.basin,
    }
    if record.encoder is None:
        parts = {"surprisal": record.prompt.surprisal} | parts
    seen = [name for name, values in parts.items() if values is not None]
    return _EVERYTHING if len(seen) == len(parts) else ", ".join(seen)


def _modes(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
    for place, mode in enumerate(MODES, 1):
        reasons = [each.modes[mode] for each in rows if mode in each.modes]
        counted = Counter(reason for reason in reasons if reason is not None)
        why = "; ".join(f"{reason} ({count})" for reason, count in counted.most_common())
        yield str(place), mode, str(len(reasons)), str(reasons.count(None)), why


def _ranges(numbers: Sequence[int]) -> str:
    """``1, 2, 3, 5`` as ``1-3, 5``."""
    if not numbers:
        return "none"
    breaks = [at for at, (one, next_one) in enumerate(pairwise(numbers), 1) if next_one > one + 1]
    starts, ends = [0, *breaks], [*breaks, len(numbers)]
    runs = ((numbers[start], numbers[end - 1]) for start, end in zip(starts, ends, strict=True))
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(_line(cells) for cells in (head, ["---"] * len(head), *rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Write the page."""
    TARGET.write_text(page([row(each) for each in zoo()]), encoding="utf-8")


if __name__ == "__main__":
    main()
