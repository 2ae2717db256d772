"""What records say of a generation, and what ``transformers`` itself shows of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from corevital import GenerationRecord
from corevital.record import AttentionColumns, EncoderSummary
from tests.capture.observe import observe
from tests.capture.recomputation import logit_columns, row_statistics
from tests.zoo.architectures import COMPLETE, Architecture

TOKENS: Final = 6
PADDING: Final = 2
# Kernels differ in the fourth digit.
TOLERANCES: Final = {torch.float32: 2e-3, torch.bfloat16: 4e-2}
# A head near a threshold may fall on either side of it.
COUNTS: Final = {"collapsed_heads", "focused_heads"}
COUNTED_OTHERWISE: Final = 0.1
LAST_CALLS: Final = {"hrm_text": slice(-4, None), "longcat_flash": slice(1, None, 2)}
"""Where a layer attends several times for one token: which of all calls are each layer's last."""
NORMED_BESIDES: Final = {"falcon_mamba", "mamba", "mamba2", "rwkv"}
if not COMPLETE:
    NORMED_BESIDES.add("xlstm")
"""What shows the last layer's states twice, before the norm and after it."""
ADAPTED: Final = {
    "MoonshineStreamingForConditionalGeneration",
    "SeamlessM4TForSpeechToText",
    "SeamlessM4Tv2ForSpeechToText",
}
"""What shows of the encoder's last layer something else than what the norm behind it returns."""
NO_ATTENTION: Final = {"falcon_mamba", "mamba", "mamba2", "xlstm"}
"""What has no such output."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shown:
    """A generation of two sequences: what ``generate`` returned, and the record of each."""

    architecture: Architecture
    precision: torch.dtype
    model: Any
    outputs: Any
    records: list[GenerationRecord]

    @property
    def tolerance(self) -> float:
        """By how much figures may differ, relative and absolute."""
        return TOLERANCES[self.precision]

    def of_decoder(self, name: str) -> Any:
        """By step and layer; ``None`` where the architecture has no such output."""
        own = getattr(self.outputs, f"decoder_{name}", None)
        return own or getattr(self.outputs, name, None)

    def of_prompt(self, name: str) -> Any:
        """By layer: of the encoder where there is one, or the first step's."""
        encoder = getattr(self.outputs, f"encoder_{name}", None)
        return encoder or (self.of_decoder(name) or (None,))[0]


def shown(
    architecture: Architecture,
    implementation: str | None,
    precision: torch.dtype = torch.float32,
    tokens: int = TOKENS,
    **more: Any,
) -> Shown:
    """A generation with every output; the second sequence is padded.

    ``transformers`` shows weights with ``eager`` attention only. ``None`` is what a model has by
    default.
    """
    model: Any = architecture.build_or_skip()
    model.to(precision)
    if implementation is not None:
        model.set_attn_implementation(implementation)
    inputs: dict[str, Any] = {
        name: given.to(precision) if given.is_floating_point() else given
        for name, given in architecture.inputs(2).items()
    }
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][1, :PADDING] = 0
    arguments = {
        "num_beams": 1,
        "do_sample": False,
        "max_new_tokens": tokens,
        "return_dict_in_generate": True,
        "output_logits": True,
        "output_hidden_states": True,
        "output_attentions": implementation == "eager"
        and architecture.model_type not in NO_ATTENTION,
    }
    try:
        outputs, records = observe(model, **inputs, **arguments, **more)
    except Exception as error:
        if COMPLETE:
            raise
        pytest.skip(f"does not generate with this release of transformers: {error}"[:200])
    return Shown(architecture, precision, model, outputs, records)


def disagreements(generation: Shown) -> list[str]:
    """Where the records are not what the outputs show, for people to read."""
    counts = [record.capture.failures for record in generation.records]
    found = [f"{count} failures" for count in counts if count > 0]
    for row, record in enumerate(generation.records):
        found += _logits(generation, record, row) + _hidden(generation, record, row)
        found += _attention(generation, record.attention, row, "attentions")
        if record.cross_attention is not None:
            found += _attention(generation, record.cross_attention, row, "cross_attentions")
    first = generation.records[0]
    return found + _prompt(generation, first) + _encoder(generation, first)


