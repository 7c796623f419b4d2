"""A tiny domain on disk."""

from pathlib import Path

import cv2
import numpy as np


def draw_tiny_domain(root, seed=0, people=10, cameras=2, each=2):
    """Write coloured rectangles on noise, half the people for training, with their domain.csv."""
    draw = np.random.default_rng((20, seed))
    root = Path(root)
    root.mkdir(parents=True)
    rows = ["path,pid,camid,split"]
    for person in range(people):
        colours = draw.integers(30, 226, (2, 3))
        for camera in range(cameras):
            for number in range(each):
                image = draw.integers(60 + 40 * camera, 120 + 40 * camera, (48, 24, 3))
                image[6:24, 5:19] = colours[0] + draw.integers(-20, 20, 3)
                image[24:46, 7:17] = colours[1] + draw.integers(-20, 20, 3)
                name = f"{person:03d}_c{camera}_{number}.png"
                cv2.imwrite(str(root / name), np.clip(image, 0, 255).astype(np.uint8))
                split = "train" if person < people * 0.6 else "query" if camera == 0 and number == 0 else "gallery"
                rows.append(f"{name},{person},{camera},{split}")
    (root / "domain.csv").write_text("\n".join(rows) + "\n")
    return root
