"""What docs/metrics.md says of names, thresholds and profiles is what the code says."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import corevital.assess
from corevital import semconv
from corevital.assess import collapse, consistency, early_warning, fingerprint, signals
from corevital.assess.profile import profile_names
from corevital.assess.profile_file import parse_profile
from corevital.semconv import Attribute, Metric, Place
from docs.generate_telemetry import AREAS, STANDARD_METRICS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
PROFILES = ROOT / "src" / "corevital" / "assess" / "profiles"
TEXT = PAGE.read_text(encoding="utf-8")
NAME = re.compile(r"`((?:corevital|gen_ai)\.[a-z0-9_.]+?)(\.\*)?`")
# A number, a few words of its unit, and the name of the constant that it is.
MINUS = "\N{MINUS SIGN}"
QUOTED = re.compile(
    rf"([{MINUS}-]?\d[\d.]*(?:e\d+)?)(?: [a-z]+){{0,3}} \(`((?:[a-z_]+\.)+)([A-Z][A-Z0-9_]*)`\)"
)

# Bookkeeping of the capture is explained by docs/telemetry.md alone.
BOOKKEEPING = AREAS["What was captured"]

Row = tuple[str, ...]


def section(title: str) -> str:
    """The text of a section, without its heading."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.M)
    return str(found)


def table(text: str, first_column: str) -> Iterator[Row]:
    """The rows of the table whose first column has that heading."""
    lines = text.splitlines()
    (head,) = (at for at, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        yield tuple(cell.strip() for cell in line.strip("|").split(" | "))


def code(cell: str) -> str:
    return cell.strip().removeprefix("`").removesuffix("`")


def is_bookkeeping(name: str, places: tuple[Place, ...]) -> bool:
    return Place.SPAN in places and name.split(".")[1] in BOOKKEEPING


ENTRIES: list[Attribute | Metric] = [
    *(each for each in semconv.ATTRIBUTES if not is_bookkeeping(each.name, each.places)),
    *semconv.METRICS,
    *STANDARD_METRICS,
]
INDEX = {code(name): link for name, link in table(TEXT, "Name begins with")}


def anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


TITLES = re.findall(r"^## (.*)$", TEXT, re.M)


def indexed_section(name: str) -> str:
    """The title of the section to which the index leads from a name."""
    best = max((prefix for prefix in INDEX if name.startswith(prefix)), key=len)
    found = re.fullmatch(r"\[(.*)\]\(#(.*)\)", INDEX[best])
    assert found is not None
    assert anchor(found[1]) == found[2]
    return found[1]


# Names


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{type(entry).__name__} {entry.name}")
def test_every_name_is_explained_where_the_index_leads(entry: Attribute | Metric) -> None:
    assert f"`{entry.name}`" in section(indexed_section(entry.name))


def test_every_name_exists() -> None:
    known = {each.name for each in semconv.ATTRIBUTES} | {each.name for each in semconv.EVENTS}
    known |= {each.name for each in (*semconv.METRICS, *STANDARD_METRICS)}
    assert len(NAME.findall(TEXT)) > len(known)
    for name, is_prefix in NAME.findall(TEXT):
        if is_prefix or name.endswith("."):
            assert any(each.startswith(name) for each in known), name
        else:
            assert name in known


def test_every_prefix_of_the_index_leads_somewhere_and_begins_a_name() -> None:
    names = [entry.name for entry in ENTRIES]
    for prefix in INDEX:
        assert indexed_section(prefix) in TITLES
        assert any(name.startswith(prefix) for name in names), prefix


def test_links_to_other_sections_and_files_lead_somewhere() -> None:
    anchors = {anchor(title) for title in TITLES}
    for target in re.findall(r"\]\(([^)]*)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (PAGE.parent / target.partition("#")[0]).is_file(), target


# Thresholds


def quoted() -> dict[tuple[str, str], set[str]]:
    """Every number that is quoted with a name, by module and name."""
    found: dict[tuple[str, str], set[str]] = {}
    for number, module, name in QUOTED.findall(" ".join(TEXT.split())):
        found.setdefault((module.removesuffix("."), name), set()).add(number)
    return found


@pytest.mark.parametrize(("module", "name"), sorted(quoted()), ids=str)
def test_a_quoted_threshold_is_that_of_the_code(module: str, name: str) -> None:
    constant = getattr(importlib.import_module(f"corevital.{module}"), name)
    assert {float(each.replace(MINUS, "-")) for each in quoted()[module, name]} == {constant}


def test_no_threshold_is_named_without_its_number() -> None:
    names = re.findall(r"`((?:[a-z_]+\.)+)([A-Z][A-Z0-9_]*)`", TEXT)
    assert {(module.removesuffix("."), name) for module, name in names} == set(quoted())


def assess_modules() -> list[ModuleType]:
    names = [each.name for each in pkgutil.iter_modules(corevital.assess.__path__)]
    return [importlib.import_module(f"corevital.assess.{name}") for name in names]


def own_numbers(module: ModuleType) -> set[str]:
    """Public constants that are numbers and that the module itself defines."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assigned = re.findall(r"^([A-Z][A-Z0-9_]*)(?:: Final)? = ", source, re.M)
    return {name for name in assigned if isinstance(getattr(module, name), int | float)}


@pytest.mark.parametrize("module", assess_modules(), ids=lambda module: module.__name__)
def test_every_threshold_of_the_assessment_is_quoted(module: ModuleType) -> None:
    path = module.__name__.removeprefix("corevital.")
    assert {name for name in own_numbers(module) if (path, name) not in quoted()} == set()


def test_the_search_for_thresholds_finds_them() -> None:
    assert ("record", "LAGS") in quoted()
    assert {"MODERATE_RISE", "CATASTROPHIC_RATE"} <= own_numbers(collapse)


# Tables


@pytest.mark.parametrize(
    ("title", "first_column", "severities"),
    [
        ("Compound signals", "Signal", signals.SEVERITY),
        ("Early warning", "Warning", early_warning.SEVERITY),
    ],
)
def test_severities(title: str, first_column: str, severities: dict[str, float]) -> None:
    rows = table(section(title), first_column)
    assert {code(name): float(severity) for name, severity, *_ in rows} == severities


def test_elements_of_the_fingerprint() -> None:
    rows = list(table(section("Fingerprint"), "Element"))
    assert [int(row[0]) for row in rows] == list(range(25))
    assert tuple(code(row[1]) for row in rows) == fingerprint.NAMES


def test_consistency_checks() -> None:
    rules = {
        value
        for name, value in vars(consistency).items()
        if name.isupper() and isinstance(value, str)
    }
    assert {code(row[0]) for row in table(section("Consistency checks"), "Violation")} == rules


def test_profiles() -> None:
    rows = list(table(section("Model profiles"), "Profile"))
    assert tuple(code(row[0]) for row in rows) == profile_names()
    for name, l2_multiplier, high_entropy_bits, repetition_cosine, families, source in rows:
        content = (PROFILES / f"{code(name)}.toml").read_bytes()
        file = parse_profile(content)
        assert file.thresholds == {
            "l2_multiplier": float(l2_multiplier),
            "high_entropy_bits": float(high_entropy_bits),
            "repetition_cosine": float(repetition_cosine),
        }
        documented = () if families == "all others" else families.split(", ")
        assert tuple(code(family) for family in documented) == file.families
        is_published = b"Source: the published CoreVital profiles" in content
        assert source == ("published" if is_published else "default's")
