"""What can be typed after ``corevital``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from corevital.cli.errors import USAGE
from corevital.record import CaptureMode
from corevital.version import __version__

DEFAULT_MAX_NEW_TOKENS: Final = 128
DEFAULT_TRACE_FILE: Final = "corevital-traces.jsonl"

_DESCRIPTION: Final = """\
Shows the health of text generation with Hugging Face transformers: how sure the
model was of every token, what its layers and attention heads did, and the risk
that follows from it, as OpenTelemetry traces, metrics and logs."""

_EPILOG: Final = """\
examples:
  corevital run --model HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Why is the sky blue?"
  corevital run --model ./model.gguf --prompt "Tell a story." --temperature 0.8 --seed 1
  corevital run --model gpt2 --prompt "Once" --otlp-endpoint http://localhost:4317
  corevital run --model gpt2 --prompt "Once" --json | jq .risk
  corevital calibrate --model gpt2 --prompts prompts.txt --out gpt2.baseline.json
  corevital calibrate-risk --model gpt2 --labels labels.jsonl --out gpt2.risk.json

Own code needs no command: see corevital.CoreVitalInstrumentor, or run it with
opentelemetry-instrument."""

_RUN_DESCRIPTION: Final = """\
Generates one text, prints it as it comes, and shows the run's health: the risk
and what makes it up, health flags, compound signals, the entropy of every token,
the layers at fault, and where the trace went."""

_RUN_EPILOG: Final = """\
The standard OpenTelemetry variables apply: OTEL_EXPORTER_OTLP_ENDPOINT (or
..._TRACES_ENDPOINT and so on), OTEL_EXPORTER_OTLP_PROTOCOL (grpc, http/protobuf),
OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES. So do
CoreVital's own, COREVITAL_*, which say how much is observed and sent.

exit status:
  0 done, 1 failed or the telemetry did not arrive, 2 wrong usage, 130 interrupted"""

_CALIBRATE_DESCRIPTION: Final = """\
Runs prompts that the model answers well, and writes what is normal for it: the
distributions of entropy, margin and surprisal, and of L2 norms, attention entropy
and collapsed heads of every layer. Runs that are compared with it later show how
far they are from that, and where. Runs with NaN or Inf, a repetition or an error
are reported and left out. At least 10 have to remain; 40 or more are better."""

_CALIBRATE_EPILOG: Final = """\
A command that was interrupted goes on where it stopped when it is given again:
FILE.partial.jsonl, beside the output, keeps what is done until then.

example:
  corevital calibrate --model gpt2 --prompts prompts.txt --out gpt2.baseline.json
  corevital run --model gpt2 --prompt "Once" --calibration gpt2.baseline.json

exit status:
  0 done, 1 failed, 2 wrong usage, 130 interrupted"""

_CALIBRATE_RISK_DESCRIPTION: Final = """\
Runs prompts whose answers are known, and learns how runs of the model that fail
differ from the others: afterwards corevital.risk.score is the probability that a
generation failed. Compares that, on prompts it was not fitted to, with simpler
scores; prints the result, and draws a reliability diagram. If a simpler score
ranks as well, nothing is written.

A line of the labels is an object: a "prompt" or "messages", and either "answers",
of which one has to be in the text, or "failed", whether the text that the same
command generates is a failure:

  {"prompt": "What is 7 + 5?", "answers": ["12", "twelve"]}
  {"messages": [{"role": "user", "content": "Write a haiku."}], "failed": true}

At least 100 runs, 20 that failed and 20 that did not, have to remain; several
hundred are better. Needs: pip install "corevital[calibrate]"."""

_CALIBRATE_RISK_EPILOG: Final = """\
A command that was interrupted, or did not write, goes on where it stopped when it
is given again: FILE.partial.jsonl, beside the output, keeps what every run gave
until then, its text too. Labels may be changed in between, prompts may not.

example:
  corevital calibrate-risk --model gpt2 --labels labels.jsonl --out gpt2.risk.json
  corevital run --model gpt2 --prompt "Once" --calibration gpt2.risk.json

exit status:
  0 done, 1 failed or a simpler score ranks as well, 2 wrong usage, 130 interrupted"""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen; ``None`` is what was not said."""

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class RunOptions(Decoding):
    """What ``corevital run`` was asked for; ``None`` is what was not said."""

    model: str
    prompt: str
    device: str
    capture: CaptureMode | None
    otlp_endpoint: str | None
    trace_file: str
    calibration: list[str] | None
    json: bool
    svg: str | None
    debug: bool


@dataclass(frozen=True, slots=True)
class PromptRunsOptions(Decoding):
    """What every command that runs many prompts was asked for; ``None`` is what was not said.

    ``prompts`` is the file that has them.
    """

    model: str
    prompts: str
    out: str
    limit: int | None
    restart: bool
    device: str
    debug: bool


@dataclass(frozen=True, slots=True)
class CalibrateOptions(PromptRunsOptions):
    """What ``corevital calibrate`` was asked for."""


@dataclass(frozen=True, slots=True)
class CalibrateRiskOptions(PromptRunsOptions):
    """What ``corevital calibrate-risk`` was asked for."""

    diagram: str | None
    force: bool


Options = RunOptions | CalibrateOptions | CalibrateRiskOptions

_OPTIONS: Final[dict[str, type[Options]]] = {
    "run": RunOptions,
    "calibrate": CalibrateOptions,
    "calibrate-risk": CalibrateRiskOptions,
}


