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

Book = Annotated[Path, typer.Option("--book", help="folder that remembers the invites given, and who came by them")]


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


@roster_app.command("add")
def add(
    roster: Annotated[Path, typer.Argument(metavar="ROSTER.toml", help="replaced by its next epoch")],
    publics: Annotated[list[Path], typer.Argument(metavar="NAME.pub.toml...", help="as `keys admit` left them")],
    key: Annotated[Path, typer.Option("--key", help="the signer's private key")],
) -> None:
    """List more parties: the next epoch of a roster; nobody else's keys change."""
    from channels import PublicIdentity, Roster

    signer = unlock(key)
    longer = Roster.load(roster, signer.public).adding(map(PublicIdentity.load, publics), signer=signer)
    longer.save(roster)
    result(str(roster))
    say(f"epoch {longer.epoch} lists {', '.join(party.name for party in longer)}")


@keys.command("invite")
def invite(
    name: Annotated[str, typer.Argument(help="the newcomer's name, as in the run file")],
    key: Annotated[Path, typer.Option("--key", help="the private key of whoever will admit it")],
    address: Annotated[str, typer.Option(help="host:port where `keys admit` will listen")],
    out: Annotated[Path, typer.Option("--out", help="folder for NAME.invite")] = Path(),
    book: Book = Path("invites"),
    fingerprint: Annotated[str, typer.Option(help="the newcomer's, read aloud; then no secret changes hands")] = "",
    role: Annotated[list[str] | None, typer.Option(help="roles it may play [any]")] = None,
    days: Annotated[float, typer.Option(help="days until it expires")] = 7,
) -> None:
    """Invite a party that no roster lists yet: NAME.invite works once, for it alone."""
    from channels import Invite, Invites

    made = Invite.of(name, unlock(key).public, roles=role or (), days=days, guest=fingerprint, address=address)
    out.mkdir(parents=True, exist_ok=True)
    made.save(out / f"{name}.invite")
    Invites(book).issue(made)
    result(str(out / f"{name}.invite"))
    say("hand it over in private: whoever holds it is taken for " + name if made.secret else "it holds no secret")
    say(f"then wait for {name} with: secsplit keys admit --key {key} --listen {address}")


@keys.command("admit")
def admit(
    key: Annotated[Path, typer.Option("--key", help="the private key that the invites were made with")],
    listen: Annotated[str, typer.Option(help="host:port to listen at")],
    book: Book = Path("invites"),
    wait: Annotated[float, typer.Option(help="seconds to wait for the next newcomer")] = 600,
) -> None:
    """Wait for invited parties, until all have come; their public identities wait to be listed in the roster."""
    from channels import Invites, Reception

    invites = Invites(book)
    with Reception(listen, unlock(key), invites) as reception:
        say(f"listening at {reception.address} for {', '.join(i.name for i in invites.open()) or 'nobody'}")
        while invites.open():
            newcomer, entry = reception.welcome(wait)
            result(str(entry))
            say(f"{newcomer.name}: {newcomer.fingerprint}; list it with: secsplit keys roster add ROSTER.toml {entry}")


@keys.command("accept")
def accept(
    file: Annotated[Path, typer.Argument(metavar="NAME.invite")],
    key: Annotated[Path, typer.Option("--key", help="this party's private key")],
    out: Annotated[Path, typer.Option("--out", help="file for the host's public identity")] = Path("signer.pub.toml"),
    address: Annotated[str, typer.Option(help="another host:port than the invite's")] = "",
    proxy: Annotated[str | None, typer.Option(help="http://[user:password@]host:port to pass through")] = None,
) -> None:
    """Accept an invite: prove who we are to the host, and keep its public identity to know its rosters by."""
    from channels import Invite, accept_invite

    host = accept_invite(Invite.load(file), unlock(key), address=address, proxy=proxy)
    host.save(out)
    result(str(out))
    say(f"{host.name} ({host.fingerprint}) has our public identity; wait for its roster")


def unlock(file: Path) -> Identity:
    """A private key, asking for its passphrase where it is sealed."""
    from channels import Identity, KeyFileError

    try:
        return Identity.load(file)
    except KeyFileError as error:
        if "passphrase" not in str(error):
            raise
        return Identity.load(file, typer.prompt("passphrase", hide_input=True, err=True))
