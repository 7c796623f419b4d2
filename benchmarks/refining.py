"""What refinements at query time bring, what they cost, and whether calibrated thresholds hold, on real domains.

    python -m benchmarks.refining [--save]    # needs LIFELONG_REID_DATA, and the two ready-made encoders in ../weights
                                              # beside it

Two person encoders as they can be had, never trained here: retail-0277 (strong) and OSNet x0.25 from MSMT17 (an edge
model). The test splits are used for measuring alone; all parameters are the published ones: k-reciprocal k1 = 20, k2 =
6, λ = 0.3; expansion by 5 matches with α = 3. ``closed set`` is re-ranking as papers do it, over all queries and the
whole gallery at once, which a live gallery can't do.

Times are processor time of one query for ten matches in a gallery of that domain, embedding aside: the median of 50.
"Covered" counts over 20 seeds of the halves how often the interval of the measured rate holds the chosen one; it speaks
of the half that measures alone, while the threshold itself varies with the half that chose it, so fewer than 19 are to
be expected.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import domains
from benchmarks.results_file import record
from deploy import Encoder, Gallery
from deploy.answers.calibration import calibrate
from deploy.answers.refine import Refinement, search
from deploy.bundle import Golden, write_bundle
from deploy.encoder.encoder import Skipped
from domains.arrays import Float32s
from domains.artefact import content_id
from domains.domain import Domain
from domains.errors import DataError
from domains.openset import count_pairs, impostor_levels, open_set, pair_blocks
from domains.reranking import k_reciprocal
from domains.scoring import Labels, Scores, score_similarities
from domains.synthetic import golden_crops

DATA = Path(os.environ.get("LIFELONG_REID_DATA", ""))
HEIGHT, WIDTH = 256, 128
TIMED = 50
MIN_GROUPS = 20
FLOOR_DOMAIN = "prid2011"
"""Where the least score of an expansion is calibrated: a domain that is not measured here."""

ENCODERS: dict[str, dict[str, Any]] = {
    "retail-0277": {
        "file": "person-reidentification-retail-0277.onnx",
        "bgr": True,
        "mean": [0, 0, 0],
        "scale": [1, 1, 1],
    },
    "OSNet x0.25": {
        "file": "osnet_x0_25_msmt17.onnx",
        "bgr": False,
        "mean": [123.675, 116.28, 103.53],
        "scale": [1 / 58.395, 1 / 57.12, 1 / 57.375],
    },
}
DOMAINS = ("viper", "3dpes", "caviar4reid")


def bundle_of(name: str, folder: Path) -> Path:
    """A bundle around a ready-made graph: uint8 RGB crops in, unit vectors out."""
    spec = ENCODERS[name]
    model = onnx.load(str(DATA.parent / "weights" / spec["file"]))
    graph, given = model.graph, model.graph.input[0].name
    order = [2, 1, 0] if spec["bgr"] else [0, 1, 2]
    constants = {
        "own.order": np.array(order, np.int64),
        "own.mean": np.array(spec["mean"], np.float32).reshape(3, 1, 1),
        "own.scale": np.array(spec["scale"], np.float32).reshape(3, 1, 1),
    }
    before = [
        helper.make_node("Cast", ["crops"], ["own.float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["own.float"], ["own.planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Gather", ["own.planes", "own.order"], ["own.ordered"], axis=1),
        helper.make_node("Sub", ["own.ordered", "own.mean"], ["own.centred"]),
        helper.make_node("Mul", ["own.centred", "own.scale"], [given]),
    ]
    dim = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    after = helper.make_node("LpNormalization", [graph.output[0].name], ["embeddings"], axis=1, p=2)
    whole = helper.make_graph(
        [*before, *graph.node, after],
        "encoder",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", dim])],
        [*graph.initializer, *(numpy_helper.from_array(value, key) for key, value in constants.items())],
    )
    data = helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version).SerializeToString()
    golden = golden_crops(16, height=HEIGHT, width=WIDTH)
    import onnxruntime

    embeddings = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"crops": golden})[0]
    body = {
        "feature_space": content_id(spec),
        "dim": dim,
        "crop": {"height": HEIGHT, "width": WIDTH, "resize": "area"},
        "backbone": name,
        "precision": "fp32",
        "step": 0,
        "domains": [],
        "method": "none",
        "parity": {"16": 1.0},
        "licences": {"weights": "see origin", "data": "see origin"},
    }
    write_bundle(folder, model_onnx=data, golden=Golden(golden, embeddings), card=f"# {name}\n", body=body, parent=None)
    return folder


class Remembering:
    """An encoder that embeds each file once, also over several runs of this benchmark."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._kept = Path(tempfile.gettempdir()) / f"lifelong-reid-refining-{encoder.feature_space[:12]}.npz"
        self._known: dict[Path, Float32s] = {}
        if self._kept.is_file():
            with np.load(self._kept, allow_pickle=False) as kept:
                self._known = {
                    Path(name): vector for name, vector in zip(kept["paths"].tolist(), kept["vectors"], strict=True)
                }

    def files(self, paths: list[Path]) -> tuple[Float32s, list[Skipped]]:
        """As the encoder's; every image must be readable."""
        new = [path for path in paths if path not in self._known]
        if new:
            vectors, skipped = self.encoder.files(new)
            if skipped:
                raise DataError(skipped[0].reason)
            self._known.update(zip(new, np.asarray(vectors), strict=True))
            np.savez(
                self._kept,
                paths=np.array([str(path) for path in self._known]),
                vectors=np.stack(list(self._known.values())),
            )
        return np.stack([self._known[path] for path in paths]), []


