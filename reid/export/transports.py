"""Which transport goes with a bundle: the map that carries galleries of an earlier step into its feature space."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from domains.errors import ExportError
from prototypes.transport import Transport
from reid.network.model import ReidModel
from reid.run import Run
from reid.run.routing import routing_term
from reid.run.sealed import Sealed


def transport_since(run: Run, sealed: Sealed, since: int | None) -> Transport | None:
    """Return the map from an earlier step's feature space to this one; None if there is none and none was requested, or
    if the network is still the same.

    Without a step named, it is that before the last one that changed the network.

    Raises:
        ExportError: ``since`` is not an earlier step, or a step after it fitted no transport.
    """
    if since is not None and not 0 <= since < sealed.index:
        raise ExportError(
            f"a transport leads from an earlier step: since must lie in 0..{sealed.index - 1}, got {since}"
        )
    moved = run.moved(0, sealed.index)[-1:] if since is None else run.moved(since, sealed.index)
    transports = [step.transport() for step in moved]
    if not transports or None in transports:
        if since is not None and transports:
            lacking = moved[transports.index(None)]
            raise ExportError(
                f"{lacking.folder.name} fitted no transport, so galleries of step {since} have to be embedded again"
            )
        return None
    return reduce(lambda first, later: first.then(later), [transport for transport in transports if transport])


def route_transport(run: Run, sealed: Sealed, site: str, since: int | None, model: ReidModel) -> Transport | None:
    """Return the map that sites share, between the feature spaces of a site's own networks.

    It holds for them because only the shared network moves from step to step; a site's adapter stays fixed.

    Raises:
        ExportError: as :func:`transport_since`; or one was requested and the site had no adapter beside a shared
            network at that step.
    """
    if since is None:
        moved = run.moved(0, sealed.index)
        since_step = (moved[-1] if moved else sealed).index - 1
    else:
        since_step = since
    term = routing_term(run.taught(sealed.index).card)
    then = run.steps[max(since_step, 0)]
    before = routing_term(run.taught(then.index).card)
    both_beside = term is not None and term.beside and before is not None and before.beside
    if not both_beside or not any(site in step.learned for step in run.steps[: then.index + 1]):
        if since is not None:
            raise ExportError(
                f"{site} had no adapter of its own at step {since}, so its galleries of that step have to be embedded "
                "again"
            )
        return None
    shared = transport_since(run, sealed, since)
    old = run.route(site, then.index)
    if shared is None or old is None:
        return None
    return replace(
        shared, source=old.feature_space(run.config.crop.spec()), target=model.feature_space(run.config.crop.spec())
    )