def parse(argv: Sequence[str] | None) -> Options:
    """The options of the command line, by default this process's.

    Raises:
        SystemExit: the usage is wrong, or help or the version was asked for and has been printed.
    """
    given = vars(_parser().parse_args(argv))
    return _OPTIONS[given.pop("command")](**given)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="corevital",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"corevital {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    _add_run(
        commands.add_parser(
            "run",
            help="generate one text and show its health",
            description=_RUN_DESCRIPTION,
            epilog=_RUN_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_calibrate(
        commands.add_parser(
            "calibrate",
            help="learn from healthy runs what is normal for a model",
            description=_CALIBRATE_DESCRIPTION,
            epilog=_CALIBRATE_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_calibrate_risk(
        commands.add_parser(
            "calibrate-risk",
            help="learn from labelled runs how likely a run of a model failed",
            description=_CALIBRATE_RISK_DESCRIPTION,
            epilog=_CALIBRATE_RISK_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="ID_OR_PATH",
        type=_non_empty,
        help="model of the Hugging Face Hub, local folder, or .gguf file "
        '(which needs: pip install "corevital[gguf]")',
    )


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        type=_non_empty,
        help='prompts, one a line; in a .jsonl file, objects such as {"prompt": "Hi"} or '
        '{"messages": [{"role": "user", "content": "Hi"}]}',
    )
    _add_prompt_runs(parser, out="the baseline")
    _add_decoding(parser.add_argument_group("decoding"))
    _add_debug(parser.add_argument_group("output"))


def _add_calibrate_risk(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--labels",
        dest="prompts",
        required=True,
        metavar="FILE",
        type=_non_empty,
        help="prompts with accepted answers or labels, a JSON object a line",
    )
    _add_prompt_runs(parser, out="the risk calibration")
    parser.add_argument(
        "--diagram",
        type=_non_empty,
        metavar="FILE",
        help="where the reliability diagram is drawn, as PNG (default: beside the output)",
    )
    parser.add_argument(
        "--force", action="store_true", help="write even if a simpler score ranks as well"
    )
    _add_decoding(parser.add_argument_group("decoding"))
    _add_debug(parser.add_argument_group("output"))


def _add_prompt_runs(parser: argparse.ArgumentParser, out: str) -> None:
    """Options of every command that runs many prompts and writes ``out``."""
    parser.add_argument(
        "--out", required=True, metavar="FILE", type=_non_empty, help=f"where {out} is written"
    )
    parser.add_argument(
        "--limit", type=_integer(1), metavar="N", help="use only the first N prompts"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="begin anew instead of going on where an interrupted command stopped",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--prompt",
        required=True,
        metavar="TEXT",
        type=_non_empty,
        help="what to answer or continue; goes through the model's chat template if it has one",
    )
    _add_decoding(parser.add_argument_group("decoding"))
    _add_observation(parser.add_argument_group("observation"))
    _add_output(parser.add_argument_group("output"))


def _add_decoding(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-new-tokens",
        type=_integer(1),
        default=DEFAULT_MAX_NEW_TOKENS,
        metavar="N",
        help="longest text, in tokens (default: %(default)s)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs (default: cuda if there is one, else cpu)",
    )
    group.add_argument(
        "--temperature",
        type=_number("above 0", lambda value: value > 0.0),
        metavar="T",
        help="sample at this temperature; without this, --top-k and --top-p decoding is greedy",
    )
    group.add_argument(
        "--top-k", type=_integer(1), metavar="K", help="sample from the K likeliest tokens"
    )
    group.add_argument(
        "--top-p",
        type=_number("above 0 and at most 1", lambda value: 0.0 < value <= 1.0),
        metavar="P",
        help="sample from the likeliest tokens whose probabilities sum to P",
    )
    group.add_argument(
        "--seed", type=_integer(0, 2**32 - 1), metavar="N", help="make sampling repeatable"
    )


def _add_observation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--capture",
        type=_capture_mode,
        metavar="{" + ",".join(mode.value for mode in CaptureMode) + "}",
        help="how much is observed: every layer and the prompt, logits and the last layer, that "
        "until something looks wrong, or timing only (default: COREVITAL_CAPTURE, else full)",
    )
    group.add_argument(
        "--otlp-endpoint",
        type=_non_empty,
        metavar="URL",
        help="send traces, metrics and logs there, over gRPC, or over HTTP for port 4318 or an "
        "address with a path (default: OTEL_EXPORTER_OTLP_ENDPOINT, else spans go to a file)",
    )
    group.add_argument(
        "--trace-file",
        type=_non_empty,
        default=DEFAULT_TRACE_FILE,
        metavar="FILE",
        help="where spans are appended, as OTLP/JSON lines, when there is no endpoint "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--calibration",
        type=_non_empty,
        metavar="FILE",
        action="append",
        help="compare with this calibration, made for the same model; may be given again "
        "(default: COREVITAL_CALIBRATION)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json", action="store_true", help="print one JSON object instead of text and report"
    )
    group.add_argument("--svg", type=_non_empty, metavar="FILE", help="also draw the report as SVG")
    _add_debug(group)


def _add_debug(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--debug", action="store_true", help="show tracebacks and libraries' logs")


def _non_empty(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _capture_mode(text: str) -> CaptureMode:
    try:
        return CaptureMode(text)
    except ValueError:
        accepted = ", ".join(CaptureMode)
        raise argparse.ArgumentTypeError(f"{text!r} is none of {accepted}") from None


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    accepted = f"from {least} to {most}" if most is not None else f"of at least {least}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {accepted}")
        return value

    return convert


def _number(accepted: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and accepts(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {accepted}")
        return value

    return convert
