"""What the committed dashboards ask, panel by panel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[2]
FOLDER: Final = REPOSITORY / "dashboards" / "json"
FILES: Final = sorted(FOLDER.glob("*.json"))
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel; ``kind`` is the type of its data source."""

    dashboard: str
    panel: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}"

    def variables(self) -> set[str]:
        """The names of the variables in it, Grafana's own included."""
        return {first or second for first, second in _VARIABLE.findall(self.text)}

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with the values of its variables; KeyError for one that has none."""
        return _VARIABLE.sub(lambda found: values[found[1] or found[2]], self.text)


def load(path: Path) -> dict[str, Any]:
    """The dashboard in a file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels of a dashboard, without the headings of its rows."""
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel


def queries(kind: str) -> list[Query]:
    """Every query to a kind of data source, in all dashboards."""
    return [
        Query(dashboard["title"], panel["title"], kind, target.get("expr") or target["query"])
        for dashboard in map(load, FILES)
        for panel in panels(dashboard)
        if panel["datasource"]["type"] == kind
        for target in panel["targets"]
    ]


def choices(dashboard: Mapping[str, Any], variable: str) -> list[str]:
    """The fixed values of a variable."""
    (found,) = (each for each in dashboard["templating"]["list"] if each["name"] == variable)
    return str(found["query"]).split(",")
