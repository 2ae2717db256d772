"""What one generation left behind: small arrays over steps and layers, never a raw tensor.

Axes are named throughout: ``S`` generated tokens (steps), ``L`` observed layers, ``P`` prompt
tokens, ``H`` attention heads. Step ``s`` is the forward pass that predicted generated token ``s``.
A value that was not observed at some step is NaN (``False`` or 0 in boolean and count columns).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LAGS: Final = 64
"""How many steps back a state is compared with: the longest period of a loop that is found."""


class CaptureMode(StrEnum):
    """How much of a generation is observed."""

    FULL = "full"
    SUMMARY = "summary"
    ON_RISK = "on_risk"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The model that generated: ``name`` as users know it, ``family`` as ``config.model_type``.

    The sizes are those of the decoder's configuration, ``None`` where it does not say.
    """

    name: str
    family: str
    architecture: str
    layers: int | None = None
    hidden_size: int | None = None
    vocabulary_size: int | None = None


@dataclass(frozen=True, slots=True)
class Captured:
    """Whether one kind of signal was observed; ``reason`` says why not, when it was not."""

    available: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LogitColumns:
    """Statistics of the model's raw next-token distribution, before logits processors.

    ``entropy`` and ``surprisal`` are in bits; ``margin`` (p1 - p2) and ``top_k_mass`` are
    probabilities. All have shape ``[S]``. Logits are observed at every step or at none, so here NaN
    means that the logits held NaN or +inf; of a surprisal, also that the token is none of theirs.
    """

    entropy: Floats
    surprisal: Floats
    margin: Floats
    top_k_mass: Floats

    @property
    def perplexity(self) -> Floats:
        """2 to the power of the entropy, ``[S]``."""
        return np.exp2(self.entropy)


@dataclass(frozen=True, slots=True)
class StateStatistics:
    """Statistics of hidden states over their width, per layer: what those of all stacks share."""

    layers: Ints
    mean: Floats
    std: Floats
    l2_norm: Floats
    max_abs: Floats
    clip_fraction: Floats
    non_finite: Bools


@dataclass(frozen=True, slots=True)
class HiddenColumns(StateStatistics):
    """Statistics of the newest token's hidden state per layer, clamped to +-1e6.

    ``layers`` ``[L]`` holds the zero-based layer indices; the last layer's state is the one after
    the final norm, as in ``output_hidden_states``. ``clip_fraction`` is the share of elements that
    were clamped. ``non_finite`` marks NaN or Inf before clamping. Columns have shape ``[S, L]``.
    ``last_layer_cosine`` ``[S]`` is the cosine of the last layer's state to that of the step
    before (NaN at step 0). ``lag_cosine`` ``[S, LAGS]`` is the same cosine, more coarsely (steps of
    0.0005 near 1), to the state of each of the ``LAGS`` steps before: at index ``k - 1`` to that of
    ``k`` steps before, NaN where there is none.
    """

    last_layer_cosine: Floats
    lag_cosine: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True)
class PreviousTokenWeight:
    """How much each head looks at the token before the one that is being generated.

    ``values`` ``[S, M, H]`` in [0, 1]: in the row that predicts token ``s``, which is that of token
    ``s - 1``, the weight on token ``s - 1`` itself (at step 0, on the last token of the prompt).
    ``layers`` ``[M]`` holds zero-based indices, those of the middle third. Layers with fewer heads
    are padded with NaN.
    """

    layers: Ints
    values: Floats


@dataclass(frozen=True, slots=True)
class HeadStatistics:
    """Statistics of attention rows over heads, per layer: what those of all attentions share."""

    layers: Ints
    heads: Ints
    entropy_mean: Floats
    entropy_min: Floats
    entropy_max: Floats
    normalized_entropy_mean: Floats
    concentration_max: Floats
    concentration_min: Floats
    collapsed_heads: Ints
    focused_heads: Ints
    non_finite: Bools


@dataclass(frozen=True, slots=True)
class AttentionColumns(HeadStatistics):
    """Statistics of the newest token's attention row, over heads, per layer.

    ``layers`` ``[L]`` holds zero-based layer indices, ``heads`` ``[L]`` the number of heads.
    Entropies are in bits over the visible keys; ``normalized_entropy_mean`` is divided by
    log2(visible keys) and lies in [0, 1] (0 when one key is visible). ``concentration_*`` is the
    largest weight of a row, its maximum and minimum over heads. ``collapsed_heads`` counts heads
    with normalised entropy below 0.03, ``focused_heads`` those with concentration above 0.9.
    Columns have shape ``[S, L]``. ``previous_token_weight`` is observed in ``full`` capture only.
    """

    previous_token_weight: PreviousTokenWeight | None = None


