"""The page as a tagged PDF (PDF/UA-1, ISO 14289-1), by WeasyPrint, which is an extra: pip install 'secsplit[pdf]'.

It is made from the same HTML. Drawings are given their colours inside: there they do not see the page's style.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from secsplit.errors import EnvironmentFault

CSS = Path(__file__).parent / "report.css"


def pdf(html: str) -> bytes:
    """The bytes of the PDF. Raises EnvironmentFault where WeasyPrint, or what it needs, is not installed."""
    try:
        from weasyprint import HTML
        from weasyprint.urls import URLFetcher
    except (ImportError, OSError) as error:
        raise EnvironmentFault(f"--pdf: weasyprint cannot be used ({error}); pip install 'secsplit[pdf]'") from None
    only_the_page = URLFetcher(allowed_protocols=("data",), fail_on_errors=True)
    return bytes(HTML(string=coloured(html), url_fetcher=only_the_page).write_pdf(pdf_variant="pdf/ua-1"))


def coloured(html: str) -> str:
    """The page with every drawing carrying the light palette's rules itself, and with every fold open."""
    style = f"<style>{_rules()}</style>"
    return re.sub(r"(<svg [^>]*>)", rf"\g<1>{style}", html).replace("<details>", "<details open>")


@cache
def _rules() -> str:
    """The style's rules for drawings, with the light palette's values in place of their names."""
    css = CSS.read_text(encoding="utf-8")
    palette = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", css.split("@media", 1)[0]))
    rules = "".join(f"{s}{{{b}}}" for s, b in re.findall(r"(\.figure[^{},]*)\{([^}]*)\}", css) if s != ".figure")
    return re.sub(r"var\(--([\w-]+)\)", lambda match: palette[match[1]], rules.replace(".figure ", ""))
