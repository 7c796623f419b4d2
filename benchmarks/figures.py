"""The figures of docs/methods.md, from drawn people: a short run, then one picture per idea.

python -m benchmarks.figures
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from domains.arrays import Float32s
from domains.domain import Domain
from domains.style import StyleStatistics
from domains.synthetic import make_domain
from prototypes.prototype import DistributionPrototypes
from prototypes.transport import compose
from reid.batches.loader import CropStore
from reid.config import Method, build_config, read_method
from reid.demo import SETTINGS
from reid.network.distribution import affinity, draw
from reid.network.embedding import embedder
from reid.network.model import ReidModel
from reid.network.style import StyleNetwork, restyle
from reid.run import Run
from reid.scores.evaluate import evaluate
from reid.step.fusion import blend
from reid.step.repair import batchnorm
from reid.terms.survey import Survey

IMAGES = Path(__file__).parent.parent / "docs" / "images"
HUES = ("#0b6e99", "#c2410c", "#3f7d20", "#7c3aed", "#b45309", "#be185d")
SITES = ("plaza", "corridor", "nightstreet")
STYLE_ITERATIONS, PEOPLE = 400, 6
SHARES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def svg(name: str, width: int, height: int, parts: list[str]) -> None:
    """Write a picture of lines and dots on white."""
    style = "<style>text{font:13px system-ui,sans-serif;fill:#333}</style>"
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    body = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{paper}{style}{"".join(parts)}</svg>'
    )
    (IMAGES / f"{name}.svg").write_text(body + "\n", "utf-8")


def distributions(run: Run, domain: Domain) -> None:
    """Crops of a few people as Gaussians, and their prototypes, on the two directions in which these people differ
    most.
    """
    model, _ = run.model(1)
    store = CropStore.decode(domain, domain.train, run.config.crop.spec())
    people = np.unique(store.split.pids)[:PEOPLE]
    kept = DistributionPrototypes.from_arrays(run.memories()[0].arrays)
    if kept is None:
        raise SystemExit("the run kept no prototypes")
    with torch.no_grad():
        output = model(torch.from_numpy(store.crops[np.isin(store.split.pids, people)]))
        centre = torch.nn.functional.normalize(output.embedding, dim=1).numpy()
        spread = model.spread(output.features).numpy()
    owners = store.split.pids[np.isin(store.split.pids, people)]
    mean = kept.mean[: len(people)]
    axes = np.linalg.svd(mean - mean.mean(0))[2][:2].T
    middle, scale = mean.mean(0) @ axes, 230 / np.abs((centre - mean.mean(0)) @ axes).max()

    def place(points: Float32s) -> Float32s:
        return np.asarray((points @ axes - middle) * scale + 260, np.float32)

    parts, rng = [], np.random.default_rng(0)
    for number, person in enumerate(people):
        hue = HUES[number]
        for c, v in zip(centre[owners == person], spread[owners == person], strict=True):
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.3" fill="{hue}" opacity=".35"/>'
                for x, y in place(c + v * rng.standard_normal((25, len(c))))
            ]
            x, y = place(c[None])[0]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{hue}"/>')
        values, vectors = np.linalg.eigh(axes.T @ np.diag(kept.spread[number] ** 2) @ axes)
        turn = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        (x, y), (small, large) = place(mean[number][None])[0], np.sqrt(values) * scale
        ellipse = (
            f'<ellipse rx="{large:.1f}" ry="{small:.1f}" transform="translate({x:.1f} {y:.1f}) rotate({turn:.1f})"'
        )
        parts.append(ellipse + f' fill="none" stroke="{hue}" stroke-width="2"/>')
    parts.append(
        '<text x="12" y="508">large: crops · small: draws from each · ellipses: what is kept, a Gaussian per person '
        "(1 σ)</text>"
    )
    svg("distributions", 680, 520, parts)


def transports(run: Run, domain: Domain) -> None:
    """How far the first domain's gallery is from where the last model would put it, carried and left alone."""
    gallery = run.stores.get(domain, domain.gallery).crops
    first, last = (embedder(run.model(step)[0], torch.device("cpu"))(gallery) for step in (1, -1))
    carried = compose([found for step in run.steps[2:] if (found := step.transport())], first)
    scores = run.evaluate_without_reindexing([domain])[domain.name]
    bins = np.linspace(-0.2, 1, 49)
    parts, names = (
        [],
        (("left as it was", first, HUES[1], "as_it_was"), ("carried by the transports", carried, HUES[0], "carried")),
    )
    top = 0
    counts = []
    for _, vectors, _, _ in names:
        counts.append(np.histogram((vectors * last).sum(1), bins)[0])
        top = max(top, int(counts[-1].max()))
    for (name, _, hue, key), count in zip(names, counts, strict=True):
        step = 560 / len(count)
        tall = 200 * count / top
        bars = "".join(
            f'<rect x="{60 + step * at:.1f}" y="{250 - h:.1f}" width="{step - 1:.1f}" height="{h:.1f}"/>'
            for at, h in enumerate(tall)
        )
        value = scores[key]
        parts.append(f'<g fill="{hue}" opacity=".65">{bars}</g>')
        line = 22 if key == "carried" else 42
        parts.append(f'<text x="70" y="{line}" style="fill:{hue}">{name}: {domain.name} {value:.1f} % mAP</text>')
    parts.append(f'<text x="70" y="62">embedded again by the last model: {scores["reindexed"]:.1f} % mAP</text>')
    parts += [
        f'<text x="{60 + 560 * (tick + 0.2) / 1.2:.0f}" y="270" text-anchor="middle">{tick:.1f}</text>'
        for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)
    ]
    parts.append(
        '<text x="340" y="292" text-anchor="middle">cosine to the last model\'s own embedding of the same crop</text>'
    )
    svg("transport", 680, 300, parts)