@dataclass(frozen=True, slots=True)
class EncoderHidden(StateStatistics):
    """Statistics of an encoder's hidden states, over the positions that are no padding, per layer.

    As in ``HiddenColumns``, but means over positions; ``max_abs`` is the largest of any position,
    and ``non_finite`` marks NaN or Inf at any. ``layers`` ``[L]`` holds the zero-based indices of
    the encoder's layers; all columns have shape ``[L]``.
    """


@dataclass(frozen=True, slots=True)
class EncoderAttention(HeadStatistics):
    """Statistics of an encoder's self-attention over heads and positions, per layer.

    As in ``AttentionColumns``, of each head's mean over the positions that are no padding:
    entropies in bits over the visible keys, heads collapsed and focused by their means. The
    ``concentration_*`` are the largest weight of any head's and position's row, its maximum and
    minimum. All columns have shape ``[L]``.
    """


@dataclass(frozen=True, slots=True)
class EncoderSummary:
    """What the encoder of an encoder-decoder showed, once per generation."""

    hidden: EncoderHidden | None = None
    attention: EncoderAttention | None = None


@dataclass(frozen=True, slots=True)
class SparseAttention:
    """Prompt attention weights above ``threshold``, as a structure of arrays of equal length.

    Listed are all such weights of the prompt's newest queries, as many queries as a bounded list
    holds; ``total`` counts those of every query.
    """

    threshold: float
    layer: NDArray[np.int16]
    head: NDArray[np.int16]
    query: NDArray[np.int32]
    key: NDArray[np.int32]
    weight: Floats
    total: int

    @property
    def kept(self) -> int:
        """How many weights are listed."""
        return len(self.weight)


@dataclass(frozen=True, slots=True)
class PromptColumns:
    """What the prefill showed; of an encoder-decoder, what the encoder did, without surprisal.

    ``surprisal`` ``[P-1]`` in bits: token ``p+1`` given tokens ``0..p``, NaN where the model cannot
    predict it, as what stands for an image in some prompts. ``layer_transformation`` ``[L-1]``:
    1 - cosine between consecutive layers, mean over tokens. ``basin`` ``[L, H]``: attention on the
    middle third of the keys divided by attention on the outer thirds (rows of layers with fewer
    heads are padded with NaN). Any of them may be ``None``.
    """

    surprisal: Floats | None = None
    layer_transformation: Floats | None = None
    basin: Floats | None = None
    sparse: SparseAttention | None = None


@dataclass(frozen=True, slots=True)
class StoppedEarly:
    """Why a sequence was stopped before its end, and the step whose token was its last."""

    reason: str
    step: int


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What was observed, and why the rest was not.

    ``cross_attention`` and those of the encoder are ``None`` in a decoder-only model.
    ``stop_conditions`` are those that the generation was to be stopped for;
    ``stop_unavailable`` says which of them could not be told, and why.
    """

    mode: CaptureMode
    logits: Captured
    hidden: Captured
    attention: Captured
    prompt: Captured
    failures: int = 0
    full_from_step: int | None = None
    cross_attention: Captured | None = None
    encoder_hidden: Captured | None = None
    encoder_attention: Captured | None = None
    stop_conditions: tuple[str, ...] = ()
    stop_unavailable: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """One generated sequence.

    ``token_ids`` ``[S]``; ``step_time_ns`` ``[S]``: wall-clock nanoseconds since the Unix epoch
    at which each token was known. ``start_time_ns`` and ``end_time_ns`` bound the ``generate``
    call. ``prompt_hash`` is the same for the same model name and prompt tokens; ``None`` when the
    prompt is not known as tokens.

    Of an encoder-decoder, the prompt is what the encoder is given: ``prompt_tokens`` are its
    tokens, or where it is given no text, the positions that the decoder attends to;
    ``decoder_prompt_tokens`` are the tokens that the decoder starts with, ``None`` in a
    decoder-only model. ``cross_attention`` is about the encoder's positions, ``attention`` about
    the decoder's own tokens.
    """

    model: ModelDescription
    capture: CaptureReport
    prompt_tokens: int
    token_ids: Ints
    step_time_ns: Ints
    start_time_ns: int
    end_time_ns: int
    logits: LogitColumns | None = None
    hidden: HiddenColumns | None = None
    attention: AttentionColumns | None = None
    prompt: PromptColumns = field(default_factory=PromptColumns)
    finish_reason: str | None = None
    prompt_hash: str | None = None
    cross_attention: AttentionColumns | None = None
    encoder: EncoderSummary | None = None
    decoder_prompt_tokens: int | None = None
    stopped_early: StoppedEarly | None = None

    @property
    def steps(self) -> int:
        """Number of generated tokens."""
        return len(self.token_ids)

    @property
    def steps_without_choice(self) -> int:
        """First steps at which a decoder's self-attention had one key, its start token, to see."""
        return 1 if self.decoder_prompt_tokens == 1 else 0

    @property
    def observed(self) -> bool:
        """Whether anything of the generation's inside is known."""
        parts = (self.logits, self.hidden, self.attention, self.cross_attention)
        return any(part is not None for part in parts)
