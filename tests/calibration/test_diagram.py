"""The diagram shows what was said and what happened; read from what was drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from corevital.calibration.diagram import png, reliability_figure
from corevital.calibration.quality import brier, ece, reliability
from corevital.calibration.wilson import wilson_interval

RUNS = 400
MODEL = "Model_with$signs$_7B"

_random = np.random.default_rng(0)
CALIBRATED = _random.uniform(0.01, 0.99, RUNS)
FAILED = _random.random(RUNS) < CALIBRATED
HEURISTIC = np.round(_random.uniform(0.2, 0.6, RUNS), 1)


@pytest.fixture
def figure() -> Figure:
    return reliability_figure(MODEL, FAILED, CALIBRATED, HEURISTIC)


def curve(axes: Axes, name: str) -> ErrorbarContainer:
    found = [each for each in axes.containers if each.get_label() == name]
    assert len(found) == 1
    assert isinstance(found[0], ErrorbarContainer)
    return found[0]


@pytest.mark.parametrize(
    ("name", "scores"), [("calibrated", CALIBRATED), ("published heuristic", HEURISTIC)]
)
def test_each_bin_is_a_point_with_its_interval(
    figure: Figure, name: str, scores: np.ndarray
) -> None:
    line, _, (bars,) = curve(figure.axes[0], name)
    said, found, count = reliability(scores, FAILED)
    low, high = wilson_interval(found, count)

    assert np.array(line.get_xydata()) == pytest.approx(np.column_stack((said, found)))
    drawn = np.array(bars.get_segments())
    assert drawn[:, :, 0] == pytest.approx(np.column_stack((said, said)))
    assert drawn[:, :, 1] == pytest.approx(np.column_stack((low, high)))


def test_the_diagonal_is_what_a_perfect_score_would_be(figure: Figure) -> None:
    diagonal = figure.axes[0].get_lines()[-1]

    assert np.array(diagonal.get_xydata()).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_the_histogram_counts_every_run_once(figure: Figure) -> None:
    below = figure.axes[1]
    (bars,) = (each for each in below.containers if isinstance(each, BarContainer))
    heights = [bar.get_height() for bar in bars]

    assert heights == np.histogram(CALIBRATED, len(heights), (0.0, 1.0))[0].tolist()
    assert sum(heights) == RUNS
    outline = next(each for each in below.patches if each not in bars.patches)
    highest = np.asarray(outline.get_path().vertices)[:, 1].max()
    assert highest == np.unique(HEURISTIC, return_counts=True)[1].max()


def test_the_title_says_of_what_and_how_good(figure: Figure) -> None:
    above = figure.axes[0].get_title()

    assert MODEL in figure.get_suptitle()
    assert f"{RUNS} held-out runs, {FAILED.sum()} failed" in above
    assert f"ECE {ece(CALIBRATED, FAILED):.3f}, Brier {brier(CALIBRATED, FAILED):.3f}" in above
    assert "AUROC 0." in above


def test_axes_are_labelled_and_every_curve_is_in_the_legend(figure: Figure) -> None:
    above, below = figure.axes

    assert above.get_ylabel() == "share of runs that failed"
    assert below.get_xlabel() == "probability of failure that was said"
    assert below.get_ylabel() == "runs"
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "calibrated",
        "published heuristic",
        "what was said is what happened",
    }


def test_the_png_is_an_image_with_both_colours_and_needs_no_display(
    figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    pixels = image.imread(io.BytesIO(png(figure)), format="png")

    assert pixels.shape == (1080, 960, 4)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        same = np.isclose(pixels[:, :, :3] * 255, colour, atol=0.6).all(axis=-1)
        assert same.sum() > 100


def test_scores_that_are_all_equal_can_be_drawn() -> None:
    made = reliability_figure("m", FAILED, np.full(RUNS, 0.5), np.zeros(RUNS))

    assert len(curve(made.axes[0], "published heuristic")[0].get_xdata()) == 1
    assert png(made).startswith(b"\x89PNG")
