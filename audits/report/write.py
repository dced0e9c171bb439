"""The files of a report: report.json, its schema, and the page, model card and DPIA fields made from the JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audits.report.model import Report
from audits.report.page import document, page
from audits.report.pdf import pdf
from secsplit.rundir import write_atomically

JSON, SCHEMA, HTML, PDF = "report.json", "report.schema.json", "report.html", "report.pdf"
CARD, DPIA = "MODEL_CARD.md", "dpia.md"


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `report.json`."""
    made = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "secsplit-report-1.0", **made}


def write(report: Report, folder: Path, *, as_pdf: bool = False) -> tuple[Path, ...]:
    """Write the report's files; page, model card and DPIA fields are rendered from the JSON as written.

    Raises EnvironmentFault where a PDF is asked for and WeasyPrint is not installed.
    """
    text = report.model_dump_json(indent=1)
    value = json.loads(text)
    files = {JSON: text.encode(), SCHEMA: json.dumps(schema(), indent=1).encode(), HTML: page(value).encode()}
    files |= {CARD: document("model_card", value).encode(), DPIA: document("dpia", value).encode()}
    if as_pdf:
        files[PDF] = pdf(files[HTML].decode())
    for name, content in files.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in files)