def differences(left: GenerationRecord, right: GenerationRecord, tolerance: float) -> list[str]:
    """Where two records of the same tokens say something else."""
    found = []
    others = _parts(right)
    for part, ours in _parts(left).items():
        other = others[part]
        if (ours is None) != (other is None):
            found.append(f"{part}: in one of the two only")
        elif ours is not None:
            names = [each.name for each in fields(other)]
            arrays = {name: getattr(other, name) for name in names}
            known = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray)}
            found += _disagree(part, ours, known, tolerance)
    return found


def _parts(record: GenerationRecord) -> dict[str, Any]:
    encoder = record.encoder or EncoderSummary()
    return {
        "logits": record.logits,
        "hidden": record.hidden,
        "attention": record.attention,
        "own token": record.attention and record.attention.previous_token_weight,
        "cross-attention": record.cross_attention,
        "prompt": record.prompt,
        "encoder's hidden": encoder.hidden,
        "encoder's attention": encoder.attention,
    }


def _logits(generation: Shown, record: GenerationRecord, row: int) -> list[str]:
    return _disagree(
        "logits",
        record.logits,
        logit_columns(generation.outputs, row, record.steps),
        generation.tolerance,
    )


def _hidden(generation: Shown, record: GenerationRecord, row: int) -> list[str]:
    steps = generation.of_decoder("hidden_states")
    if record.hidden is None or steps[0] is None:
        return []
    # The newest token's; embeddings come first, the last layer's is normed.
    layers = record.hidden.layers - (record.hidden.layers[-1] + 1)
    steps = steps[: record.steps]
    if generation.architecture.model_type in NORMED_BESIDES:
        steps = [(*step[:-2], step[-1]) for step in steps]
    states = np.array([[_double(step[layer][row, -1]) for layer in layers] for step in steps])
    expected = {
        "mean": states.mean(-1),
        "std": states.std(-1, ddof=1),
        "l2_norm": np.linalg.norm(states, axis=-1),
        "max_abs": np.abs(states).max(-1),
    }
    return _disagree("hidden", record.hidden, expected, generation.tolerance)


def _attention(
    generation: Shown, columns: AttentionColumns | None, row: int, name: str
) -> list[str]:
    steps = getattr(generation.outputs, name, None) or generation.of_decoder(name)
    if columns is None or steps is None:
        return []
    calls = LAST_CALLS.get(generation.architecture.model_type, slice(None))
    rows = [
        [_double(weights[row, :, -1]) for weights in _of_layers(step[calls], columns)]
        for step in steps[: len(columns.entropy_mean)]
    ]
    # A key that no head weighs is hidden.
    of_rows = [[row_statistics(heads[:, heads.any(0)]) for heads in step] for step in rows]
    expected = {
        name: np.array([[layer[name] for layer in step] for step in of_rows])
        for name in of_rows[0][0]
    }
    found = _disagree(name, columns, expected, generation.tolerance)
    if columns.previous_token_weight is not None:
        seen = columns.previous_token_weight.layers
        places = [list(columns.layers).index(layer) for layer in seen]
        own = [[step[place][:, -1] for place in places] for step in rows]
        weights = {"values": np.array(own)}
        found += _disagree(
            f"own token of {name}", columns.previous_token_weight, weights, generation.tolerance
        )
    return found


def _of_layers(step: Any, columns: AttentionColumns) -> Any:
    """Of hybrids, some show all layers, and some those with attention."""
    return step if len(step) == len(columns.layers) else [step[place] for place in columns.layers]