class Site:
    """A domain's embeddings and a gallery that holds its gallery split."""

    def __init__(self, domain: Domain, encoder: Remembering, folder: Path) -> None:
        self.domain = domain
        self.query, self.held = (encoder.files(domain.files(split))[0] for split in (domain.query, domain.gallery))
        self.labels = Labels.from_split(domain.query), Labels.from_split(domain.gallery)
        self.gallery = Gallery.create(folder, self.held.shape[1], encoder.encoder.feature_space)
        self.gallery.add(
            self.held, [domain.cameras[camera] for camera in domain.gallery.camids], list(domain.gallery.paths)
        )

    def ranking(
        self, vectors: Float32s, refinement: Refinement, groups: list[NDArray[np.intp]] | None = None
    ) -> tuple[Float32s, float]:
        """Minus the ranks ``[Q, G]`` of all entries, and median milliseconds per query."""
        queries = [vectors[group] for group in groups] if groups else list(vectors)
        places, times = np.empty((len(queries), len(self.held)), np.float32), []
        for row, asked in enumerate(queries):
            (found,) = search(self.gallery, asked, len(self.held), refinement)
            places[row, [match.id - 1 for match in found]] = [-match.rank for match in found]
        for asked in queries[:TIMED]:
            began = time.process_time()
            search(self.gallery, asked, 10, refinement)
            times.append(time.process_time() - began)
        return places, 1000 * float(np.median(times))

    def scores(self, places: Float32s, queries: Labels | None = None) -> Scores:
        """Score a ranking under the domain's camera rule."""
        return score_similarities(
            places, queries or self.labels[0], self.labels[1], same_camera=self.domain.same_camera
        )


def refinements(floor: float) -> dict[str, Refinement]:
    """What is compared."""
    return {
        "cosine": Refinement(),
        "expanded": Refinement(expand=5),
        "expanded, above the calibrated score": Refinement(expand=5, least=floor),
        "re-ranked, best 100": Refinement(rerank=True),
        "re-ranked, all": Refinement(rerank=True, depth=10**6),
        "expanded and re-ranked, best 100": Refinement(expand=5, rerank=True),
    }


def single(site: Site, floor: float) -> Iterator[dict[str, Any]]:
    """One image a query."""
    for name, refinement in refinements(floor).items():
        places, milliseconds = site.ranking(site.query, refinement)
        yield {"ranking": name, "ms": milliseconds, **_both(site.scores(places))}
    yield {"ranking": "re-ranked, closed set", "ms": None, **_both(site.scores(k_reciprocal(site.query, site.held)))}


