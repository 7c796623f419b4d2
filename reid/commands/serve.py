"""``reid serve`` and ``reid token``: the gallery over HTTP, and who may use it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from domains.errors import DeviceError
from reid.commands.options import Bundle, Json, PathArgument, Provider, out, print_json, table

app = typer.Typer()
token_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens that reid serve asks for.")

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
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free; the log says which.")] = 8080,
    provider: Provider = "cpu",
    tokens: TokenFile = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM): HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    max_image_bytes: Annotated[int, typer.Option(help="Largest image file.")] = 4 * 2**20,
    max_pixels: Annotated[int, typer.Option(help="Largest image, checked before it is decoded.")] = 4_000_000,
    max_images: Annotated[int, typer.Option(help="Images per request.")] = 16,
    rate: Annotated[
        float, typer.Option(help="Images per second and token, with bursts of twice as many; 0: no limit.")
    ] = 50.0,
    queue: Annotated[int, typer.Option(help="Requests answered at a time; the next one is sent away with 503.")] = 64,
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
        int, typer.Option(metavar="DAYS", min=0, help="Days that audit records are kept; 0: for ever.")
    ] = 365,
    no_reason: Annotated[bool, typer.Option("--no-reason", help="Answer queries that state no reason.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name for a service without tokens; may be repeated.")
    ] = None,
) -> None:
    """Answer queries over HTTP, with a page at / and an API under /v1; a missing gallery is made for --bundle.

    A gallery that is there is served with --bundle if that is of its model, and else with its own bundle.

    Stops at Ctrl-C or SIGTERM, having finished what was begun.
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
        str | None, typer.Option(help="Who or what holds it; it stands in the audit log. A post, not a person.")
    ] = None,
    tokens: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it, this once; only its hash is kept."""
    from deploy.service.tokens import Tokens, default_file

    file = tokens or default_file()
    text = Tokens(file).make(scope or [], name, days)
    if as_json:
        print_json({"token": text, "file": str(file)})
        return
    out.print(text, markup=False, soft_wrap=True)
    typer.echo(f"reid: keep it now, it can't be shown again; its hash is in {file}", err=True)


@token_app.command("list")
def token_list(tokens: TokenFile = None, as_json: Json = False) -> None:
    """Show which tokens there are and what they may do."""
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
        out.print(f"no token in {file}; reid token make makes one", markup=False, soft_wrap=True)


@token_app.command("revoke")
def token_revoke(
    which: Annotated[str, typer.Argument(help="Id or name, as reid token list shows them.")], tokens: TokenFile = None
) -> None:
    """Take a token back; a running service refuses it from the next request on."""
    from deploy.service.tokens import Tokens, default_file

    gone = Tokens(tokens or default_file()).revoke(which)
    out.print(f"revoked {gone.id} ({gone.name})", markup=False)


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
