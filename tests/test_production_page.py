"""What docs/production.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "production.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    headings = re.findall(r"^## (.*)$", TEXT, re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}

    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (PAGE.parent / target.partition("#")[0]).exists(), target


def test_its_alerts_are_those_of_the_rules() -> None:
    rules = (ROOT / "collector-config" / "prometheus-rules.yaml").read_text()

    assert set(re.findall(r"`(CoreVital\w+)`", TEXT)) == set(re.findall(r"alert: (\w+)", rules))


def test_its_configuration_is_yaml_whose_parts_fit_together() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    found = yaml.safe_load(block)

    for pipeline in found["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= found[kind].keys()


def test_its_sizes_are_those_that_were_measured() -> None:
    measured = (ROOT / "benchmarks" / "results" / "wire.md").read_text()
    rows = re.findall(r"^\| (`\w+`, `\w+`) +\| +(\d+) \|(.*)\|$", TEXT, re.M)
    known = {
        (way, tokens): [each.strip() for each in values.split("|")]
        for way, tokens, values in re.findall(
            r"^\| (`\w+`, `\w+`) +\| +(\d+) \|(.*)\|$", measured, re.M
        )
    }

    assert len(rows) >= 6
    for way, tokens, values in rows:
        span, records, together, _, _, compressed, _ = known[way, tokens]
        quoted = [each.strip() for each in values.split("|")]
        assert quoted == [span, records, together, compressed]
