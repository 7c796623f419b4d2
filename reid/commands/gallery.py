"""``reid gallery``: fill a gallery, maintain it, carry it into a new model's space, and erase from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domains.errors import UsageError
from reid.commands.options import (
    Bundle,
    Json,
    PathArgument,
    Provider,
    check_named,
    local_time,
    print_json,
    progress,
    say,
    table,
    warn,
    wrong_use,
)

if TYPE_CHECKING:
    from deploy import Embeddings

MAX_DAYS = 36500
"""The longest that a gallery keeps entries by a rule, and tells their age."""

SHOWN = 10
"""Ids that a warning names."""

gallery_app = typer.Typer(no_args_is_help=True, help="Fill and maintain a gallery.")


@gallery_app.command("add")
def gallery_add(
    gallery: PathArgument,
    source: Annotated[
        Path, typer.Argument(help="A domain, a folder of images, or a CSV with path,camera[,time,label].")
    ],
    bundle: Bundle = None,
    camera: Annotated[
        str | None, typer.Option(help="Camera of all images; without it, what file names give, or else sub-folders.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Which split of a domain; by default gallery, or everything in a folder per person without splits."
        ),
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Keep a domain's identities as labels.")] = False,
    keep_crops: Annotated[
        bool, typer.Option("--keep-crops", help="Create a gallery that keeps a small picture of each crop.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Add what can't be one person's crop, too: whole frames, strips.")
    ] = False,
    provider: Provider = "cpu",
    as_json: Json = False,
) -> None:
    """Embed images and add them to a gallery; a missing one is created and remembers its bundle.

    Sub-folders are people if most file names contain a camera (0001_c2_03.jpg), else cameras, the outermost first that
    is named like one; --camera, --labels or --split overrides this.
    """
    from deploy import Encoder
    from deploy.gallery import open_or_create
    from deploy.gallery.sources import fill, read_sources

    sources = read_sources(source, camera=camera, split=split, labels=labels)
    with open_or_create(gallery, bundle, keep_crops=keep_crops) as store:
        encoder = Encoder.load(bundle or store.bundle, provider=provider)
        bars = progress()
        with bars.task(f"adding {source.name}", len(sources)) as tick:
            filled = fill(store, encoder, sources, force=force, progress=tick.advance)
        total = len(store)
    if as_json:
        print_json(
            {
                "added": filled.added,
                "known": filled.known,
                "skipped": [list(item) for item in filled.skipped],
                "refused": [list(item) for item in filled.refused],
                "left_out": [vars(item) for item in sources.left_out],
                "notes": list(sources.notes),
                "total": total,
            }
        )
    else:
        say(
            f"added {filled.added}, already known {filled.known}, skipped {len(filled.skipped)}; the gallery holds "
            f"{total}"
        )
        for path, reason in filled.skipped:
            say(f"skipped {path}: {reason}")
        if filled.refused:
            path, reason = filled.refused[0]
            say(
                f"refused {len(filled.refused)} that can't be one person's crop, such as {path}: {reason}; cut out "
                "each person, or add them as they are with --force"
            )
        for item in sources.left_out:
            say(f"left out: {item}")
        for note in sources.notes:
            say(f"note: {note}")


@gallery_app.command("info")
def gallery_info(gallery: PathArgument, as_json: Json = False) -> None:
    """Show what a gallery holds."""
    from deploy import Gallery

    with Gallery.open(gallery) as store:
        info = store.info()
    if as_json:
        print_json(info)
        return
    cameras, spaces = info.pop("cameras"), info.pop("spaces")
    for name, value in info.items():
        if value is not None:
            say(f"{name.replace('_', ' ')}: {value}")
    table("cameras", ["camera", "entries"], [[str(camera), str(count)] for camera, count in cameras.items()])
    if len(spaces) > 1:
        rows = [
            [
                each["feature_space"][:12],
                str(each["embedded"]),
                "yes" if each["present"] else "no",
                each["bundle"] or "-",
            ]
            for each in spaces
        ]
        table("feature spaces, oldest first", ["space", "entries embedded in it", "present", "bundle"], rows)


@gallery_app.command("verify")
def gallery_verify(
    gallery: PathArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="First repair what can be repaired without a backup.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every byte of a gallery that counts; the index is rebuilt if it disagrees."""
    from deploy import Gallery

    repaired = Gallery.repair(gallery) if repair else []
    if not as_json:
        for text in repaired:
            say(text)
    with Gallery.open(gallery) as store:
        checked = store.verify()
    if as_json:
        print_json({"repair": repaired, "verify": checked})
        return
    for text in checked:
        say(text)


