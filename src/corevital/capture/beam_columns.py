"""Turns what a beam search left on the device into columns, one set per returned sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from corevital.capture.beam_paths import BeamPaths
from corevital.capture.beam_run import BeamRun
from corevital.capture.columns import LayerColumns, RunColumns, collect_rows
from corevital.capture.transfer import to_host

_T = TypeVar("_T", bound=np.generic)


def collect_beams(run: BeamRun) -> RunColumns | None:
    """The columns along the rows that the sequences of a finished run went along.

    ``None`` when it returned none, or when it is not known which rows they are.
    """
    paths = run.paths
    if paths is None or run.input_ids is None:
        return None
    ids = run.input_ids.cpu().numpy()
    prompts, tokens = ids[:, : run.prompt_length], ids[:, run.prompt_length :]
    answers = len(ids) // (int(paths.groups[-1]) + 1)
    rows = np.arange(len(ids) // answers * run.beams)
    by_row = collect_rows(
        run,
        prompts[rows // run.beams * answers],
        np.empty((len(rows), 0), dtype=np.int64),
        None,
    )
    # All beams of a group begin with its prompt.
    first = paths.groups * run.beams
    lag_cosine, last_layer_cosine = by_row.lag_cosine, by_row.last_layer_cosine
    return replace(
        by_row,
        token_ids=tokens,
        prompt_tokens=by_row.prompt_tokens[first],
        prompt_ids=tuple(by_row.prompt_ids[row] for row in first),
        logits=_logits(run, paths),
        hidden=_along(by_row.hidden, paths),
        last_layer_cosine=None if last_layer_cosine is None else _at(last_layer_cosine, paths),
        lag_cosine=None if lag_cosine is None else _at(lag_cosine, paths),
        attention=_along(by_row.attention, paths),
        previous_token=_along(by_row.previous_token, paths),
        prompt=tuple(by_row.prompt[row] for row in first),
        cross_attention=_along(by_row.cross_attention, paths),
        encoder=None if by_row.encoder is None else tuple(by_row.encoder[row] for row in first),
        lengths=paths.steps,
        tied=paths.tied,
    )


def _logits(run: BeamRun, paths: BeamPaths) -> NDArray[np.float32] | None:
    """``[4, S, R]``."""
    distributions, surprisal = run.logit_columns(), run.candidate_surprisal()
    if distributions is None or surprisal is None:
        return None
    steps = np.arange(paths.rows.shape[1])[:, None]
    entropy, margin, mass = to_host(distributions)[:, steps, paths.rows.T]
    chosen = to_host(surprisal)[steps, paths.groups, paths.candidates.T]
    return np.stack((entropy, chosen, margin, mass))


def _along(columns: LayerColumns | None, paths: BeamPaths) -> LayerColumns | None:
    if columns is None:
        return None
    values = _at(np.moveaxis(columns.values, (1, 3), (0, 1)), paths)
    steps = paths.rows.shape[1]
    return LayerColumns(
        columns.layers, np.moveaxis(values, (0, 1), (1, 3)), columns.observed[:steps]
    )


def _at(by_step: NDArray[_T], paths: BeamPaths) -> NDArray[_T]:
    """Values ``[S, R, ...]`` along the paths, of ``[T, rows, ...]``."""
    steps = np.arange(paths.rows.shape[1])[:, None]
    return by_step[steps, paths.rows.T]