def _prompt(generation: Shown, record: GenerationRecord) -> list[str]:
    """Of the first sequence, whose prompt has no padding."""
    expected = {}
    transformation, basin = record.prompt.layer_transformation, record.prompt.basin
    architecture = generation.architecture
    layers = generation.of_prompt("hidden_states")
    if (
        layers is not None
        and transformation is not None
        and not (
            architecture.model_type in {*LAST_CALLS, *NORMED_BESIDES}
            or architecture.class_name in ADAPTED
        )
    ):
        states = np.array([_double(layer[0]) for layer in layers[-len(transformation) - 1 :]])
        unit = states / np.linalg.norm(states, axis=-1, keepdims=True)
        expected["layer_transformation"] = 1 - (unit[1:] * unit[:-1]).sum(-1).mean(-1)
    if record.prompt.surprisal is not None:
        # As many as were generated: some models keep states of that size.
        tokens = architecture.inputs(2)["input_ids"]
        with torch.no_grad():
            logits = generation.model(tokens, use_cache=False).logits[0, :-1]
        bits = logits.double().log_softmax(-1) / -np.log(2)
        expected["surprisal"] = _double(bits.gather(-1, tokens[0, 1:, None])[:, 0])
    weights = generation.of_prompt("attentions")
    if basin is not None and weights is not None:
        calls = LAST_CALLS.get(architecture.model_type, slice(None))
        expected["basin"] = np.full_like(basin, np.nan)
        seen = np.flatnonzero(~np.isnan(basin).all(-1))
        shown_layers = weights[calls]
        if len(shown_layers) == len(seen):
            shown_layers = dict(zip(seen, shown_layers, strict=True))
        for layer in seen:
            # Some layers have keys that are no tokens besides.
            of_heads = _double(shown_layers[layer][0])
            keys = of_heads.shape[-2]
            columns = of_heads[..., :keys].mean(-2)
            middle = columns[:, keys // 3 : 2 * keys // 3].sum(-1)
            expected["basin"][layer] = middle / (columns.sum(-1) - middle)
    return _disagree("prompt", record.prompt, expected, generation.tolerance)


def _encoder(generation: Shown, record: GenerationRecord) -> list[str]:
    """Of the first sequence, whose prompt has no padding."""
    shown_states = getattr(generation.outputs, "encoder_hidden_states", None)
    shown_weights = getattr(generation.outputs, "encoder_attentions", None)
    if record.encoder is None or generation.architecture.class_name in ADAPTED:
        return []
    found = []
    hidden, attention = record.encoder.hidden, record.encoder.attention
    if hidden is not None and shown_states is not None:
        layers = shown_states[-len(hidden.layers) :]
        states = np.array([_double(layer[0]) for layer in layers])
        expected = {
            "mean": states.mean((-2, -1)),
            "std": states.std(-1, ddof=1).mean(-1),
            "l2_norm": np.linalg.norm(states, axis=-1).mean(-1),
            "max_abs": np.abs(states).max((-2, -1)),
        }
        found += _disagree("encoder's hidden", hidden, expected, generation.tolerance)
    if attention is not None and shown_weights:
        rows = np.array([_double(layer[0]) for layer in shown_weights])
        bits = -(rows * np.log2(np.where(rows > 0, rows, 1.0))).sum(-1)
        normalized = bits / np.log2(np.maximum((rows > 0).any(1, keepdims=True).sum(-1), 2))
        of_heads = bits.mean(-1)
        expected = {
            "entropy_mean": of_heads.mean(-1),
            "entropy_min": of_heads.min(-1),
            "entropy_max": of_heads.max(-1),
            "normalized_entropy_mean": normalized.mean((-2, -1)),
            "concentration_max": rows.max((-3, -2, -1)),
            "concentration_min": rows.max(-1).min((-2, -1)),
        }
        found += _disagree("encoder's attention", attention, expected, generation.tolerance)
    return found


def _double(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().double().numpy()
    return array


def _disagree(part: str, observed: Any, expected: dict[str, Any], tolerance: float) -> list[str]:
    found = []
    for name, values in expected.items():
        ours = getattr(observed, name)
        if ours is None or ours.shape != values.shape:
            found.append(f"{part}.{name}: {getattr(ours, 'shape', None)}, not {values.shape}")
            continue
        far = ~np.isclose(ours, values, rtol=tolerance, atol=tolerance, equal_nan=True)
        if far.mean() > (COUNTED_OTHERWISE if name in COUNTS else 0):
            place = tuple(int(at) for at in np.argwhere(far)[0])
            found.append(f"{part}.{name}{list(place)}: {ours[place]:.5g}, not {values[place]:.5g}")
    return found
