"""Writes the dashboards as JSON that Grafana imports.

python -m dashboards.generate [--check]

``--check`` writes nothing and fails where a file is not what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.fleet_health import fleet_health
from dashboards.generation_explorer import generation_explorer
from dashboards.layer_blame import layer_blame
from dashboards.model_comparison import model_comparison

FOLDER: Final = Path(__file__).with_name("json")


def files() -> dict[Path, str]:
    """The content of every file."""
    found = {}
    for builder in (fleet_health(), generation_explorer(), model_comparison(), layer_blame()):
        dashboard = builder.build()
        for number, panel in enumerate(dashboard.panels or [], start=1):
            # Links to a panel name its number.
            panel.id_val = number
        text = JSONEncoder(sort_keys=True, indent=2).encode(dashboard)
        name = str(dashboard.title).removeprefix("CoreVital: ").lower().replace(" ", "-")
        found[FOLDER / f"{name}.json"] = text + "\n"
    return found


def main() -> None:
    """Write, or check."""
    wanted = files()
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    extra = [path for path in FOLDER.glob("*.json") if path not in wanted]
    if "--check" in sys.argv[1:]:
        if stale or extra:
            names = ", ".join(path.name for path in (*stale, *extra))
            sys.exit(f"not up to date: {names}; run python -m dashboards.generate")
        return
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    for path in extra:
        path.unlink()


if __name__ == "__main__":
    main()
