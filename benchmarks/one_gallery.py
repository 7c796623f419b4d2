"""The picture of docs/metric.md: one query in one gallery of seven drawn sites, by each metric.

python -m benchmarks.one_gallery
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from domains.crops import Crop, read_crop
from domains.domain import Domain
from domains.synthetic import STYLES, make_domain
from prototypes.metric import Metric
from reid.config import build_config
from reid.demo import SETTINGS
from reid.demo import STYLES as TAUGHT
from reid.run import Run, scoring

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BEST = 8
RIGHT, WRONG = (24, 138, 70), (200, 48, 44)


def one_gallery(run: Run, sites: list[Domain]) -> None:
    """The best matches of one query among the crops of all sites, by cosine, by the pooled metric and by its site's
    mixed one.

    The query: of those with more right crops among the best by the mixed metric than by cosine, that with the median
    gain in average precision.
    """
    found, embed = scoring.in_one_gallery(run, sites), run.embedder(-1)
    held = np.concatenate([embed(run.stores.get(site, site.gallery).crops) for site in sites])
    places = [(site, place) for site in sites for place in range(len(site.gallery))]
    kinds: dict[str, Callable[[Domain], Metric | None]] = {
        "cosine": lambda site: None,
        "pooled": lambda site: run.metric("pooled"),
        "mixed": lambda site: run.metric(f"mixed:{site.name}"),
    }

    def matches(site: Domain, kind: str) -> list[list[tuple[Domain, int, bool]]]:
        """The best matches of each query of a site: where they are, and whether they are right."""
        metric, asked = kinds[kind](site), embed(run.stores.get(site, site.query).crops)
        near = asked @ held.T if metric is None else metric(asked) @ metric(held).T
        lists = []
        for row, person, camera in zip(near, site.query.pids, site.query.camids, strict=True):
            ranked = [places[at] for at in np.argsort(-row, kind="stable")]
            right = [other is site and site.gallery.pids[place] == person for other, place in ranked]
            lists.append(
                [
                    (other, place, same)
                    for (other, place), same in zip(ranked, right, strict=True)
                    if not same or site.gallery.camids[place] != camera
                ][:BEST]
            )
        return lists

    shown = {(kind, site.name): matches(site, kind) for kind in kinds for site in sites}
    gains = []
    for number, site in enumerate(sites):
        cosine, mixed = (found[kind][site.name] for kind in ("cosine", "mixed"))
        for at, row in enumerate(cosine.scored):
            before, after = (sum(same for _, _, same in shown[kind, site.name][row]) for kind in ("cosine", "mixed"))
            gains.append((float(mixed.ap[at] - cosine.ap[at]), number, at, int(row), after - before))
    for what, place in (("average precision", 0), (f"right crops among the best {BEST}", 4)):
        more, fewer = sum(gain[place] > 0 for gain in gains), sum(gain[place] < 0 for gain in gains)
        print(f"{len(gains)} queries by the mixed metric and by cosine: {more} have more {what}, {fewer} less")
    better = sorted(gain for gain in gains if gain[4] > 0)
    if not better:
        raise SystemExit("no query finds more, so there is nothing to draw")
    _, number, at, row, _ = better[len(better) // 2]
    asking = sites[number]
    canvas = np.full((len(kinds) * 122 + 2, 196 + BEST * 62, 3), 255, np.uint8)
    _crop(canvas, 4, 4, asking.files(asking.query)[row], (90, 90, 90), f"{asking.name}?")
    for line, kind in enumerate(kinds):
        mean = 100 * float(np.concatenate([scores.ap for scores in found[kind].values()]).mean())
        here = 100 * float(found[kind][asking.name].ap[at])
        print(f"{kind}: this query {here:.1f}, all queries {mean:.1f} percent mAP")
        for text, down, size in ((kind, 30, 0.5), (f"AP here {here:.0f} %", 52, 0.36), (f"mAP {mean:.1f} %", 70, 0.36)):
            corner = (68, line * 122 + down)
            cv2.putText(canvas, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, (50, 50, 50), 1, cv2.LINE_AA)
        for rank, (site, found_at, same) in enumerate(shown[kind, asking.name][row]):
            file = site.files(site.gallery)[found_at]
            _crop(canvas, 196 + rank * 62, line * 122 + 4, file, RIGHT if same else WRONG, site.name)
    cv2.imwrite(str(IMAGES / "one_gallery.png"), canvas[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _crop(canvas: Crop, left: int, top: int, file: Path, frame: tuple[int, int, int], name: str) -> None:
    """Put a crop of 96×48 on a picture, framed, with a name below."""
    cv2.rectangle(canvas, (left, top), (left + 53, top + 101), frame, -1)
    small = cv2.resize(read_crop(file), (48, 96), interpolation=cv2.INTER_AREA)
    canvas[top + 3 : top + 99, left + 3 : left + 51] = small
    cv2.putText(canvas, name, (left, top + 113), cv2.FONT_HERSHEY_SIMPLEX, 0.34, (50, 50, 50), 1, cv2.LINE_AA)


def seven_sites(folder: Path) -> tuple[Run, list[Domain]]:
    """A network taught on three sites, as ``reid demo`` does, and then seven with other people measured by it."""
    config = build_config(SETTINGS)
    run = Run.create(folder / "seven", config)
    for number, style in enumerate(TAUGHT):
        run.learn(make_domain(folder / f"school-{style}", style, identities=72, seed=100 + number), config=config)
    sites = [
        make_domain(folder / "measured" / style, style, identities=72, seed=number)
        for number, style in enumerate(STYLES)
    ]
    for site in sites:
        run.learn(site, method="metric", config=config)
    return run, sites


def main() -> None:
    """See the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        one_gallery(*seven_sites(Path(folder)))


if __name__ == "__main__":
    main()