def several(site: Site, count: int) -> list[dict[str, Any]]:
    """Groups of ``count`` query images of one person and camera, each image in one group: alone, by the mean, by the
    greatest cosine.

    ``fpr`` is the share of impostor pairs that reach the score which 1 % of single images' impostor pairs reach.
    """
    query = site.domain.query
    groups = []
    for pid, camid in sorted(set(zip(query.pids.tolist(), query.camids.tolist(), strict=True))):
        rows = np.flatnonzero((query.pids == pid) & (query.camids == camid))
        groups += [rows[at : at + count] for at in range(0, len(rows) - count + 1, count)]
    if len(groups) < MIN_GROUPS:
        return []
    first = np.array([group[0] for group in groups])
    who, members = Labels(query.pids[first], query.camids[first]), np.concatenate(groups)
    similarity = site.query @ site.held.T
    level = impostor_levels(
        lambda: pair_blocks(site.query, site.held, *site.labels, same_camera=site.domain.same_camera),
        count_pairs(*site.labels, same_camera=site.domain.same_camera).impostor,
        [0.01],
    )[0]
    strangers = who.pids[:, None] != site.labels[1].pids
    merged: dict[str, Callable[[Float32s], Float32s]] = {
        "mean": lambda rows: rows.mean(axis=0),
        "max": lambda rows: rows.max(axis=0),
    }
    alone, milliseconds = site.ranking(site.query[members], Refinement())
    found = [
        {
            "query": f"each of {count} images alone",
            "groups": len(groups),
            "ms": milliseconds,
            "fpr": 0.01,
            **_both(site.scores(alone, Labels(query.pids[members], query.camids[members]))),
        }
    ]
    for how, merge in merged.items():
        places, milliseconds = site.ranking(site.query, Refinement(together=how), groups)  # type: ignore[arg-type]
        reached = np.stack([merge(similarity[group]) for group in groups])[strangers] > level
        found.append(
            {
                "query": f"{count} images by their {how}",
                "groups": len(groups),
                "ms": milliseconds,
                "fpr": float(reached.mean()),
                **_both(site.scores(places, who)),
            }
        )
    return found


def calibrated(encoder: Remembering, site: Site, fpr: float, seeds: int = 20) -> dict[str, Any] | None:
    """Calibration with seed 0, and over several seeds how the measured rate lies to the chosen one."""
    try:
        found = [calibrate(encoder, site.domain, fpr=fpr, seed=seed) for seed in range(seeds)]  # type: ignore[arg-type]
    except DataError as error:
        return {"fpr": fpr, "refused": str(error)}
    rates, scores = [one.measured_fpr for one in found], [one.score for one in found]
    return {
        **found[0].to_dict(),
        "seeds": seeds,
        "mean_measured_fpr": float(np.mean([rate.value for rate in rates])),
        "covered": sum(rate.low <= fpr <= rate.high for rate in rates),
        "scores": [min(scores), max(scores)],
    }


def carried(sites: dict[str, Site], thresholds: dict[str, float]) -> list[dict[str, Any]]:
    """False-positive rate on each domain of the score that was calibrated on another."""
    rows = []
    for chosen, score in thresholds.items():
        for name, site in sites.items():
            reached = pairs = 0
            for _, similarity, _, strangers in pair_blocks(
                site.query, site.held, *site.labels, same_camera=site.domain.same_camera
            ):
                reached, pairs = reached + int((similarity[strangers] >= score).sum()), pairs + int(strangers.sum())
            rows.append({"calibrated_on": chosen, "used_on": name, "score": score, "fpr": reached / pairs})
    return rows


