"""Twenty drawn domains in a row through one hypernetwork: what each adds in bytes and seconds, and whether old adapters
hold.

    python -m benchmarks.many_domains [--domains 20] [--method hyper_default] [--look-ahead] [--save]
    python -m benchmarks.many_domains --run runs/site      # the curves of a run that is there

For every learned domain and every later step: how far its adapter is from what it was when just learned, relative to
its length, and percent mAP through its own route. Drawn sites: a style, other people and other cameras each time.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.results_file import record
from domains.domain import Domain
from domains.synthetic import STYLES, make_domain
from reid.config import Entry, Method, build_config, read_method, read_stream
from reid.progress import Progress
from reid.run import Run
from reid.run.routing import router_of, routing_term
from reid.scores.evaluate import evaluate
from reid.terms.hypernetwork import BASE

SHORT = {"train": {"iterations": 60, "identities": 8}}
"""On top of the small-5 stream's settings."""


def drawn_sites(folder: Path, count: int) -> list[Domain]:
    """Sites of 40 people each."""
    styles = list(STYLES)
    return [
        make_domain(folder / f"site{at:02d}", styles[at % len(styles)], identities=40, seed=100 + at)
        for at in range(count)
    ]


def adapters(run: Run, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """What each learned domain's route at a step changes of the weights below it, by parameter."""
    term = routing_term(run.steps[step].card)
    model, sealed = run.model(step)
    router = term and router_of(model, term, sealed.kept(), run.memories()[: sealed.index])
    if not router:
        return {}
    base = sealed.kept().get(BASE) or dict(model.backbone.named_parameters())
    with torch.no_grad():
        return {
            name: {key: weight - base[key] for key, weight in router.write(place).items()}
            for name, place in router.embeddings.items()
        }


def flat(change: dict[str, torch.Tensor]) -> torch.Tensor:
    """As one vector."""
    return torch.cat([part.flatten() for part in change.values()])


def through(run: Run, step: int, site: Domain, change: dict[str, torch.Tensor]) -> float:
    """Percent mAP of a site with this change of what lies below its route."""
    model, sealed = run.model(step)
    base = sealed.kept().get(BASE) or dict(run.model(step)[0].backbone.named_parameters())
    with torch.no_grad():
        for name, part in change.items():
            model.backbone.get_parameter(name).copy_(base[name] + part)
    return evaluate(site, run.embedder(step, model), run.stores).mAP


def curves(run: Run, sites: list[Domain]) -> list[dict[str, Any]]:
    """A row for each learned domain and each step from its own on; ``held`` is its mAP had its adapter stayed as it was
    first written.
    """
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, torch.Tensor]] = {}
    for step in range(1, len(run.steps)):
        written = adapters(run, step)
        for number, site in enumerate(sites[:step], 1):
            change = written.get(site.name)
            score = float(run.evaluate(site, step=step)["mAP"])
            row = {"domain": site.name, "learned": number, "step": step, "drift": None, "mAP": score, "held": score}
            if change is not None:
                begun = first.setdefault(site.name, change)
                length = float(flat(begun).norm())
                row["drift"] = float((flat(change) - flat(begun)).norm()) / length if length else None
                if begun is not change:
                    row["held"] = through(run, step, site, begun)
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], run: Run) -> str:
    """Markdown: by step, mean over the domains learned before it."""
    lines = [
        "| step | seconds | bytes for the domain | mean drift, % | largest, % | older domains, mAP | adapters as "
        "first written | when just learned |",
        "|---" * 8 + "|",
    ]
    own = {row["domain"]: row["mAP"] for row in rows if row["step"] == row["learned"]}
    for step in run.steps[1:]:
        old = [row for row in rows if row["step"] == step.index and row["learned"] < step.index]
        moved = [100 * row["drift"] for row in old if row["drift"] is not None]
        cells = [f"{np.mean(moved):.2f}" if moved else "–", f"{max(moved):.2f}" if moved else "–"]
        for score in ([row["mAP"] for row in old], [row["held"] for row in old], [own[row["domain"]] for row in old]):
            cells.append(f"{np.mean(score):.2f}" if score else "–")
        train = step.card["train"]
        lines.append(
            f"| {step.index} | {train['seconds'] + train['seconds_ending']:.0f} | {step.card['bytes']['memory']} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def looking_ahead(method: Method) -> Method:
    """The method with a hypernetwork that holds older adapters after the step that the other losses alone would
    take.
    """

    def changed(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        return tuple(
            {name: {**given, "look_ahead": True} if name == "hypernetwork" else given for name, given in entry.items()}
            for entry in entries
        )

    return method.model_copy(update={"terms": changed(method.terms), "adapter": changed(method.adapter)})


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=20)
    parser.add_argument("--method", default="hyper_default")
    parser.add_argument(
        "--look-ahead", action="store_true", help="hold older adapters after the step that the other losses would take"
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--save", action="store_true", help="keep the curves in benchmarks/results/many_domains.json")
    options = parser.parse_args()
    method = looking_ahead(read_method(options.method)) if options.look_ahead else read_method(options.method)
    with tempfile.TemporaryDirectory() as folder:
        if options.run:
            run = Run.open(options.run)
            known = run.known_domains()
            sites = [known[name] for name in run.learned]
        else:
            sites = drawn_sites(Path(folder) / "sites", options.domains)
            config = build_config(read_stream("small5").config, SHORT, {"method": options.method})
            run = Run.create(Path(folder) / "run", config)
            for site in sites:
                run.learn(site, method=method, config=config, progress=Progress(Console(stderr=True)))
        rows = curves(run, sites)
        print(table(rows, run))
        if options.save:
            name = "many_domains_look_ahead" if options.look_ahead else "many_domains"
            record(
                name,
                {
                    "method": method.model_dump(mode="json"),
                    "domains": len(sites),
                    "rows": rows,
                    "steps": [
                        dict(step.card["bytes"])
                        | {"seconds": step.card["train"]["seconds"] + step.card["train"]["seconds_ending"]}
                        for step in run.steps[1:]
                    ],
                },
            )


if __name__ == "__main__":
    main()
