"""The page in a real browser: accessible by axe-core in light and dark, whole without a network, no wider than a phone.

Chromium with chromedriver, and axe-core from npm, are needed; where they are not there these tests are skipped, unless
SECSPLIT_BROWSER=1 says that they must be (continuous integration says so).
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from audits.finished import Finished
from audits.policy import load
from audits.privacy import Audit
from audits.report.assemble import report_of
from audits.report.write import write
from tests.audits.npm import installed, missing

pytestmark = pytest.mark.timeout(900)
PATIENCE = 300  # seconds
AXE = "axe-core@4.10.3"
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
POLICY = Path(__file__).parents[3] / "examples" / "policy.toml"


@pytest.fixture(scope="module")
def html(finished: Finished, audited: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write(report_of(finished, audited, policy=load(POLICY)), folder)[2]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing("Chromium and chromedriver are not installed")
    options = Options()
    options.binary_location = str(chromium)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_script_timeout(PATIENCE)  # a machine that does much else at once is no fault of the page
    chrome.set_page_load_timeout(PATIENCE)
    chrome.execute_cdp_cmd("Network.enable", {})
    chrome.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return (installed(AXE, tmp_path_factory.mktemp("axe")) / "axe-core" / "axe.min.js").read_text()


def shown(browser: webdriver.Chrome, page: Path, *, scheme: str = "light", media: str = "", width: int = 1100) -> None:
    browser.set_window_size(width, 900)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(page.as_uri())


def violations(browser: webdriver.Chrome, axe: str) -> list[str]:
    browser.execute_script(axe)
    found: dict[str, Any] = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations'], iframes: false})"
        ".then(found => done(found), e => done({violations: [{id: String(e)}]}))"
    )
    return [f"{v['id']}: {json.dumps([n['html'][:120] for n in v.get('nodes', [])][:3])}" for v in found["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(browser: webdriver.Chrome, html: Path, axe: str, scheme: str) -> None:
    shown(browser, html, scheme=scheme)
    assert violations(browser, axe) == []


def test_axe_would_have_found_it(browser: webdriver.Chrome, html: Path, axe: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(html.read_text().replace(' lang="en"', "").replace("--fg:#1b1f24", "--fg:#c9c9c9"))
    shown(browser, broken)
    assert {"html-has-lang", "color-contrast"} <= {found.split(":")[0] for found in violations(browser, axe)}


@pytest.mark.parametrize("width", [380, 1100])
def test_no_page_is_wider_than_its_window(browser: webdriver.Chrome, html: Path, width: int) -> None:
    shown(browser, html, width=width)
    inner, content = browser.execute_script("return [window.innerWidth, document.documentElement.scrollWidth]")
    assert content <= inner


def test_all_of_it_is_there_without_a_network(browser: webdriver.Chrome, html: Path) -> None:
    shown(browser, html)
    broken, images, figures = browser.execute_script(
        "const all = [...document.images];"
        "return [all.filter(i => !i.complete || !i.naturalWidth).length, all.length,"
        " [...document.querySelectorAll('svg.figure')].filter(s => s.getBoundingClientRect().height > 20).length]"
    )
    assert broken == 0
    assert images == 8 * 5
    assert figures >= 4


def test_it_prints_black_on_white_without_its_contents_list(browser: webdriver.Chrome, html: Path) -> None:
    shown(browser, html, scheme="light", media="print")
    nav, background = browser.execute_script(
        "return [getComputedStyle(document.querySelector('nav')).display,"
        " getComputedStyle(document.documentElement).backgroundColor]"
    )
    assert nav == "none"
    assert background == "rgb(255, 255, 255)"
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
