"""The files of a report: report.json, its schema, and report.html, which is made from the JSON and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audits.report.model import Report
from audits.report.page import page
from secsplit.rundir import write_atomically

JSON, SCHEMA, HTML = "report.json", "report.schema.json", "report.html"


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `report.json`."""
    made = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "secsplit-report-1.0", **made}


def write(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.schema.json and report.html; the page is rendered from the JSON as written."""
    text = report.model_dump_json(indent=1)
    files = {JSON: text, SCHEMA: json.dumps(schema(), indent=1), HTML: page(json.loads(text))}
    for name, content in files.items():
        write_atomically(folder / name, content.encode())
    return tuple(folder / name for name in files)
