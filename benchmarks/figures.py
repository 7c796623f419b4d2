"""The figures of docs/methods.md, from drawn people: a short run, then one picture per idea.

python -m benchmarks.figures
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from domains.domain import Domain
from domains.style import StyleNetwork, StyleStatistics, restyle
from domains.synthetic import make_domain
from prototypes.prototype import DistributionPrototypes
from prototypes.transport import compose
from reid.config import build_config, read_method
from reid.demo import SETTINGS
from reid.evaluate import torch_embedder
from reid.loader import CropStore
from reid.run import Run

IMAGES = Path(__file__).parent.parent / "docs" / "images"
HUES = ("#0b6e99", "#c2410c", "#3f7d20", "#7c3aed", "#b45309", "#be185d")
SITES = ("plaza", "corridor", "nightstreet")
STYLE_ITERATIONS, PEOPLE = 400, 6

Floats = NDArray[np.float32]


def svg(name: str, width: int, height: int, parts: list[str]) -> None:
    """Write a picture of lines and dots on white."""
    style = "<style>text{font:13px system-ui,sans-serif;fill:#333}</style>"
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    body = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{paper}{style}{"".join(parts)}</svg>'
    (IMAGES / f"{name}.svg").write_text(body + "\n", "utf-8")


def distributions(run: Run, domain: Domain) -> None:
    """Crops of a few people as Gaussians, and their prototypes, on the two directions in which these people differ most."""
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

    def place(points: Floats) -> Floats:
        return np.asarray((points @ axes - middle) * scale + 260, np.float32)

    parts, rng = [], np.random.default_rng(0)
    for number, person in enumerate(people):
        hue = HUES[number]
        for c, v in zip(centre[owners == person], spread[owners == person], strict=True):
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.3" fill="{hue}" opacity=".35"/>' for x, y in place(c + v * rng.standard_normal((25, len(c))))
            ]
            x, y = place(c[None])[0]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{hue}"/>')
        values, vectors = np.linalg.eigh(axes.T @ np.diag(kept.spread[number] ** 2) @ axes)
        turn = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        (x, y), (small, large) = place(mean[number][None])[0], np.sqrt(values) * scale
        ellipse = f'<ellipse rx="{large:.1f}" ry="{small:.1f}" transform="translate({x:.1f} {y:.1f}) rotate({turn:.1f})"'
        parts.append(ellipse + f' fill="none" stroke="{hue}" stroke-width="2"/>')
    parts.append(
        '<text x="12" y="508">large dots: crops · small dots: draws from each crop · ellipses: what is kept, one Gaussian per person (1 σ)</text>'
    )
    svg("distributions", 680, 520, parts)


def transports(run: Run, domain: Domain) -> None:
    """How far the first domain's gallery is from where the last model would put it, carried and left alone."""
    gallery = run.stores.get(domain, domain.gallery).crops
    first, last = (torch_embedder(run.model(step)[0], torch.device("cpu"))(gallery) for step in (1, -1))
    carried = compose([found for step in run.steps[2:] if (found := step.transport())], first)
    scores = run.evaluate_without_reindexing([domain])[domain.name]
    bins = np.linspace(-0.2, 1, 49)
    parts, names = [], (("left as it was", first, HUES[1], "as_it_was"), ("carried by the transports", carried, HUES[0], "carried"))
    top = 0
    counts = []
    for _, vectors, _, _ in names:
        counts.append(np.histogram((vectors * last).sum(1), bins)[0])
        top = max(top, int(counts[-1].max()))
    for (name, _, hue, key), count in zip(names, counts, strict=True):
        step = 560 / len(count)
        tall = 200 * count / top
        bars = "".join(f'<rect x="{60 + step * at:.1f}" y="{250 - h:.1f}" width="{step - 1:.1f}" height="{h:.1f}"/>' for at, h in enumerate(tall))
        value = scores[key]
        parts.append(f'<g fill="{hue}" opacity=".65">{bars}</g>')
        line = 22 if key == "carried" else 42
        parts.append(f'<text x="70" y="{line}" style="fill:{hue}">{name}: {domain.name} {value:.1f} % mAP</text>')
    parts.append(f'<text x="70" y="62">embedded again by the last model: {scores["reindexed"]:.1f} % mAP</text>')
    parts += [f'<text x="{60 + 560 * (tick + 0.2) / 1.2:.0f}" y="270" text-anchor="middle">{tick:.1f}</text>' for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    parts.append('<text x="340" y="292" text-anchor="middle">cosine to the last model\'s own embedding of the same crop</text>')
    svg("transport", 680, 300, parts)


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
    names = [sites[0].name, *(f"{how}{site.name}" for site in sites[1:] for how in ("numbers: ", "network: ", "crops of "))]
    canvas = np.full((len(rows) * 132, 150 + 8 * 68, 3), 255, np.uint8)
    for at, (name, row) in enumerate(zip(names, rows, strict=True)):
        cv2.putText(canvas, name, (4, at * 132 + 70), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (60, 60, 60), 1, cv2.LINE_AA)
        for place, crop in enumerate(row):
            canvas[at * 132 + 2 : at * 132 + 130, 150 + place * 68 : 150 + place * 68 + 64] = crop
    cv2.imwrite(str(IMAGES / "looks.jpg"), canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def main() -> None:
    """See the module's docstring."""
    method = read_method("dkp").model_copy(update={"transport": ({"ridge": {}},)})
    with tempfile.TemporaryDirectory() as folder:
        sites = [make_domain(Path(folder) / name, name, identities=72, seed=number) for number, name in enumerate(SITES)]
        config = build_config(SETTINGS)
        run = Run.create(Path(folder) / "run", config)
        for site in sites:
            run.learn(site, method=method, config=config)
        distributions(run, sites[0])
        transports(run, sites[0])
        looks(sites)


if __name__ == "__main__":
    main()
