"""End-to-end training throughput against a plain loop: eager float32, every image decoded and augmented by itself,
torch's own loader.

    python -m benchmarks.training                       # ResNet-50 and ViT-small at 256x128, MobileNetV2 at 128x64
    python -m benchmarks.training --backbones mobilenetv2_100 --repeats 5

Both train the same network on the same crops with the same losses and optimiser; runs alternate, and the ratio is of
medians within this one process. Also prints both precisions of our loop, which is how `train.precision=auto` was
decided.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.results_file import record
from domains.domain import Domain
from domains.synthetic import make_domain
from reid.batches.loader import CropStore
from reid.batches.sampler import IdentitySampler
from reid.config import Config, build_config, read_method
from reid.network.build import build_model
from reid.network.model import ReidModel
from reid.network.runtime import Runtime
from reid.step.learner import Learner
from reid.terms import Step, build_terms, losses

SIZES = {"resnet50": (256, 128), "vit_small_patch16_224": (256, 128), "mobilenetv2_100": (128, 64)}
WARM_UP = 2


class PlainCrops(Dataset):
    """What re-ID code bases do: open, transform, one image at a time."""

    def __init__(self, domain: Domain, config: Config) -> None:
        height, width = config.crop.height, config.crop.width
        pad = round(config.augment.shift * height)
        self.files = domain.files(domain.train)
        self.labels = np.unique(domain.train.pids, return_inverse=True)[1]
        self.transform = transforms.Compose(
            [
                transforms.Resize((height, width)),
                transforms.RandomHorizontalFlip(config.augment.flip),
                transforms.Pad(pad),
                transforms.RandomCrop((height, width)),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                transforms.RandomErasing(config.augment.erase, (0.02, 0.4)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.files[row]).convert("RGB")), int(self.labels[row])


class PlainNet(torch.nn.Module):
    """The same layers without our normalisation, which the plain loop does per image."""

    def __init__(self, model: ReidModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.model.embedding(self.model.pool(self.model.backbone(images)))
        return embedding, self.model.classifier(self.model.neck(embedding))


def plain(domain: Domain, config: Config, iterations: int) -> float:
    """Crops per second of the plain loop, after warming up."""
    train = config.train
    data = PlainCrops(domain, config)
    model = build_model(config.model, config.crop.spec(), classes=int(data.labels.max()) + 1)
    sampler = IdentitySampler(data.labels, domain.train.camids, identities=train.identities, instances=train.instances)
    batches = [sampler.batch(number).tolist() for number in range(WARM_UP + iterations)]
    net = PlainNet(model).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    for number, (images, labels) in enumerate(DataLoader(data, batch_sampler=batches, num_workers=2)):
        if number == WARM_UP:
            start = time.perf_counter()
        embedding, logits = net(images)
        loss = losses.cross_entropy(logits, labels, 0.1) + losses.batch_hard_triplet(embedding, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
    return iterations * train.identities * train.instances / (time.perf_counter() - start)


def ours(domain: Domain, config: Config, iterations: int, precision: str) -> tuple[float, float, str]:
    """Crops per second of our loop after warming up, the share of time spent waiting for crops, and the precision."""
    train = config.train.model_copy(update={"iterations": WARM_UP + iterations, "precision": precision})
    config = config.model_copy(update={"train": train})
    store = CropStore.decode(domain, domain.train, config.crop.spec())
    model = build_model(config.model, config.crop.spec(), classes=len(np.unique(domain.train.pids)))
    runtime = Runtime.choose("cpu", precision, model)
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        step = Step(1, domain, config, runtime, model, {}, 0)
        learner = Learner(step, build_terms(read_method("fine_tune").terms), store, {}, Path(folder))
        trained = learner.train(lambda done, values: times.append(time.perf_counter()))
    speed = iterations * train.identities * train.instances / (times[-1] - times[WARM_UP - 1])
    return speed, trained.waiting / trained.seconds, str(runtime.dtype).removeprefix("torch.")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default=",".join(SIZES))
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/training.json")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        domain = make_domain(Path(folder) / "plaza", "plaza", identities=64, cameras=2, per_camera=3, size=(256, 128))
        for backbone in options.backbones.split(","):
            height, width = SIZES[backbone]
            config = build_config(
                {"model": {"backbone": backbone, "weights": "none"}, "crop": {"height": height, "width": width}}
            )
            runs: dict[str, list[float]] = {"plain": [], "auto": [], "fp32": [], "bf16": []}
            waiting, chosen = [], ""
            for repeat in range(options.repeats):
                runs["plain"].append(plain(domain, config, options.iterations))
                for precision in ("auto", "fp32", "bf16") if repeat == 0 else ("auto",):
                    speed, waited, dtype = ours(domain, config, options.iterations, precision)
                    runs[precision].append(speed)
                    if precision == "auto":
                        waiting.append(waited)
                        chosen = dtype
            middle = {name: statistics.median(values) for name, values in runs.items()}
            rows[backbone] = {
                "crop": f"{height}x{width}",
                "auto_precision": chosen,
                "waiting": round(statistics.median(waiting), 4),
                "ratio": round(middle["auto"] / middle["plain"], 2),
                "crops_per_second": {name: [round(value, 1) for value in values] for name, values in runs.items()},
            }
            print(
                f"{backbone:24} {height}x{width}  plain {middle['plain']:6.1f}  ours {middle['auto']:6.1f} ({chosen})  "
                f"ratio {rows[backbone]['ratio']:.2f}  [fp32 {middle['fp32']:.1f}, bf16 {middle['bf16']:.1f}]  "
                f"waiting {100 * rows[backbone]['waiting']:.1f} %",
                flush=True,
            )
    if options.save:
        record(
            "training",
            {
                "command": "python -m benchmarks.training --save",
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