@gallery_app.command("forget")
def gallery_forget(
    gallery: PathArgument,
    ids: Annotated[list[int] | None, typer.Argument(help="Ids as reid query shows them.")] = None,
    label: Annotated[str | None, typer.Option(help="Everything with this label.")] = None,
    camera: Annotated[str | None, typer.Option(help="Everything from this camera.")] = None,
    source: Annotated[str | None, typer.Option(help="Everything whose source starts with this.")] = None,
    before: Annotated[str | None, typer.Option(help="Everything from before this time (ISO 8601 with zone).")] = None,
    older_than: Annotated[
        int | None,
        typer.Option("--older-than", metavar="DAYS", help="Everything older than this many days.", min=0, max=MAX_DAYS),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Everything that looks like the person in this image, at --score or above.")
    ] = None,
    score: Annotated[float, typer.Option(help="Minimum cosine for --like.")] = 0.7,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be erased, and erase nothing.")] = False,
    bundle: Bundle = None,
    provider: Provider = "cpu",
    as_json: Json = False,
) -> None:
    """Erase entries, bytes and all; several criteria together mean entries that match all of them."""
    from deploy import Gallery
    from deploy.gallery.cameras import check_camera
    from deploy.gallery.erasure import ErasureRequest
    from deploy.store.selection import Selection

    check_named(label=label, camera=camera, source=source)
    with wrong_use():
        Selection(camera, None, before, label, source)
    wanted = ErasureRequest(ids, label, camera, source, before, older_than, score)
    if wanted.names_nothing and like is None:
        raise UsageError("say what to forget: ids, or --label, --camera, --source, --before, --older-than or --like")
    with Gallery.open(gallery) as store:
        check_camera(store, camera)
        if unknown := wanted.unknown(store):
            warn(f"no entry of {gallery} has {_listed(unknown)}")
        vectors = None if like is None else _embedded(like, bundle or store.bundle, provider)
        numbers, by = wanted.of(store, vectors, preview=dry_run)
        if dry_run:
            entries = store.entries(numbers)
            if as_json:
                print_json([{"id": number, **vars(entry)} for number, entry in entries.items()])
                return
            rows = [
                [str(number), entry.camera, local_time(entry.time) or "–", entry.label or "–", entry.source]
                for number, entry in entries.items()
            ]
            table(
                f"{len(rows)} entries would be erased",
                ["id", "camera", "time", "label", "source"],
                rows,
                left=("camera", "time", "label", "source"),
                paths=("source",),
            )
            return
        removed = store.forget(numbers, reason=by)
        backups = store.backups()
    if as_json:
        print_json({"forgotten": removed, "backups": backups})
        return
    say(f"forgot {removed}")
    for path in backups:
        say(f"the backup {path} was made before this and still holds what was in the gallery then")


def _listed(ids: list[int]) -> str:
    """Name ids, but not more than a line holds."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    what = "the id" if len(ids) == 1 else "one of the ids"
    return f"{what} {', '.join(map(str, ids[:SHOWN]))}{more}"


def _embedded(image: Path, bundle: Path | str, provider: str) -> Embeddings:
    """Embed one image as a vector ``[1, D]``."""
    from deploy import Encoder
    from domains.crops import read_crop

    crop = read_crop(image)
    return Encoder.load(bundle, provider=provider)([crop])


@gallery_app.command("upgrade")
def gallery_upgrade(
    gallery: PathArgument,
    bundle: Annotated[Path | None, typer.Argument(help="The new bundle, with a transport.", show_default=False)] = None,
    via: Annotated[
        list[Path] | None,
        typer.Option(help="Bundle of a model between the gallery's and the new one; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what to expect, and change nothing.")] = False,
    back: Annotated[
        bool, typer.Option("--back", help="Return to the space and bundle before the last upgrade.")
    ] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Drop the vectors of older spaces; there is no way back after that.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Carry a gallery into a new model's feature space, without any image and while it keeps answering."""
    from deploy import Gallery

    if (bundle is not None) + back + drop_old != 1:
        raise UsageError("name exactly one of: the new bundle, --back, --drop-old")
    with Gallery.open(gallery) as store:
        expected: list[str] = []
        if bundle is not None:
            expected = store.plan_upgrade(bundle, via or ()).lines()
        elif dry_run:
            expected = [store.plan_back() if back else store.plan_drop()]
        if dry_run:
            if as_json:
                print_json({"entries": len(store), "expect": expected})
            for text in [] if as_json else [f"{len(store)} entries", *expected]:
                say(text)
            return
        with progress().task(f"upgrading {gallery}", len(store)) as tick:
            if bundle is not None:
                count = store.upgrade(bundle, via or (), tick=tick.advance)
            else:
                count = store.go_back(tick=tick.advance) if back else store.drop_old(tick=tick.advance)
        space = store.feature_space
    if as_json:
        print_json({"entries": count, "feature_space": space, "expect": expected})
        return
    for text in expected:
        say(text)
    done = "dropped the older vectors of" if drop_old else "carried back" if back else "carried"
    say(f"{done} {count} entries; the gallery is in feature space {space:.12}…")
    if bundle is not None:
        say("to undo: reid gallery upgrade GALLERY --back; to make it final: --drop-old")


