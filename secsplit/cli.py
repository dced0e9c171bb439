"""The command line: one app, whose commands every floor brings by entry point; no floor imports upward.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 gate failed or violation found, 2 usage or
configuration, 3 environment, 4 peer or network. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

import typer

app = typer.Typer(
    name="secsplit",
    help="Train split networks over encrypted links, audit what their messages give away, report it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root() -> None:
    """Privacy audit and secure channels for split learning."""


def load_commands() -> None:
    """Let every installed module of the group `secsplit.commands` register its commands."""
    for point in sorted(entry_points(group="secsplit.commands"), key=lambda point: point.name):
        point.load().register(app)


def main() -> None:
    """Run the command line; every expected error is one clear message and the right exit code."""
    # libgomp reads this when torch is loaded: default spinning makes a step many times slower beside busy neighbours
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    load_commands()
    try:
        app()
    except Exception as error:
        code = exit_code(error)
        if code is None or os.environ.get("SECSPLIT_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(code)


def exit_code(error: Exception) -> int | None:
    """The exit code of an expected error; None for one that is a defect of ours."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if type(error).__module__ == "channels.errors":
        return 3 if type(error).__name__ == "KeyFileError" else 4
    return None


if __name__ == "__main__":
    main()
