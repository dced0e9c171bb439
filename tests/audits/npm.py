"""Tools that come from npm, for tests that ask another implementation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def missing(what: str) -> None:
    """Skip, or fail where SECSPLIT_BROWSER says that the tools must be there, as continuous integration does."""
    if os.environ.get("SECSPLIT_BROWSER"):
        pytest.fail(f"SECSPLIT_BROWSER is set, and {what}")
    pytest.skip(what)


def installed(package: str, folder: Path) -> Path:
    """The node_modules with that package in it."""
    npm = shutil.which("npm")
    if npm is None:
        missing("npm is not installed")
    command = [str(npm), "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), package]
    if subprocess.run(command, capture_output=True, timeout=400, check=False).returncode:
        missing(f"npm cannot install {package}")
    return folder / "node_modules"
