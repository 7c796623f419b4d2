"""``reid serve`` and ``reid token``: the gallery over HTTP, and who may use it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from domains.errors import DeviceError
from reid.commands.options import Bundle, Json, PathArgument, Provider, print_json, say, table
from reid.streams import complain

app = typer.Typer()
token_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens that reid serve requires.")

TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        help="File of tokens; by default $REID_TOKENS, or lifelong-reid/tokens.json in the user's configuration.",
    ),
]


@app.command()
def serve(
    gallery: PathArgument,
    bundle: Bundle = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines can reach needs tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port; the log says which.")] = 8080,
    provider: Provider = "cpu",
    tokens: TokenFile = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM): HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    max_image_bytes: Annotated[int, typer.Option(help="Largest image file in bytes.")] = 4 * 2**20,
    max_pixels: Annotated[int, typer.Option(help="Largest image in pixels, checked before decoding.")] = 4_000_000,
    max_images: Annotated[int, typer.Option(help="Images per request.")] = 16,
    rate: Annotated[
        float, typer.Option(help="Images per second and token, with bursts of twice as many; 0: no limit.")
    ] = 50.0,
    queue: Annotated[int, typer.Option(help="Requests answered at a time; any more are refused with 503.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take.")] = 30.0,
    bundles: Annotated[
        Path | None, typer.Option(help="Folder of bundles that POST /v1/upgrade may use; off without it.")
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Folder whose images may be shown as thumbnails; may be repeated.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="The audit log; by default GALLERY.audit.db, beside the gallery.")
    ] = None,
    keep_audit: Annotated[
        int, typer.Option(metavar="DAYS", min=0, help="Days that audit records are kept; 0: forever.")
    ] = 365,
    no_reason: Annotated[bool, typer.Option("--no-reason", help="Answer queries that state no reason.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name that a service without tokens accepts; may be repeated.")
    ] = None,
) -> None:
    """Answer queries over HTTP, with a page at / and an API under /v1; a missing gallery is created for --bundle.

    An existing gallery is served with --bundle if that is of its model, else with its own bundle.

    Stops on Ctrl-C or SIGTERM, after finishing the requests in progress.
    """
    from deploy.service.settings import Settings

    server = _server()
    listening = server.Listening(host, port, tls_cert, tls_key)
    settings = Settings(
        tokens=server.find_tokens(listening, tokens),
        audit=audit,
        keep_audit=keep_audit or None,
        require_reason=not no_reason,
        max_image_bytes=max_image_bytes,
        max_pixels=max_pixels,
        max_images=max_images,
        max_body_bytes=max(16 * 2**20, max_image_bytes + 2**20),
        rate=rate,
        queue=queue,
        timeout=timeout,
        bundles=bundles,
        pictures=tuple(pictures or ()),
        hosts=tuple(allow_host or ()),
    )
    server.run_service(gallery, listening, settings, bundle=bundle, provider=provider)


@token_app.command("make")
def token_make(
    scope: Annotated[
        list[str] | None,
        typer.Option(help="query, enrol, erase or admin; may be repeated. None: counts and metrics only."),
    ] = None,
    days: Annotated[int | None, typer.Option(help="Days that it is valid; by default until it is revoked.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Who or what holds it, as the audit log shows it: a role, not a person.")
    ] = None,
    tokens: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it once; only its hash is kept."""
    from deploy.service.tokens import Tokens, default_file

    file = tokens or default_file()
    text = Tokens(file).make(scope or [], name, days)
    if as_json:
        print_json({"token": text, "file": str(file)})
        return
    say(text)
    complain(f"save it now, it can't be shown again; its hash is in {file}")


@token_app.command("list")
def token_list(tokens: TokenFile = None, as_json: Json = False) -> None:
    """List the tokens and what they may do."""
    from deploy.service.tokens import Tokens, default_file

    file = tokens or default_file()
    known = Tokens(file).all()
    if as_json:
        print_json([{key: value for key, value in vars(token).items() if key != "hash"} for token in known])
        return
    rows = [
        [
            token.id,
            token.name,
            " ".join(token.scopes) or "–",
            token.created,
            ("expired " if token.expired() else "") + (token.expires or "never"),
        ]
        for token in known
    ]
    if rows:
        table(str(file), ["id", "name", "scopes", "created", "expires"], rows)
    else:
        say(f"no tokens in {file}; reid token make makes one")


@token_app.command("revoke")
def token_revoke(
    which: Annotated[str, typer.Argument(help="Id or name, as reid token list shows them.")], tokens: TokenFile = None
) -> None:
    """Revoke a token; a running service refuses it from the next request on."""
    from deploy.service.tokens import Tokens, default_file

    revoked = Tokens(tokens or default_file()).revoke(which)
    say(f"revoked {revoked.id} ({revoked.name})")


def _server() -> ModuleType:
    """Import the module that needs the web framework."""
    try:
        import deploy.service.server
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("deploy", "domains", "prototypes"):
            raise
        raise DeviceError(
            f"{error.name} is not installed; serving needs pip install 'lifelong-reid[cpu,serve]'"
        ) from error
    return deploy.service.server
