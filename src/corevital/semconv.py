"""Every attribute, event and metric that CoreVital emits, declared once.

The GenAI names of OpenTelemetry's own conventions come from ``opentelemetry-semantic-conventions``
and are not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Type(StrEnum):
    """Attribute types of OpenTelemetry."""

    STRING = "string"
    BOOLEAN = "boolean"
    INT = "int"
    DOUBLE = "double"
    STRINGS = "string[]"
    INTS = "int[]"
    DOUBLES = "double[]"


class Place(StrEnum):
    """Where an attribute is found."""

    SPAN = "span"
    STEP = "corevital.step"
    LAYERS = "corevital.layers"
    PROMPT = "corevital.prompt"
    METRIC = "metric"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute; ``unit`` in UCUM notation, empty where there is none."""

    name: str
    type: Type
    brief: str
    unit: str = ""
    places: tuple[Place, ...] = (Place.SPAN,)


@dataclass(frozen=True, slots=True)
class Event:
    """One event, on a span or as a log record."""

    name: str
    brief: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; ``buckets`` are the advised boundaries of a histogram."""

    name: str
    instrument: str
    unit: str
    brief: str
    buckets: tuple[float, ...] = ()


_attributes: dict[str, Attribute] = {}
_metrics: dict[str, Metric] = {}


def _attribute(
    name: str, type_: Type, brief: str, unit: str = "", places: tuple[Place, ...] = (Place.SPAN,)
) -> str:
    _attributes[name] = Attribute(name, type_, brief, unit, places)
    return name


def _step(name: str, type_: Type, brief: str, unit: str = "") -> str:
    return _attribute(f"corevital.step.{name}", type_, brief, unit, (Place.STEP,))


def _metric(
    name: str, instrument: str, unit: str, brief: str, buckets: tuple[float, ...] = ()
) -> str:
    _metrics[name] = Metric(name, instrument, unit, brief, buckets)
    return name


# Capture
CAPTURE_MODE: Final = _attribute(
    "corevital.capture.mode",
    Type.STRING,
    "How much was observed: full, summary, on_risk or off.",
    "",
    (Place.SPAN, Place.METRIC),
)
CAPTURE_LOGITS: Final = _attribute(
    "corevital.capture.logits", Type.STRING, "`captured`, or `unavailable: ` and the reason."
)
CAPTURE_HIDDEN: Final = _attribute(
    "corevital.capture.hidden", Type.STRING, "`captured`, or `unavailable: ` and the reason."
)
CAPTURE_ATTENTION: Final = _attribute(
    "corevital.capture.attention", Type.STRING, "`captured`, or `unavailable: ` and the reason."
)
CAPTURE_PROMPT: Final = _attribute(
    "corevital.capture.prompt", Type.STRING, "`captured`, or `unavailable: ` and the reason."
)
CAPTURE_CROSS_ATTENTION: Final = _attribute(
    "corevital.capture.cross_attention",
    Type.STRING,
    "`captured`, or `unavailable: ` and the reason; of encoder-decoders only.",
)
CAPTURE_ENCODER_HIDDEN: Final = _attribute(
    "corevital.capture.encoder.hidden",
    Type.STRING,
    "`captured`, or `unavailable: ` and the reason; of encoder-decoders only.",
)
CAPTURE_ENCODER_ATTENTION: Final = _attribute(
    "corevital.capture.encoder.attention",
    Type.STRING,
    "`captured`, or `unavailable: ` and the reason; of encoder-decoders only.",
)
CAPTURE_STEPS: Final = _attribute(
    "corevital.capture.steps", Type.INT, "Steps that were observed.", "{step}"
)
CAPTURE_FULL_FROM: Final = _attribute(
    "corevital.capture.full_from_step",
    Type.INT,
    "Step from which an `on_risk` capture observed everything.",
)
CAPTURE_FAILURES: Final = _attribute(
    "corevital.capture.failures", Type.INT, "How often observing failed; absent when never."
)
BATCH_SIZE: Final = _attribute(
    "corevital.batch.size", Type.INT, "Sequences of a call that generated more than one."
)
SEQUENCE_INDEX: Final = _attribute(
    "corevital.sequence.index", Type.INT, "Row of this sequence in its batch."
)
STEPS_WITHOUT_EVENT: Final = _attribute(
    "corevital.step.omitted", Type.INT, "Steps for which no event was recorded.", "{step}"
)
OMITTED: Final = _attribute(
    "corevital.attribute.omitted",
    Type.INT,
    "Attributes that were left out or shortened, so that span and evaluation stay under 4 kB; "
    "absent when there are none.",
)

# Risk
RISK_SCORE: Final = _attribute(
    "corevital.risk.score", Type.DOUBLE, "Risk that the generation failed, in [0, 1].", "1"
)
RISK_SOURCE: Final = _attribute(
    "corevital.risk.source",
    Type.STRING,
    "What the score is: `calibrated`, a probability of failure, or `uncalibrated`, a rank.",
    "",
    (Place.SPAN, Place.METRIC),
)
RISK_HEURISTIC: Final = _attribute(
    "corevital.risk.heuristic", Type.DOUBLE, "The published heuristic, in [0, 1].", "1"
)
RISK_LEVEL: Final = _attribute(
    "corevital.risk.level", Type.STRING, "`low`, `moderate`, `high` or `critical`."
)
RISK_FACTORS: Final = _attribute(
    "corevital.risk.factors", Type.STRINGS, "What the heuristic found, most important rule first."
)
RISK_CONTRIBUTIONS: Final = _attribute(
    "corevital.risk.contributions", Type.DOUBLES, "What each factor adds to the heuristic.", "1"
)

# Health
NAN_OR_INF: Final = _attribute(
    "corevital.health.nan_or_inf",
    Type.BOOLEAN,
    "NaN or Inf in a hidden state, an attention row or the logits.",
)
REPETITION_LOOP: Final = _attribute(
    "corevital.health.repetition_loop", Type.BOOLEAN, "The last layer's states stopped changing."
)
MID_LAYER_ANOMALY: Final = _attribute(
    "corevital.health.mid_layer_anomaly",
    Type.BOOLEAN,
    "A middle layer's L2 norm far above the early layers', or NaN/Inf there.",
)
ATTENTION_COLLAPSE: Final = _attribute(
    "corevital.health.attention_collapse", Type.BOOLEAN, "Attention heads collapsed onto few keys."
)
ATTENTION_COLLAPSE_SEVERITY: Final = _attribute(
    "corevital.health.attention_collapse_severity",
    Type.DOUBLE,
    "How badly, in [0, 1]; absent when they did not.",
    "1",
)
HIGH_ENTROPY_STEPS: Final = _attribute(
    "corevital.health.high_entropy_steps",
    Type.INT,
    "Steps whose entropy is above the profile's threshold.",
    "{step}",
)

# Repetition
REPETITION_DETECTED: Final = _attribute(
    "corevital.repetition.detected",
    Type.BOOLEAN,
    "The text repeats a phrase of 1 to 64 tokens, anywhere in it; the other attributes are of the "
    "longest such loop.",
)
REPETITION_ONSET: Final = _attribute(
    "corevital.repetition.onset_step", Type.INT, "Step of the first token of the first copy."
)
REPETITION_PERIOD: Final = _attribute(
    "corevital.repetition.period", Type.INT, "Tokens of the phrase.", "{token}"
)
REPETITION_REPEATS: Final = _attribute(
    "corevital.repetition.repeats", Type.INT, "Complete copies of the phrase, the first included."
)
REPETITION_END: Final = _attribute(
    "corevital.repetition.end_step",
    Type.INT,
    "Step at which the text left the loop, the first that is not part of it; absent when it never "
    "did.",
)

# Signals, warnings, blame
SIGNAL_NAMES: Final = _attribute(
    "corevital.signal.names", Type.STRINGS, "Compound signals that were found."
)
SIGNAL_SEVERITIES: Final = _attribute(
    "corevital.signal.severities",
    Type.DOUBLES,
    "Severity of each compound signal; absent when there is none.",
    "1",
)
SIGNAL_EVIDENCE: Final = _attribute(
    "corevital.signal.evidence",
    Type.STRINGS,
    "The numbers behind each compound signal; absent when there is none.",
)
EARLY_WARNING_SCORE: Final = _attribute(
    "corevital.early_warning.score", Type.DOUBLE, "The strongest early warning, in [0, 1].", "1"
)
EARLY_WARNING_SIGNALS: Final = _attribute(
    "corevital.early_warning.signals", Type.STRINGS, "Early warnings that were raised."
)
BLAME_LAYERS: Final = _attribute(
    "corevital.blame.layers",
    Type.INTS,
    "Layers that behaved unusually, zero-based, the worst first, ten at most.",
)
BLAME_SEVERITIES: Final = _attribute(
    "corevital.blame.severities",
    Type.DOUBLES,
    "Severity of the first two of these layers; absent when there is none.",
    "1",
)
BLAME_REASONS: Final = _attribute(
    "corevital.blame.reasons",
    Type.STRINGS,
    "Why the first two of these layers are blamed; absent when there is none.",
)
BLAME_OMITTED: Final = _attribute(
    "corevital.blame.omitted",
    Type.INT,
    "Further layers that behaved unusually; absent when there are none.",
)

# Intervention
INTERVENTION_CONDITIONS: Final = _attribute(
    "corevital.intervention.conditions",
    Type.STRINGS,
    "What the generation was to be stopped for: `repetition`, `non_finite`, `risk`; absent when it "
    "was to be stopped for nothing.",
)
INTERVENTION_UNAVAILABLE: Final = _attribute(
    "corevital.intervention.unavailable",
    Type.STRING,
    "Which of these conditions could not be told, and why.",
)
INTERVENTION_REASON: Final = _attribute(
    "corevital.intervention.reason",
    Type.STRING,
    "Why CoreVital stopped the sequence: `repetition`, `non_finite` or `risk`; absent when it did "
    "not.",
    "",
    (Place.SPAN, Place.METRIC),
)
INTERVENTION_STEP: Final = _attribute(
    "corevital.intervention.step", Type.INT, "Step whose token was the last before the stop."
)

# Uncertainty of the sequence
UNCERTAINTY_NLL: Final = _attribute(
    "corevital.uncertainty.negative_log_likelihood.sum",
    Type.DOUBLE,
    "Negative log-likelihood of the generated sequence: the sum of its surprisals.",
    "bit",
)
UNCERTAINTY_NLL_PER_TOKEN: Final = _attribute(
    "corevital.uncertainty.negative_log_likelihood.per_token",
    Type.DOUBLE,
    "The same divided by the number of tokens; 2 to its power is the sequence's perplexity.",
    "bit",
)
UNCERTAINTY_ENTROPY_MEAN: Final = _attribute(
    "corevital.uncertainty.entropy.mean", Type.DOUBLE, "Mean next-token entropy.", "bit"
)
UNCERTAINTY_ENTROPY_MAX: Final = _attribute(
    "corevital.uncertainty.entropy.max", Type.DOUBLE, "Largest next-token entropy.", "bit"
)
UNCERTAINTY_MARGIN_MEAN: Final = _attribute(
    "corevital.uncertainty.margin.mean",
    Type.DOUBLE,
    "Mean of p1 - p2 of the two most likely tokens; here low means uncertain.",
    "1",
)
UNCERTAINTY_RAUQ: Final = _attribute(
    "corevital.uncertainty.rauq",
    Type.DOUBLE,
    "RAUQ (arXiv:2505.20045): mean -log2 of a confidence that attention to the previous token "
    "hands on; with `full` capture only.",
    "bit",
)

# Calibration
CALIBRATION_BASELINE: Final = _attribute(
    "corevital.calibration.baseline",
    Type.STRING,
    "Id of the baseline that the generation was compared with: its model and a digest of its file.",
)
CALIBRATION_RISK: Final = _attribute(
    "corevital.calibration.risk",
    Type.STRING,
    "Id of the risk calibration that gave the score: its model and a digest of its file.",
)
CALIBRATION_REFUSED: Final = _attribute(
    "corevital.calibration.refused",
    Type.STRING,
    "Why calibration files were not applied: they were made for other models.",
)
BASELINE_DIVERGENCE: Final = _attribute(
    "corevital.baseline.divergence",
    Type.DOUBLE,
    "Distance to the baseline's healthy runs, in [0, 1]; 0.5 is as far as these are apart.",
    "1",
)
BASELINE_ANOMALIES: Final = _attribute(
    "corevital.baseline.anomalies",
    Type.STRINGS,
    "Quantities and layers that are further off than in healthy runs, the worst first.",
)

# The whole generation, in words and as a vector
NARRATIVE: Final = _attribute(
    "corevital.narrative",
    Type.STRING,
    "What was found, in two to six sentences; with the text of a token only where content capture "
    "is switched on for spans.",
)
FINGERPRINT_VECTOR: Final = _attribute(
    "corevital.fingerprint.vector",
    Type.DOUBLES,
    "25 numbers to compare generations by, named in `corevital.assess.fingerprint.NAMES`.",
)
FINGERPRINT_VERSION: Final = _attribute(
    "corevital.fingerprint.version", Type.INT, "Which elements the vector has, and in which order."
)
PROMPT_HASH: Final = _attribute(
    "corevital.prompt.hash",
    Type.STRING,
    "16 hexadecimal digits that are the same for the same model name and prompt tokens.",
)
CONSISTENCY_VIOLATIONS: Final = _attribute(
    "corevital.consistency.violations",
    Type.STRINGS,
    "Rules that the record's numbers break, each with the first place; a fault of the capture.",
)

# Summaries
ENTROPY_MEAN: Final = _attribute(
    "corevital.entropy.mean", Type.DOUBLE, "Mean next-token entropy.", "bit"
)
ENTROPY_MAX: Final = _attribute(
    "corevital.entropy.max", Type.DOUBLE, "Largest next-token entropy.", "bit"
)
SURPRISAL_MEAN: Final = _attribute(
    "corevital.surprisal.mean", Type.DOUBLE, "Mean surprisal of the chosen tokens.", "bit"
)
SURPRISAL_MAX: Final = _attribute(
    "corevital.surprisal.max", Type.DOUBLE, "Largest surprisal of a chosen token.", "bit"
)
MARGIN_MEAN: Final = _attribute(
    "corevital.margin.mean", Type.DOUBLE, "Mean of p1 - p2 of the two most likely tokens.", "1"
)
MARGIN_MIN: Final = _attribute("corevital.margin.min", Type.DOUBLE, "Smallest p1 - p2.", "1")
TOP_K_MASS_MEAN: Final = _attribute(
    "corevital.top_k_mass.mean", Type.DOUBLE, "Mean probability of the k likeliest tokens.", "1"
)
ATTENTION_ENTROPY_MEAN: Final = _attribute(
    "corevital.attention.entropy.mean",
    Type.DOUBLE,
    "Mean attention entropy over steps, layers and heads.",
    "bit",
)
ATTENTION_COLLAPSED_SHARE: Final = _attribute(
    "corevital.attention.collapsed_share", Type.DOUBLE, "Share of heads that are collapsed.", "1"
)
CROSS_ATTENTION_ENTROPY_MEAN: Final = _attribute(
    "corevital.cross_attention.entropy.mean",
    Type.DOUBLE,
    "Mean entropy of the attention to the encoder's positions, over steps, layers and heads.",
    "bit",
)
CROSS_ATTENTION_NORMALIZED_MEAN: Final = _attribute(
    "corevital.cross_attention.normalized_entropy.mean",
    Type.DOUBLE,
    "The same divided by the logarithm of the number of positions, in [0, 1].",
    "1",
)
CROSS_ATTENTION_COLLAPSED_SHARE: Final = _attribute(
    "corevital.cross_attention.collapsed_share",
    Type.DOUBLE,
    "Share of cross-attention heads that are collapsed.",
    "1",
)
ENCODER_L2_MEAN: Final = _attribute(
    "corevital.encoder.hidden.l2_norm.mean",
    Type.DOUBLE,
    "L2 norm of the encoder's states, mean over positions and layers.",
)
ENCODER_MAX_ABS: Final = _attribute(
    "corevital.encoder.hidden.max_abs",
    Type.DOUBLE,
    "Largest absolute value of an encoder's state over all positions and layers.",
)
ENCODER_ENTROPY_MEAN: Final = _attribute(
    "corevital.encoder.attention.entropy.mean",
    Type.DOUBLE,
    "Mean entropy of the encoder's self-attention over positions, layers and heads.",
    "bit",
)
ENCODER_COLLAPSED_SHARE: Final = _attribute(
    "corevital.encoder.attention.collapsed_share",
    Type.DOUBLE,
    "Share of the encoder's heads that are collapsed.",
    "1",
)
ENCODER_NON_FINITE_LAYERS: Final = _attribute(
    "corevital.encoder.non_finite_layers",
    Type.INTS,
    "Layers of the encoder with NaN or Inf; absent when there is none.",
)
PROMPT_SURPRISAL_MEAN: Final = _attribute(
    "corevital.prompt.surprisal.mean", Type.DOUBLE, "Mean surprisal of the prompt's tokens.", "bit"
)
PROMPT_SURPRISAL_MAX: Final = _attribute(
    "corevital.prompt.surprisal.max", Type.DOUBLE, "Largest surprisal of a prompt token.", "bit"
)
PROMPT_TRANSFORMATION_MEAN: Final = _attribute(
    "corevital.prompt.layer_transformation.mean",
    Type.DOUBLE,
    "Mean over layers of 1 - cosine between a layer's output and its input.",
    "1",
)
PROMPT_BASIN_MEAN: Final = _attribute(
    "corevital.prompt.basin.mean",
    Type.DOUBLE,
    "Attention on the middle third of the prompt divided by that on the outer thirds, mean over "
    "heads.",
    "1",
)
PROMPT_SPARSE_WEIGHTS: Final = _attribute(
    "corevital.prompt.sparse_attention.weights",
    Type.INT,
    "Attention weights above 0.01 in the prompt.",
)
TIME_TO_FIRST_TOKEN: Final = _attribute(
    "corevital.time.first_token", Type.DOUBLE, "From the call to the first token.", "s"
)
TIME_PER_OUTPUT_TOKEN: Final = _attribute(
    "corevital.time.per_output_token", Type.DOUBLE, "Mean time of every token but the first.", "s"
)

# Step event
STEP_INDEX: Final = _step("index", Type.INT, "Zero-based step.")
STEP_TOKEN_ID: Final = _step("token.id", Type.INT, "The chosen token.")
STEP_TOKEN_TEXT: Final = _step(
    "token.text", Type.STRING, "Its text; only where content capture is switched on."
)
STEP_ENTROPY: Final = _step("entropy", Type.DOUBLE, "Next-token entropy.", "bit")
STEP_PERPLEXITY: Final = _step("perplexity", Type.DOUBLE, "2 to the power of the entropy.", "1")
STEP_SURPRISAL: Final = _step("surprisal", Type.DOUBLE, "Surprisal of the chosen token.", "bit")
STEP_MARGIN: Final = _step("margin", Type.DOUBLE, "p1 - p2 of the two likeliest tokens.", "1")
STEP_TOP_K_MASS: Final = _step(
    "top_k_mass", Type.DOUBLE, "Probability of the k likeliest tokens.", "1"
)
STEP_HIDDEN_L2_MEAN: Final = _step(
    "hidden.l2_norm.mean", Type.DOUBLE, "L2 norm of the newest token's state, mean over layers."
)
STEP_HIDDEN_L2_LAST: Final = _step(
    "hidden.l2_norm.last", Type.DOUBLE, "L2 norm of the newest token's state in the last layer."
)
STEP_HIDDEN_MAX_ABS: Final = _step(
    "hidden.max_abs", Type.DOUBLE, "Largest absolute value of a state over all layers."
)
STEP_HIDDEN_COSINE: Final = _step(
    "hidden.cosine",
    Type.DOUBLE,
    "Cosine of the last layer's state to that of the step before.",
    "1",
)
STEP_ATTENTION_ENTROPY_MEAN: Final = _step(
    "attention.entropy.mean", Type.DOUBLE, "Attention entropy, mean over heads and layers.", "bit"
)
STEP_ATTENTION_ENTROPY_MIN: Final = _step(
    "attention.entropy.min", Type.DOUBLE, "Smallest attention entropy of a head.", "bit"
)
STEP_ATTENTION_CONCENTRATION_MAX: Final = _step(
    "attention.concentration.max", Type.DOUBLE, "Largest attention weight of a head.", "1"
)
STEP_ATTENTION_COLLAPSED: Final = _step(
    "attention.collapsed_heads", Type.INT, "Heads that are collapsed, over all layers.", "{head}"
)
STEP_ATTENTION_FOCUSED: Final = _step(
    "attention.focused_heads", Type.INT, "Heads with a weight above 0.9, over all layers.", "{head}"
)
STEP_CROSS_ATTENTION_ENTROPY_MEAN: Final = _step(
    "cross_attention.entropy.mean",
    Type.DOUBLE,
    "Entropy of the attention to the encoder's positions, mean over heads and layers.",
    "bit",
)
STEP_CROSS_ATTENTION_CONCENTRATION_MAX: Final = _step(
    "cross_attention.concentration.max",
    Type.DOUBLE,
    "Largest weight of a head on one of the encoder's positions.",
    "1",
)
STEP_CROSS_ATTENTION_COLLAPSED: Final = _step(
    "cross_attention.collapsed_heads",
    Type.INT,
    "Cross-attention heads that are collapsed, over all layers.",
    "{head}",
)
STEP_NON_FINITE_LAYERS: Final = _step(
    "non_finite_layers", Type.INTS, "Layers with NaN or Inf; absent when there is none."
)

# Layer and prompt events
LAYER_INDEX: Final = _attribute(
    "corevital.layer.index",
    Type.INTS,
    "Zero-based layers, in the order of the other arrays.",
    "",
    (Place.LAYERS, Place.PROMPT),
)
LAYER_L2_MEAN: Final = _attribute(
    "corevital.layer.hidden.l2_norm.mean",
    Type.DOUBLES,
    "L2 norm of the newest token's state per layer, mean over steps.",
    "",
    (Place.LAYERS,),
)
LAYER_L2_STD: Final = _attribute(
    "corevital.layer.hidden.l2_norm.std",
    Type.DOUBLES,
    "Its standard deviation over steps.",
    "",
    (Place.LAYERS,),
)
LAYER_ATTENTION_INDEX: Final = _attribute(
    "corevital.layer.attention.index",
    Type.INTS,
    "Zero-based layers of the attention arrays.",
    "",
    (Place.LAYERS,),
)
LAYER_ATTENTION_ENTROPY: Final = _attribute(
    "corevital.layer.attention.entropy.mean",
    Type.DOUBLES,
    "Attention entropy per layer, mean over heads and steps.",
    "bit",
    (Place.LAYERS,),
)
LAYER_COLLAPSED_SHARE: Final = _attribute(
    "corevital.layer.attention.collapsed_share",
    Type.DOUBLES,
    "Share of a layer's heads that are collapsed, mean over steps.",
    "1",
    (Place.LAYERS,),
)
LAYER_CROSS_ATTENTION_INDEX: Final = _attribute(
    "corevital.layer.cross_attention.index",
    Type.INTS,
    "Zero-based layers of the cross-attention arrays.",
    "",
    (Place.LAYERS,),
)
LAYER_CROSS_ATTENTION_ENTROPY: Final = _attribute(
    "corevital.layer.cross_attention.entropy.mean",
    Type.DOUBLES,
    "Cross-attention entropy per layer, mean over heads and steps.",
    "bit",
    (Place.LAYERS,),
)
LAYER_CROSS_ATTENTION_COLLAPSED_SHARE: Final = _attribute(
    "corevital.layer.cross_attention.collapsed_share",
    Type.DOUBLES,
    "Share of a layer's cross-attention heads that are collapsed, mean over steps.",
    "1",
    (Place.LAYERS,),
)
PROMPT_TRANSFORMATION: Final = _attribute(
    "corevital.prompt.layer_transformation.values",
    Type.DOUBLES,
    "1 - cosine between a layer's output and its input, mean over the prompt's tokens.",
    "1",
    (Place.PROMPT,),
)
PROMPT_BASIN: Final = _attribute(
    "corevital.prompt.basin.values",
    Type.DOUBLES,
    "Basin score per layer, mean over heads.",
    "1",
    (Place.PROMPT,),
)

ENCODER_L2_VALUES: Final = _attribute(
    "corevital.encoder.hidden.l2_norm.values",
    Type.DOUBLES,
    "L2 norm of the encoder's states per layer, mean over positions.",
    "",
    (Place.PROMPT,),
)
ENCODER_ENTROPY_VALUES: Final = _attribute(
    "corevital.encoder.attention.entropy.values",
    Type.DOUBLES,
    "Entropy of the encoder's self-attention per layer, mean over heads and positions.",
    "bit",
    (Place.PROMPT,),
)

# Metric attributes
FLAG_NAME: Final = _attribute(
    "corevital.flag.name",
    Type.STRING,
    "A health flag; `repetition` is a loop of any period.",
    "",
    (Place.METRIC,),
)
SIGNAL_NAME: Final = _attribute(
    "corevital.signal.name",
    Type.STRING,
    "A compound signal, an early warning, or a signal that could not be observed.",
    "",
    (Place.METRIC,),
)
LAYER: Final = _attribute(
    "corevital.blame.layer", Type.INT, "A zero-based layer.", "", (Place.METRIC,)
)

REQUEST_STATE: Final = _attribute(
    "corevital.continuous_batching.request.state",
    Type.STRING,
    "`active`, in batches, or `waiting` for room in one.",
    "",
    (Place.METRIC,),
)
KV_CACHE_STATE: Final = _attribute(
    "corevital.continuous_batching.kv_cache.state",
    Type.STRING,
    "`used` or `free`; blocks that are kept in case a prompt begins in the same way are used.",
    "",
    (Place.METRIC,),
)

EVENT_STEP: Final = Event("corevital.step", "One generated token.")
EVENT_LAYERS: Final = Event("corevital.layers", "Statistics of every layer over the generation.")
EVENT_PROMPT: Final = Event("corevital.prompt", "Statistics of every layer over the prompt.")

_UNIT_INTERVAL: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_BITS: Final = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)
_COST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

METRIC_RISK: Final = _metric(
    "corevital.risk.score", "histogram", "1", "Risk score of each generation.", _UNIT_INTERVAL
)
METRIC_ENTROPY: Final = _metric(
    "corevital.generation.entropy",
    "histogram",
    "bit",
    "Mean next-token entropy of each generation.",
    _BITS,
)
METRIC_SURPRISAL: Final = _metric(
    "corevital.generation.surprisal",
    "histogram",
    "bit",
    "Mean surprisal of the chosen tokens of each generation.",
    _BITS,
)
METRIC_MARGIN: Final = _metric(
    "corevital.generation.margin",
    "histogram",
    "1",
    "Mean p1 - p2 of each generation.",
    _UNIT_INTERVAL,
)
METRIC_GENERATIONS: Final = _metric(
    "corevital.generation.count", "counter", "{generation}", "Sequences generated, by capture mode."
)
METRIC_STEPS: Final = _metric(
    "corevital.step.count", "counter", "{step}", "Steps that were observed from inside."
)
METRIC_FLAGS: Final = _metric(
    "corevital.health.flag.count", "counter", "{generation}", "Generations with a health flag."
)
METRIC_SIGNALS: Final = _metric(
    "corevital.signal.count", "counter", "{generation}", "Generations with a compound signal."
)
METRIC_EARLY_WARNINGS: Final = _metric(
    "corevital.early_warning.count", "counter", "{generation}", "Generations with an early warning."
)
METRIC_BLAMED_LAYERS: Final = _metric(
    "corevital.blame.count", "counter", "{generation}", "Generations that blame a layer."
)
METRIC_INTERVENTIONS: Final = _metric(
    "corevital.intervention.count",
    "counter",
    "{generation}",
    "Sequences that CoreVital stopped early.",
)
METRIC_FAILURES: Final = _metric(
    "corevital.capture.failure.count",
    "counter",
    "{failure}",
    "Failures of CoreVital itself, by what was to be observed.",
)
METRIC_COST: Final = _metric(
    "corevital.capture.duration",
    "histogram",
    "s",
    "Time that reducing, assessing and sending took in a call of generate.",
    _COST_SECONDS,
)
METRIC_BATCHED_REQUESTS: Final = _metric(
    "corevital.continuous_batching.request.count",
    "updowncounter",
    "{request}",
    "Requests that managers of continuous batching have now, by state.",
)
METRIC_KV_CACHE_BLOCKS: Final = _metric(
    "corevital.continuous_batching.kv_cache.block.count",
    "updowncounter",
    "{block}",
    "Blocks of their key-value caches, by state.",
)
METRIC_BATCH_FILL: Final = _metric(
    "corevital.continuous_batching.batch.fill",
    "gauge",
    "1",
    "Tokens of the last batch, as a share of the most that a batch can have; 0 when idle.",
)

ATTRIBUTES: Final = tuple(_attributes.values())
EVENTS: Final = (EVENT_STEP, EVENT_LAYERS, EVENT_PROMPT)
METRICS: Final = tuple(_metrics.values())
