"""Draws how well probabilities of failure hold; needs matplotlib."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from corevital.calibration.quality import Failures, Scores, quality, reliability
from corevital.calibration.wilson import wilson_interval

# Of the palette by Okabe and Ito, which people with any colour vision can tell apart.
_CALIBRATED: Final = "#0072B2"
_HEURISTIC: Final = "#D55E00"
_QUIET: Final = "#555555"
_GRID: Final = "#dddddd"

_INCHES: Final = (6.4, 7.2)
_DOTS_PER_INCH: Final = 150
_BARS: Final = 20


def reliability_figure(
    model: str, failed: Failures, calibrated: Scores, heuristic: Scores
) -> Figure:
    """A reliability diagram of held-out runs (DeGroot and Fienberg 1983, doi:10.2307/2987588).

    Above, the share of runs that failed against the probability that was said, in bins of equally
    many runs, with 95 % intervals; on the diagonal, what was said is what happened. Below, how many
    runs got which probability.

    Args:
        model: its name.
        failed: whether each run failed, ``[N]``.
        calibrated: its probability of failure, from a fit without it, ``[N]``.
        heuristic: the published heuristic's score, read as if it were a probability, ``[N]``.
    """
    figure = Figure(figsize=_INCHES, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _curve(above, "calibrated", _CALIBRATED, "o-", calibrated, failed)
    _curve(above, "published heuristic", _HEURISTIC, "s--", heuristic, failed)
    above.plot((0, 1), (0, 1), color=_QUIET, linestyle=":", label="what was said is what happened")
    above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share of runs that failed")
    above.yaxis.set_major_formatter(PercentFormatter(1.0))
    edges = np.linspace(0.0, 1.0, _BARS + 1)
    below.hist(calibrated, edges, color=_CALIBRATED, edgecolor="white", linewidth=0.5)
    below.hist(heuristic, edges, color=_HEURISTIC, histtype="step", linestyle="--", linewidth=1.5)
    below.set(xlabel="probability of failure that was said", ylabel="runs")
    below.xaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    # A model's name may hold what would be read as a formula.
    figure.suptitle(f"{model}: probability of failure", parse_math=False)
    above.set_title(
        f"{_summary(calibrated, failed)}\n"
        f"{len(failed)} held-out runs, {failed.sum()} failed; bars are 95 % intervals",
        fontsize="small",
        color=_QUIET,
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=_DOTS_PER_INCH)
    return image.getvalue()


def _curve(
    axes: Axes, name: str, colour: str, style: str, scores: Scores, failed: Failures
) -> None:
    said, found, count = reliability(scores, failed)
    low, high = wilson_interval(found, count)
    axes.errorbar(
        said,
        found,
        # Rounding may put an end that is the share itself on the wrong side of it.
        yerr=np.stack((found - low, high - found)).clip(0.0),
        fmt=style,
        color=colour,
        markersize=5,
        linewidth=1.5,
        elinewidth=1,
        capsize=2.5,
        label=name,
    )


def _summary(probabilities: Scores, failed: Failures) -> str:
    found = quality(probabilities, failed, probabilities=True)
    return f"calibrated: AUROC {found.auroc:.3f}, ECE {found.ece:.3f}, Brier {found.brier:.3f}"
