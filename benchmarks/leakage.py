"""What a memory says of the people it was made of: who was in the training set, and what they look like.

    python -m benchmarks.leakage [--save] [--picture docs/images/prototypes.jpg]

Drawn domains; with LIFELONG_REID_DATA set also i-LIDS, from a person-trained start whose weights lie in ``weights``
beside that folder.

Three tests on one learned domain whose method keeps distribution prototypes (dkp: μ and σ per person, fp16):

* **membership**: an attacker who has a crop of somebody asks whether that person was in the training set. Score: the
  crop's likeness to the nearest prototype. Compared with the model alone, as a run without a memory has it (the
  classifier's confidence) and as a bundle has it (how little the embedding of a crop changes when it is mirrored).
  Members are shown by the very crops that were trained on, and by others of the same people.
* **likeness**: whether a prototype finds its person among everybody remembered, by crops that were not trained on. 100
  % would be a perfect template.
* **reconstruction**: a decoder from embeddings to small pictures, taught on other people of other domains, is given the
  prototypes. How much nearer to the person is the picture than a picture made of another remembered person's prototype,
  and does it find its person?
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import domains
from benchmarks.results_file import record
from domains.arrays import Float32s
from domains.domain import Domain
from domains.synthetic import make_domain
from prototypes.prototype import DistributionPrototypes
from reid.batches.loader import CropStore
from reid.config import build_config
from reid.run import Run

DRAWN = {
    "model": {"backbone": "resnet10t", "weights": "none", "dim": 256},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 80, "lr": 2e-3, "identities": 12, "instances": 4},
    "augment": {"erase": 0.0},
    "method": "dkp",
}
REAL = {
    "model": {"backbone": "mobilenetv2_100"},
    "crop": {"height": 128, "width": 64},
    "method": "dkp",
    "train": {"iterations": 40, "identities": 12, "instances": 3},
}
WEIGHTS = "mobilenetv2_100.person.fp16.safetensors"
SMALL = (32, 16)
"""Rows and columns of the reconstructed pictures."""
DECODED = 1500
"""Iterations of 64 crops that the decoder is taught."""
BOOTSTRAP = 1000


# ------------------------------------------------------------------------------------------------------------ the parts


def held_back(domain: Domain) -> tuple[Domain, Domain]:
    """The domain with the last crop of each train identity that has three or more taken out of train, and one whose
    train split is what was taken.
    """
    pids = domain.train.pids
    last = np.array([np.flatnonzero(pids == pid)[-1] for pid in np.unique(pids[pids >= 0]) if (pids == pid).sum() >= 3])
    mask = np.isin(np.arange(len(pids)), last)
    return replace(domain, train=domain.train.take(~mask)), replace(domain, train=domain.train.take(mask))


def auc(inside: Float32s, outside: Float32s) -> dict[str, Any]:
    """Area under the ROC curve of "inside scores higher", in percent, with a 95 % interval over resampled crops."""

    def area(left: Float32s, right: Float32s) -> float:
        ordered = np.sort(right)
        below = np.searchsorted(ordered, left, "left") + np.searchsorted(ordered, left, "right")
        return float(50 * below.mean() / len(right))

    draw = np.random.default_rng(26)
    samples = [area(draw.choice(inside, len(inside)), draw.choice(outside, len(outside))) for _ in range(BOOTSTRAP)]
    return {
        "auc": round(area(inside, outside), 1),
        "interval": [round(float(bound), 1) for bound in np.percentile(samples, (2.5, 97.5))],
    }


def unit(vectors: Float32s) -> Float32s:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def likelihood(vectors: Float32s, found: DistributionPrototypes) -> Float32s:
    """Log-likelihood of each vector under the nearest stored Gaussian, ``[N]``."""
    spread = np.maximum(found.spread, 1e-3)
    return np.asarray(
        [(-0.5 * np.square((vector - found.mean) / spread) - np.log(spread)).sum(1).max() for vector in vectors],
        np.float32,
    )


def membership(run: Run, taught: Domain, other: Domain, outside: CropStore) -> dict[str, Any]:
    """AUC of every attack, for the very crops that were trained on and for other crops of the same people."""
    spec = run.config.crop.spec()
    stores = {
        "trained crops": CropStore.decode(taught, taught.train, spec),
        "other crops": CropStore.decode(other, other.train, spec),
    }
    found = DistributionPrototypes.from_arrays(run.memories()[0].arrays)
    assert found is not None
    embed, (model, _) = run.embedder(1), run.model(1)

    def confidence(crops: NDArray[np.uint8]) -> Float32s:
        with torch.inference_mode():
            return model.classify(torch.from_numpy(embed(crops))).softmax(1).amax(1).numpy()

    attacks: dict[str, Callable[[NDArray[np.uint8]], Float32s]] = {
        "memory: cosine to the nearest prototype": lambda crops: (embed(crops) @ unit(found.mean).T).max(1),
        "memory: likelihood under the nearest Gaussian": lambda crops: likelihood(embed(crops), found),
        "run without memory: confidence of the classifier": confidence,
        "bundle: likeness of a crop and its mirror image": lambda crops: (
            embed(crops) * embed(np.ascontiguousarray(crops[:, :, ::-1]))
        ).sum(1),
    }
    strangers = {name: attack(outside.crops) for name, attack in attacks.items()}
    return {
        shown: {name: auc(attack(store.crops), strangers[name]) for name, attack in attacks.items()}
        | {"crops": len(store)}
        for shown, store in stores.items()
    } | {"crops of people outside": len(outside)}


def by_count(run: Run, taught: Domain, other: Domain, outside: CropStore) -> list[dict[str, Any]]:
    """What the number of crops behind a prototype changes: prototypes made of the first n crops of each person."""
    spec, embed = run.config.crop.spec(), run.embedder(1)
    store, fresh = CropStore.decode(taught, taught.train, spec), CropStore.decode(other, other.train, spec)
    vectors, pids, asked = embed(store.crops), store.split.pids, embed(fresh.crops)
    away, rows = embed(outside.crops), []
    people = np.array([pid for pid in np.unique(fresh.split.pids) if (pids == pid).any()])
    most = max(int((pids == pid).sum()) for pid in people)
    for count in [n for n in (1, 2, 3, 5) if n <= most]:
        means = unit(np.stack([vectors[pids == pid][:count].mean(0) for pid in people]))
        nearest = people[(asked @ means.T).argmax(1)]
        rows.append(
            {
                "crops": count,
                "rank1": round(100 * float((nearest == fresh.split.pids).mean()), 1),
                "membership": auc((asked @ means.T).max(1), (away @ means.T).max(1)),
            }
        )
    return rows


class Decoder(nn.Module):
    """Unit embeddings ``[N, D]`` → pictures ``[N, 3, 32, 16]`` in 0..1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Linear(dim, 128 * 4 * 2), nn.ReLU())
        parts: list[nn.Module] = []
        for wide, narrow in ((128, 96), (96, 64), (64, 32)):
            parts += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(wide, narrow, 3, padding=1),
                nn.BatchNorm2d(narrow),
                nn.ReLU(),
            ]
        self.grow = nn.Sequential(*parts, nn.Conv2d(32, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.grow(self.start(vectors * vectors.shape[1] ** 0.5).view(-1, 128, 4, 2))
        return out


def small(crops: NDArray[np.uint8]) -> Float32s:
    """Crops as small pictures in 0..1, ``[N, 3, 32, 16]``."""
    pictures = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(pictures, SMALL, mode="area").numpy()


def taught_decoder(vectors: Float32s, pictures: Float32s) -> Decoder:
    """Learn to draw what an embedding was made of: L1 on small pictures."""
    torch.manual_seed(0)
    decoder = Decoder(vectors.shape[1]).train()
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=DECODED)
    draw = np.random.default_rng(0)
    given, wanted = torch.from_numpy(vectors), torch.from_numpy(pictures)
    for _ in range(DECODED):
        rows = torch.from_numpy(draw.integers(0, len(given), 64))
        loss = F.l1_loss(decoder(given[rows]), wanted[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return decoder.eval()


def ssim(left: Float32s, right: Float32s) -> Float32s:
    """Structural similarity of pictures ``[N, 3, h, w]`` in 0..1, windows of 7×7 (Wang et al., TIP 2004); mean over
    each picture.
    """
    one, two = (torch.from_numpy(np.ascontiguousarray(part)) for part in (left, right))

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 7, 1)

    a, b = mean(one), mean(two)
    spread = mean(one * one) - a * a, mean(two * two) - b * b, mean(one * two) - a * b
    value = (2 * a * b + 1e-4) * (2 * spread[2] + 9e-4) / ((a * a + b * b + 1e-4) * (spread[0] + spread[1] + 9e-4))
    return np.asarray(value.mean((1, 2, 3)).numpy())


def colours(pictures: Float32s) -> Float32s:
    """Mean colour of six stripes from head to foot, middle columns: what a witness would say of clothes; ``[N,
    18]``.
    """
    middle = pictures[:, :, 1:-1, 4:-4]
    return np.asarray(
        np.stack([stripe.mean((2, 3)) for stripe in np.array_split(middle, 6, axis=2)], 1).reshape(len(pictures), -1)
    )


def show(crops: NDArray[np.uint8], pictures: list[Float32s], path: Path) -> None:
    """A picture of drawn people: a crop each, and below it what was reconstructed, four times enlarged."""
    height, width = crops.shape[1:3]
    rows = [np.concatenate(list(crops), 1)]
    for part in pictures:
        big = F.interpolate(torch.from_numpy(part), (height, width), mode="nearest")
        rows.append(np.concatenate(list((255 * big.permute(0, 2, 3, 1)).round().byte().numpy()), 1))
    sheet = cv2.resize(np.concatenate(rows), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def reconstruction(
    run: Run, taught: Domain, other: Domain, elsewhere: list[CropStore], picture: Path | None = None
) -> dict[str, Any]:
    """Teach a decoder on other people, and give it the prototypes; all measures are taken against crops that were not
    trained on.
    """
    embed, spec = run.embedder(1), run.config.crop.spec()
    found = DistributionPrototypes.from_arrays(run.memories()[0].arrays)
    assert found is not None
    names = list(run.steps[1].card["classes"])
    fresh = CropStore.decode(other, other.train, spec)
    crops = np.concatenate([store.crops for store in elsewhere])
    decoder = taught_decoder(embed(crops), small(crops))
    rows = np.array([names.index(taught.identities[pid]) for pid in fresh.split.pids])
    with torch.inference_mode():
        drawn = decoder(torch.from_numpy(unit(found.mean))).numpy()
        best = decoder(torch.from_numpy(embed(fresh.crops))).numpy()
    true = small(fresh.crops)
    if picture is not None:
        chosen = np.linspace(0, len(rows) - 1, 10).astype(int)
        show(fresh.crops[chosen], [true[chosen], best[chosen], drawn[rows[chosen]]], picture)
    shift = np.array([(row + 1 + number % (len(names) - 1)) % len(names) for number, row in enumerate(rows)])
    plain = np.repeat(small(crops).mean(0, keepdims=True), len(true), 0)

    def measured(pictures: Float32s) -> dict[str, float]:
        away = np.abs(colours(pictures) - colours(true)).mean(1)
        return {
            "ssim": round(float(ssim(pictures, true).mean()), 3),
            "colour_error": round(255 * float(away.mean()), 1),
        }

    def rank1(given: Float32s, held: Float32s) -> float:
        nearest = np.square(given[:, None] - held[None]).sum(2).argmin(1)
        return round(100 * float((rows[nearest] == np.arange(len(given))).mean()), 1)

    seen = np.unique(rows)
    chance = round(100 * float(np.mean([(rows == row).mean() for row in seen])), 1)
    big = F.interpolate(torch.from_numpy(drawn[seen]), (spec.height, spec.width), mode="bilinear")
    again = embed((255 * big.permute(0, 2, 3, 1)).round().byte().numpy())
    remap = {row: number for number, row in enumerate(seen)}
    owner = np.array([remap[row] for row in rows])

    def finds(given: Float32s, held: Float32s) -> float:
        return round(100 * float((owner[(given @ held.T).argmax(1)] == np.arange(len(given))).mean()), 1)

    centred = colours(true).mean(0)
    return {
        "people": len(seen),
        "decoder taught on crops": len(crops),
        "chance_rank1": chance,
        "from the prototype": measured(drawn[rows]),
        "from another person's prototype": measured(drawn[shift]),
        "the mean picture of the decoder's own people": measured(plain),
        "from the crop's own embedding": measured(best),
        "rank1 of the prototype itself": finds(unit(found.mean[seen]), embed(fresh.crops)),
        "rank1 of the picture, by the model": finds(again, embed(fresh.crops)),
        "rank1 of the picture, by colours": round(
            100
            * float(
                (
                    owner[
                        np.square(
                            (colours(drawn[seen]) - colours(drawn[seen]).mean(0))[:, None]
                            - (colours(true) - centred)[None]
                        )
                        .sum(2)
                        .argmin(1)
                    ]
                    == np.arange(len(seen))
                ).mean()
            ),
            1,
        ),
        "nearer to the person than another's, by SSIM": round(
            100 * float((ssim(drawn[rows], true) > ssim(drawn[shift], true)).mean()), 1
        ),
    }


# ---------------------------------------------------------------------------------------------------------- the studies


def study(
    folder: Path, domain: Domain, settings: dict[str, Any], elsewhere: list[Domain], picture: Path | None = None
) -> dict[str, Any]:
    """Learn one domain and attack it."""
    taught, other = held_back(domain)
    run = Run.create(folder, build_config(settings))
    run.learn(taught)
    spec = run.config.crop.spec()
    strangers = np.flatnonzero(~np.isin(domain.gallery.pids, [*np.unique(domain.train.pids), -1]))
    outside = CropStore.decode(domain, domain.gallery.take(strangers), spec)
    stores = [CropStore.decode(site, split, spec) for site in elsewhere for _, split in site.splits() if len(split)]
    memory = run.memories()[0]
    return {
        "domain": domain.name,
        "people": len(run.steps[1].card["classes"]),
        "train_crops": len(taught.train),
        "memory_bytes": memory.bytes,
        "settings": settings["method"],
        "iterations": run.config.train.iterations,
        "membership": membership(run, taught, other, outside),
        "by_count": by_count(run, taught, other, outside),
        "reconstruction": reconstruction(run, taught, other, stores, picture),
    }


def main() -> None:
    """Run the studies and print what they found."""
    import json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/leakage.json")
    parser.add_argument("--picture", type=Path, help="write drawn people and their reconstructions here, as JPEG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = os.environ.get("LIFELONG_REID_DATA")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        site = make_domain(root / "plaza", "plaza", identities=120, cameras=3, per_camera=2, seed=3)
        others = [
            make_domain(root / style, style, identities=150, cameras=2, per_camera=2, seed=40 + n)
            for n, style in enumerate(("corridor", "station"))
        ]
        results["drawn"] = study(root / "drawn", site, DRAWN, others, options.picture)
        print(json.dumps(results["drawn"], indent=1), flush=True)
        if data:
            settings = {**REAL, "model": {**REAL["model"], "weights": str(Path(data).parent / "weights" / WEIGHTS)}}  # type: ignore[dict-item]
            elsewhere = [domains.open(Path(data) / name) for name in ("caviar4reid", "3dpes", "viper")]
            results["i-LIDS"] = study(root / "real", domains.open(Path(data) / "ilids"), settings, elsewhere)
            print(json.dumps(results["i-LIDS"], indent=1), flush=True)
    if options.save:
        record("leakage", {"command": "python -m benchmarks.leakage --save", "studies": results})


if __name__ == "__main__":
    main()
