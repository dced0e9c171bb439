"""`secsplit keys`: identities and rosters. Private keys are written 0600 and never leave their host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secsplit.commands.console import Json, result, result_json, say

if TYPE_CHECKING:
    from channels import Identity

keys = typer.Typer(help="identities and rosters", no_args_is_help=True)
roster_app = typer.Typer(help="the signed list of who takes part", no_args_is_help=True)
keys.add_typer(roster_app, name="roster")

Passphrase = Annotated[bool, typer.Option("--passphrase", help="seal the key file with a passphrase")]


def register(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")


@keys.command("new")
def new(
    name: Annotated[str, typer.Argument(help="the party's name, as in the run file")],
    out: Annotated[Path, typer.Option("--out", help="folder for NAME.key and NAME.pub.toml")] = Path(),
    days: Annotated[float, typer.Option(help="days until it expires")] = 365,
    role: Annotated[list[str] | None, typer.Option(help="roles it may play")] = None,
    passphrase: Passphrase = False,
) -> None:
    """Make an identity: NAME.key stays here, NAME.pub.toml is for the roster's signer."""
    from channels import Identity

    secret = typer.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True) if passphrase else None
    identity = Identity.generate(name, roles=tuple(role or ()), days=days)
    out.mkdir(parents=True, exist_ok=True)
    identity.save(out / f"{name}.key", secret)
    identity.public.save(out / f"{name}.pub.toml")
    result(identity.public.fingerprint)
    say(f"private key: {out / f'{name}.key'} (never leaves this host)")
    say(f"public identity: {out / f'{name}.pub.toml'}; read its fingerprint aloud to the roster's signer")


@keys.command("show")
def show(file: Annotated[Path, typer.Argument(metavar="FILE")], as_json: Json = False) -> None:
    """Show a public identity, a private key's public half."""
    from channels import PublicIdentity

    public = PublicIdentity.load(file) if file.suffix == ".toml" else unlock(file).public
    if as_json:
        result_json({**public.fields(), "fingerprint": public.fingerprint, "expired": public.expired})
        return
    for key, value in public.fields().items():
        result(f"{key}: {value}")
    result(f"fingerprint: {public.fingerprint}")


@roster_app.command("sign")
def sign(
    publics: Annotated[list[Path], typer.Argument(metavar="NAME.pub.toml...")],
    key: Annotated[Path, typer.Option("--key", help="the signer's private key")],
    epoch: Annotated[int, typer.Option(help="rises with every new roster; leaving a party out revokes it")],
    out: Annotated[Path, typer.Option("--out")] = Path("roster.toml"),
) -> None:
    """Sign the list of parties."""
    from channels import PublicIdentity, Roster

    signer = unlock(key)
    Roster.of([PublicIdentity.load(path) for path in publics], epoch=epoch, signer=signer).save(out)
    result(str(out))
    say(f"signed by {signer.public.name}: {signer.public.fingerprint}")


def unlock(file: Path) -> Identity:
    """A private key, asking for its passphrase where it is sealed."""
    from channels import Identity, KeyFileError

    try:
        return Identity.load(file)
    except KeyFileError as error:
        if "passphrase" not in str(error):
            raise
        return Identity.load(file, typer.prompt("passphrase", hide_input=True, err=True))