def _both(scores: Scores) -> dict[str, float]:
    return {"mAP": scores.mAP, "rank1": scores.rank1}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Everything with one encoder."""
    encoder = Remembering(Encoder.load(bundle_of(name, folder / "bundle"), threads=1))
    sites = {each: Site(domains.open(DATA / each), encoder, folder / each) for each in (*DOMAINS, FLOOR_DOMAIN)}
    thresholds = {each: calibrate(encoder, site.domain).score for each, site in sites.items()}  # type: ignore[arg-type]
    result: dict[str, Any] = {
        "single": {},
        "several": {},
        "calibrated": {},
        "open_set": {},
        "carried": carried(sites, thresholds),
    }
    for each in DOMAINS:
        site = sites[each]
        result["single"][each] = list(single(site, thresholds[FLOOR_DOMAIN]))
        result["several"][each] = [row for count in (2, 5) for row in several(site, count)]
        result["calibrated"][each] = [calibrated(encoder, site, fpr) for fpr in (1e-2, 1e-3)]
        result["open_set"][each] = open_set(
            site.query, site.held, *site.labels, same_camera=site.domain.same_camera
        ).to_dict()
    for site in sites.values():
        site.gallery.close()
    return result


def tables(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = []
    for name, result in found.items():
        lines += [
            "",
            f"{name}, one image a query (mAP / rank-1, ms a query)",
            "",
            f"| ranked by | {' | '.join(DOMAINS)} |",
            "|---" * (1 + len(DOMAINS)) + "|",
        ]
        for number, row in enumerate(result["single"][DOMAINS[0]]):
            cells = [result["single"][each][number] for each in DOMAINS]
            shown = [
                f"{cell['mAP']:.1f} / {cell['rank1']:.1f}" + (f", {cell['ms']:.1f}" if cell["ms"] else "")
                for cell in cells
            ]
            lines.append(f"| {row['ranking']} | {' | '.join(shown)} |")
        lines += ["", "| domain | query | groups | mAP | rank-1 | ms | FPR |", "|---" * 7 + "|"]
        for each in DOMAINS:
            for row in result["several"][each]:
                cells = [
                    each,
                    row["query"],
                    row["groups"],
                    f"{row['mAP']:.1f}",
                    f"{row['rank1']:.1f}",
                    f"{row['ms']:.1f}",
                    f"{100 * row['fpr']:.2f} %",
                ]
                lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += [
            "",
            "| domain | FPR chosen | score | FPR measured | TPR measured | mean over seeds | covered |",
            "|---" * 7 + "|",
        ]
        for each in DOMAINS:
            for row in result["calibrated"][each]:
                if "refused" in row:
                    lines.append(f"| {each} | {100 * row['fpr']:g} % | refused: {row['refused']} | | | | |")
                    continue
                rates = [
                    "{:.2f} ({:.2f} to {:.2f})".format(*(100 * value for value in row[key]))
                    for key in ("measured_fpr", "measured_tpr")
                ]
                cells = [
                    each,
                    f"{100 * row['fpr']:g} %",
                    f"{row['score']:.3f}",
                    *rates,
                    f"{100 * row['mean_measured_fpr']:.3f}",
                    f"{row['covered']} of {row['seeds']}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
        names = [*DOMAINS, FLOOR_DOMAIN]
        lines += [
            "",
            f"| calibrated at 0.1 % on | score | FPR (%) on {' | '.join(names)} |",
            "|---" * (2 + len(names)) + "|",
        ]
        for chosen in names:
            rows = [row for row in result["carried"] if row["calibrated_on"] == chosen]
            lines.append(
                f"| {chosen} | {rows[0]['score']:.3f} | {' | '.join(format(100 * row['fpr'], '.3f') for row in rows)} |"
            )
        for each in DOMAINS:
            lines += ["", f"{each} {result['open_set'][each]}"]
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/refining.json")
    parser.add_argument("--encoder", choices=list(ENCODERS), help="only this one")
    options = parser.parse_args()
    found = {}
    for name in [options.encoder] if options.encoder else ENCODERS:
        with tempfile.TemporaryDirectory(prefix="lifelong-reid-refining-") as folder:
            found[name] = measure(name, Path(folder))
    print(tables(found))
    if options.save:
        record("refining", {"encoders": found})


if __name__ == "__main__":
    main()