@gallery_app.command("keep")
def gallery_keep(
    gallery: PathArgument,
    days: Annotated[
        int | None, typer.Argument(help="Erase what is older; 0 removes the rule.", min=0, max=MAX_DAYS)
    ] = None,
    camera: Annotated[str | None, typer.Option(help="For this camera only, instead of the general rule.")] = None,
    as_json: Json = False,
) -> None:
    """Set or show how long entries are kept; rules run automatically on opening, and every hour of use or service."""
    from deploy import Gallery
    from deploy.gallery.cameras import unknown_camera

    check_named(camera=camera)  # the empty name is that of the general rule
    with Gallery.open(gallery) as store:
        if camera is not None and camera not in store.retention() and (reason := unknown_camera(store, camera)):
            warn(f"{reason}; the rule is kept for the entries to come" if days else reason)
        if days is not None:
            store.keep(days or None, camera=camera)
        rules = store.retention()
    if as_json:
        print_json(rules)
        return
    for name, limit in rules.items():
        say(f"{name or 'every other camera'}: {limit} days")
    if not rules:
        say("no rule: entries are kept until they are forgotten")


@gallery_app.command("clock")
def gallery_clock(
    gallery: PathArgument,
    trust: Annotated[
        bool, typer.Option("--trust", help="Confirm that the clock is right, and erase what is too old by it.")
    ] = False,
    from_now: Annotated[
        bool,
        typer.Option(
            "--from-now", help="With --trust: the time before was the wrong one, so that ages count from now."
        ),
    ] = False,
    service: Annotated[bool, typer.Option("--service", help="For the audit log of its service instead.")] = False,
    file: Annotated[
        Path | None, typer.Option("--audit", help="The service's audit log; by default beside the gallery.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what the clock reads beside the last time that was trusted, and what would be erased by age.

    Where the clock moved by more than is plausible, nothing is erased by age until you confirm it with --trust.
    """
    from deploy import Gallery
    from deploy.service.audit_log import audit_log_of, open_existing
    from deploy.store.clock import as_text

    if from_now and not trust:
        raise UsageError("--from-now says which time was wrong, which needs --trust")
    erased = None
    if service or file is not None:
        what = "audit records"
        audit_log = open_existing(file or audit_log_of(gallery))
        try:
            kept = audit_log.ageing()
            reading, due, dated = kept.reading, kept.due, 0
            if trust:
                erased = audit_log.trust_clock(from_now=from_now)
        finally:
            audit_log.close()
    else:
        what = "entries"
        with Gallery.open(gallery) as store:
            ageing = store.ageing()
            reading, due, dated = ageing.reading, len(ageing.due), len(ageing.dated)
            if trust:
                erased = store.trust_clock(from_now=from_now)
    if as_json:
        times = {"clock": as_text(reading.time), "trusted": reading.trusted and as_text(reading.trusted)}
        counts = {"due": due, "due_from_now": dated, "erased": erased}
        print_json({**times, "right": reading.right, **counts})
        return
    say(str(reading))
    if erased is not None:
        say(f"the clock is trusted from here on; {erased} {what} were erased")
    elif reading.right:
        say(f"the clock is trusted; {due} {what} are due to be erased")
    else:
        say(f"the clock is not trusted, so nothing is erased by age; it would erase {due} {what}")
        say(f"if it is right, add --trust; if the time before was the wrong one, --trust --from-now ({dated} would go)")


@gallery_app.command("backup")
def gallery_backup(
    gallery: PathArgument, copy: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")]
) -> None:
    """Copy a gallery while it is in use; a backup is itself a gallery and is opened as one."""
    from deploy import Gallery

    with Gallery.open(gallery) as store:
        count = store.backup(copy)
    say(f"{copy}: {count} entries, verified; erasures do not reach it, so it is listed whenever something is forgotten")


@gallery_app.command("restore")
def gallery_restore(backup: PathArgument, gallery: PathArgument, as_json: Json = False) -> None:
    """Restore a gallery from a checked copy of a backup; an existing gallery is moved aside, not deleted."""
    from deploy import Gallery

    count, aside = Gallery.restore(backup, gallery)
    if as_json:
        print_json({"entries": count, "aside": None if aside is None else str(aside)})
        return
    say(
        f"{gallery}: {count} entries, verified; what was forgotten since the backup was made is back, so forget it "
        "again"
    )
    if aside is not None:
        say(f"the gallery that was there is now {aside}; delete it when you no longer need it")


@gallery_app.command("audit")
def gallery_audit(
    gallery: PathArgument,
    service: Annotated[bool, typer.Option("--service", help="Who asked its service what, and why.")] = False,
    file: Annotated[
        Path | None, typer.Option("--audit", help="The service's audit log; by default beside the gallery.")
    ] = None,
    heads: Annotated[
        Path | None, typer.Option(help="The service's own log, kept elsewhere: check the seals in it, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what was done to a gallery, after checking that no record was changed."""
    from deploy import Gallery
    from deploy.service.audit_chain import read_heads
    from deploy.service.audit_log import audit_log_of, read_all

    if service or file is not None or heads is not None:
        records = read_all(file or audit_log_of(gallery), [] if heads is None else read_heads(heads))
    else:
        with Gallery.open(gallery) as store:
            records = store.audit()
    if as_json:
        print_json(records)
        return
    for record in records:
        what = ", ".join(f"{name} {value}" for name, value in record.items() if name not in ("time", "action"))
        say(f"{record['time']}  {record['action']}: {what}")
    if not records:
        say("no records yet")