def lines(
    name: str, across: str, places: list[float], series: list[tuple[str, list[float]]], *, dashed: int = 1
) -> None:
    """Curves of percent mAP over 0..1, each named at its right end; ``dashed`` of them share a colour, all but the
    first dashed.
    """
    low, high = (
        10 * round(end / 10) for end in (min(min(ys) for _, ys in series) - 5, max(max(ys) for _, ys in series) + 5)
    )

    def place(x: float, y: float) -> tuple[float, float]:
        return 60 + 440 * x, 240 - 220 * (y - low) / (high - low)

    parts = [
        f'<line x1="60" x2="500" y1="{place(0, tick)[1]:.1f}" y2="{place(0, tick)[1]:.1f}" stroke="#ddd"/>'
        for tick in range(low, high + 1, 10)
    ]
    parts += [
        f'<text x="52" y="{place(0, tick)[1] + 4:.1f}" text-anchor="end">{tick}</text>'
        for tick in range(low, high + 1, 10)
    ]
    parts += [f'<text x="{place(x, low)[0]:.1f}" y="258" text-anchor="middle">{x:g}</text>' for x in places]
    ends: list[float] = []
    for at, (label, ys) in enumerate(series):
        hue, dash = HUES[at // dashed], ' stroke-dasharray="6 4"' if at % dashed else ""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(x, y) for x, y in zip(places, ys, strict=True)))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{hue}" stroke-width="2"{dash}/>')
        line = place(1, ys[-1])[1] + 4
        while any(abs(line - other) < 15 for other in ends):
            line += 5
        ends.append(line)
        parts.append(f'<text x="508" y="{line:.1f}" style="fill:{hue}">{label}</text>')
    parts.append(f'<text x="280" y="282" text-anchor="middle">{across}</text><text x="60" y="14">mAP, percent</text>')
    svg(name, 760, 292, parts)


def scores(run: Run, model: ReidModel, sites: list[Domain]) -> list[float]:
    """Percent mAP of a model on each site."""
    return [evaluate(site, embedder(model, torch.device("cpu")), run.stores).mAP for site in sites]


def fusions(name: str, plain: Run, other: Run, how: str, sites: list[Domain]) -> None:
    """Scores on each site along the line from the model after the first domain to that after the second, of two
    methods.
    """
    series = []
    for run, label in ((plain, ""), (other, f", {how}")):
        old, new = (run.model(step)[0].state_dict() for step in (1, 2))
        found = [scores(run, run.build(blend(new, old, weight)), sites) for weight in SHARES]
        series += [(f"{site.name}{label}", [row[at] for row in found]) for at, site in enumerate(sites)]
    across = f"weight of the model after {plain.learned[1]}, against the one before"
    lines(name, across, SHARES, [row for at in range(len(sites)) for row in series[at :: len(sites)]], dashed=2)


def repairs(run: Run, sites: list[Domain]) -> None:
    """Scores of a fused model whose BatchNorm statistics are, more and more, those of the newest site's crops."""
    old, new = (run.model(step)[0].state_dict() for step in (1, 2))
    store = CropStore.decode(sites[1], sites[1].train, run.config.crop.spec())
    everyone = Survey(store, np.arange(len(store)), store.split.pids, torch.device("cpu"))
    found = []
    for share in SHARES:
        step = SimpleNamespace(model=run.build(blend(new, old, 0.5)), config=run.config, index=2)
        batchnorm(step, everyone, share=share)  # type: ignore[arg-type]
        found.append(scores(run, step.model, sites))
    series = [(site.name, [row[at] for row in found]) for at, site in enumerate(sites)]
    lines("repair", f"share of BatchNorm's statistics taken from {sites[1].name}", SHARES, series)


def adapters(run: Run, sites: list[Domain]) -> None:
    """Scores of each site as more of its own adapter is added to what all sites share, and as more of another site's
    is.
    """
    shared = dict(run.model()[0].backbone.named_parameters())
    own = {site.name: dict(run.route(site).backbone.named_parameters()) for site in sites}  # type: ignore[union-attr]

    def score(site: Domain, other: Domain, share: float) -> float:
        model = run.model()[0]
        with torch.no_grad():
            for name, weight in model.backbone.named_parameters():
                weight.copy_(torch.lerp(shared[name], own[other.name][name], share))
        return scores(run, model, [site])[0]

    series = []
    for site, other in zip(sites, [*sites[1:], sites[0]], strict=True):
        for whose in (site, other):
            series.append((f"{site.name}, adapter of {whose.name}", [score(site, whose, share) for share in SHARES]))
    lines("adapters", "share of the adapter", SHARES, series, dashed=2)


def relations(run: Run, site: Domain) -> None:
    """Who is like whom in a batch of the second site: through the old model, through draws of old people, and through
    the new model.
    """
    store = CropStore.decode(site, site.train, run.config.crop.spec())
    people = np.unique(store.split.pids)[:PEOPLE]
    rows = np.concatenate([np.flatnonzero(store.split.pids == person)[:6] for person in people])
    old, new = (
        torch.from_numpy(embedder(run.model(step)[0], torch.device("cpu"))(store.crops[rows])) for step in (1, 2)
    )
    kept = DistributionPrototypes.from_arrays(run.memories()[0].arrays)
    if kept is None:
        raise SystemExit("the run kept no prototypes")
    people_before = draw(torch.from_numpy(kept.mean), torch.from_numpy(kept.spread), torch.Generator().manual_seed(0))
    assigned = torch.softmax(old @ people_before.T / 0.1, 1)
    panels = [
        (name, affinity(vectors).exp().numpy())
        for name, vectors in (("old model", old), ("through old people", assigned), ("new model", new))
    ]
    side, gap = 240, 16
    canvas = np.full((side + 34, len(panels) * (side + gap) - gap, 3), 255, np.uint8)
    for at, (name, values) in enumerate(panels):
        shade = cv2.applyColorMap((255 * np.sqrt(values / values.max())).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
        left = at * (side + gap)
        canvas[34:, left : left + side] = cv2.resize(shade, (side, side), interpolation=cv2.INTER_NEAREST)
        cv2.putText(canvas, name, (left, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
    cv2.imwrite(str(IMAGES / "relations.png"), canvas)


def triplets(raw: Run, unit: Run, site: Domain) -> None:
    """Cosines between different people of the last site after triplets on raw and on unit-length embeddings."""
    parts = []
    crops = raw.stores.get(site, site.query).crops
    for at, (name, run) in enumerate((("triplets of raw embeddings", raw), ("of embeddings at unit length", unit))):
        vectors = embedder(run.model()[0], torch.device("cpu"))(crops)
        values = (vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)]
        count = np.histogram(values, np.linspace(-0.6, 1, 65))[0]
        tall = 200 * count / count.max()
        bars = "".join(
            f'<rect x="{60 + 8.75 * x:.1f}" y="{250 - h:.1f}" width="7.75" height="{h:.1f}"/>'
            for x, h in enumerate(tall)
        )
        parts.append(
            f'<g fill="{HUES[at]}" opacity=".65">{bars}</g><text x="70" y="{22 + 20 * at}" '
            f'style="fill:{HUES[at]}">{name}</text>'
        )
    parts += [
        f'<text x="{60 + 560 * (tick + 0.6) / 1.6:.0f}" y="270" text-anchor="middle">{tick:.1f}</text>'
        for tick in (-0.6, -0.2, 0.2, 0.6, 1)
    ]
    parts.append('<text x="340" y="292" text-anchor="middle">cosine between two different people</text>')
    svg("triplet", 680, 300, parts)


def looks(sites: list[Domain]) -> None:
    """Crops of one site, and the same in the look of two others: by twelve numbers, and by a network."""
    spec = build_config({"crop": {"height": 128, "width": 64}}).crop.spec()
    stores = [CropStore.decode(site, site.train, spec) for site in sites]
    source = stores[0].crops[np.linspace(0, len(stores[0]) - 1, 8).astype(int)]
    crops, rows = torch.from_numpy(source), [source]
    for store in stores[1:]:
        statistics = StyleStatistics.of([store.crops])
        numbers = torch.from_numpy(statistics.numbers).expand(len(crops), 4, 3)
        noise = torch.randn(len(crops), 2, 3, generator=torch.Generator().manual_seed(0))
        rows.append(restyle(crops, numbers, noise).clamp(0, 255).byte().numpy())
        torch.manual_seed(0)
        network = StyleNetwork(torch.full((3,), 118.0), torch.full((3,), 58.0), statistics).train()
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.0, 0.999))
        for iteration in range(STYLE_ITERATIONS):
            generator = torch.Generator().manual_seed(iteration)
            batch = torch.from_numpy(store.crops[torch.randint(len(store), (32,), generator=generator).numpy()])
            loss = network.loss(batch, torch.randn(32, 2, 3, generator=generator))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            rows.append(network.eval()(crops).clamp(0, 255).byte().numpy())
        rows.append(store.crops[np.linspace(0, len(store) - 1, 8).astype(int)])
    names = [
        sites[0].name,
        *(f"{how}{site.name}" for site in sites[1:] for how in ("numbers: ", "network: ", "crops of ")),
    ]
    canvas = np.full((len(rows) * 132, 150 + 8 * 68, 3), 255, np.uint8)
    for at, (name, row) in enumerate(zip(names, rows, strict=True)):
        cv2.putText(canvas, name, (4, at * 132 + 70), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (60, 60, 60), 1, cv2.LINE_AA)
        for place, crop in enumerate(row):
            canvas[at * 132 + 2 : at * 132 + 130, 150 + place * 68 : 150 + place * 68 + 64] = crop
    cv2.imwrite(str(IMAGES / "looks.jpg"), canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def main() -> None:
    """See the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        ideas(Path(folder))


def ideas(folder: Path) -> None:
    """Draw the figures of docs/methods.md."""
    dkp = read_method("dkp").model_copy(update={"transport": ({"ridge": {}},)})
    fine_tune = read_method("fine_tune")
    plain, averaged, held, centred, raw = (
        fine_tune.model_copy(
            update={"terms": ({"cross_entropy": rows}, {"triplet": triplet}, *({name: {}} for name in more))}
        )
        for rows, triplet, more in (
            ({}, {}, ()),
            ({}, {}, ("moving_average",)),
            ({}, {}, ("fixed_statistics",)),
            ({"start": "centre"}, {}, ()),
            ({}, {"unit": False}, ()),
        )
    )
    sites = [make_domain(folder / name, name, identities=72, seed=number) for number, name in enumerate(SITES)]

    def learned(name: str, method: Method, domains: list[Domain]) -> Run:
        config = build_config(SETTINGS)
        run = Run.create(folder / name, config)
        for site in domains:
            run.learn(site, method=method, config=config)
        return run

    whole = learned("dkp", dkp, sites)
    distributions(whole, sites[0])
    relations(whole, sites[1])
    transports(whole, sites[0])
    looks(sites)
    pair = sites[:2]
    tuned = learned("plain", plain, pair)
    fusions("fusion", tuned, learned("averaged", averaged, pair), "averaged along the step", pair)
    fusions("statistics", tuned, learned("held", held, pair), "statistics held", pair)
    fusions("centres", tuned, learned("centred", centred, pair), "rows from centres", pair)
    repairs(tuned, pair)
    beside = read_method("hyper_default")
    whole_adapter = tuple(
        {name: {**given, **({"share": 1.0} if name == "hypernetwork" else {})} for name, given in part.items()}
        for part in beside.adapter
    )
    adapters(learned("beside", beside.model_copy(update={"adapter": whole_adapter}), sites), sites)
    triplets(learned("raw", raw, pair), tuned, pair[1])


if __name__ == "__main__":
    main()
