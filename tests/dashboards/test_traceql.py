"""Every TraceQL query is one that Grafana can read, about attributes that spans can have."""

from __future__ import annotations

import pytest

from corevital import semconv
from corevital.semconv import Place
from docs.generate_telemetry import STANDARD_ATTRIBUTES
from tests.dashboards.grammar import Comparison, Parsed, parse
from tests.dashboards.panels import REPOSITORY, Query, choices, load, queries

TYPES = {each.name: each.type.value for each in semconv.ATTRIBUTES if Place.SPAN in each.places}
TYPES |= {each.name: each.type.value for each in STANDARD_ATTRIBUTES}
EXPLORER = load(REPOSITORY / "dashboards" / "json" / "generation-explorer.json")
FIXED = {name: choices(EXPLORER, name) for name in ("risk", "flag", "signal", "warning")}
TYPED = {"service": [".*", "chat|batch"], "model": [".*"], "layer": ["0"], "prompt": [".*", "0a1b"]}


def filled() -> list[tuple[Query, str]]:
    """Every query with every value that each variable offers."""
    values = FIXED | TYPED
    first = {name: each[0] for name, each in values.items()}
    return [
        (query, query.filled(first | {name: value}))
        for query in queries("tempo")
        for name in sorted(query.variables())
        for value in values[name]
    ]


@pytest.fixture(scope="module")
def parsed() -> list[tuple[str, Parsed]]:
    asked = [text for _, text in filled()]
    return list(zip(asked, parse(asked), strict=True))


def test_there_are_queries() -> None:
    assert len(queries("tempo")) >= 8


def test_every_query_parses(parsed: list[tuple[str, Parsed]]) -> None:
    assert [text for text, found in parsed if found.errors] == []


def test_every_attribute_is_one_of_spans(parsed: list[tuple[str, Parsed]]) -> None:
    named = {name for _, found in parsed for name in found.attributes}

    assert named - TYPES.keys() == set()
    assert semconv.RISK_SCORE in named


def test_attributes_are_compared_with_literals_of_their_type(
    parsed: list[tuple[str, Parsed]],
) -> None:
    # Tempo keeps whole and other numbers apart: 0 does not find what 0.0 finds. Of an array it
    # compares the elements.
    compared = {each for _, found in parsed for each in found.comparisons}

    for each in compared:
        assert each.type == TYPES[each.attribute].removesuffix("[]"), each
    assert {each.attribute for each in compared} >= {
        semconv.RISK_SCORE,
        semconv.SIGNAL_NAMES,
        semconv.BLAME_LAYERS,
        *FIXED["flag"],
    }


def test_the_grammar_finds_faults() -> None:
    broken, whole = parse(["{ span.corevital.risk.score >= }", "{ span.corevital.risk.score > 1 }"])

    assert broken.errors
    assert not whole.errors
    assert whole.comparisons == [Comparison(semconv.RISK_SCORE, ">", "int")]
