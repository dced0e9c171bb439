"""Reading a page as a browser would, to hold everything with a digit against the place in the JSON that it names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from audits.report.value import STYLES, shown

VOID = {"meta", "br", "img", "path", "line", "rect", "circle", "link", "input"}


class Reader(HTMLParser):
    """Tags with attributes, and the text by the tags it stands in, outermost first."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[tuple[str, dict[str, str | None]], ...], str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))


def resolved(value: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def forms(value: Any) -> set[str]:
    """The ways in which a value of the JSON may be printed."""
    if isinstance(value, str | dict):
        return {value} if isinstance(value, str) else set(value)
    assert isinstance(value, int | float)
    return {shown(value, style) for style in STYLES}


def misplaced(value: Any, html: str) -> list[str]:
    """Everything with a digit that is not what lies at the place it names, or names none."""
    wrong = []
    for stack, text in Reader(html).texts:
        if not re.search(r"\d", text) or {"style", "title"} & {tag for tag, _ in stack}:
            continue
        classes = {name for _, attrs in stack for name in (attrs.get("class") or "").split()}
        if classes & {"ordinal", "tick"}:  # the number of a section; the scale of a drawing
            continue
        key = stack[-1][1].get("data-key")
        if key is None:
            wrong.append(text)
            continue
        known = forms(resolved(value, key))
        if "beginning" in classes:
            known = {form[: len(text)] for form in known if len(text) >= 16}
        if text not in known:
            wrong.append(f"{key}: {text}")
    return wrong


def unsaid(value: Any, html: str) -> list[str]:
    """The words of drawings whose digits are not, in order, what lies at the places they name."""
    wrong = []
    for tag, attrs in Reader(html).tags:
        if tag != "svg":
            continue
        label, at, rest = attrs["aria-label"] or "", 0, ""
        for key in (attrs["data-keys"] or "").split():
            found = [
                (place, -len(form)) for form in forms(resolved(value, key)) if (place := label.find(form, at)) >= 0
            ]
            place, length = min(found, default=(-1, 0))
            if place < 0:
                wrong.append(f"{key} is not in {label[at:]!r}")
                break
            rest += label[at:place]
            at = place - length
        wrong += re.findall(r"\S*\d\S*", rest + label[at:])
    return wrong
