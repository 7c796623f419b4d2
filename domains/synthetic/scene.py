"""Crops of a drawn person seen by a drawn camera, whole domains of them, and the golden crops that check exports."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np

from domains.arrays import Float32s
from domains.artefact import write_atomic
from domains.crops import Crop
from domains.domain import Domain, from_rows
from domains.errors import DataError
from domains.synthetic.body import render
from domains.synthetic.camera import SCALE, STYLES, Camera, backdrop, draw_camera, photograph, style_of
from domains.synthetic.person import Person, draw_person, draw_pose

JPEG_QUALITY = 92
START = datetime(2026, 3, 2, 8, tzinfo=UTC)


def draw_crop(person: Person, camera: Camera, rng: np.random.Generator, *, height: int = 128, width: int = 64) -> Crop:
    """Draw one crop: this person seen by this camera, at a moment that ``rng`` chooses.

    Returns:
        uint8 RGB ``[height, width, 3]``, framed as imperfectly as a detector would.

    Raises:
        DataError: a size under 32×16 or over 1024.
    """
    _check_size(height, width)
    scene = _background(camera, rng, height, width)
    tall = height * rng.uniform(0.87, 1.0)
    foot = (width * (0.5 + rng.normal(0, 0.05)), height * (0.975 + rng.normal(0, 0.025)))
    _stand(scene, person, camera, rng, foot, tall)
    if rng.random() < style_of(camera.style).occlusion:
        _occlude(scene, camera, rng, foot, tall)
    return photograph(scene, camera, rng)


def golden_crops(count: int = 16, *, height: int, width: int) -> Crop:
    """Draw fixed crops of different people seen by different cameras: uint8 ``[count, height, width, 3]``.

    Raises:
        DataError: a count below 1, or a size outside 1×1 to 1024×1024.
    """
    for name, value, most in (("count", count, None), ("height", height, 1024), ("width", width, 1024)):
        _check_whole(name, value, 1, most)
    out = np.empty((count, height, width, 3), np.uint8)
    for number in range(count):
        rng = np.random.default_rng((2026, 11, number))
        camera = draw_camera(STYLES[number % len(STYLES)], rng)
        size = max(32, height), max(16, width)
        crop = draw_crop(draw_person(rng), camera, rng, height=size[0], width=size[1])
        out[number] = (
            crop if size == (height, width) else cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
        )
    return out


def make_domain(
    out: Path,
    style: str,
    *,
    identities: int = 60,
    cameras: int = 3,
    per_camera: int = 2,
    train_fraction: float = 0.5,
    seed: int = 0,
    size: tuple[int, int] = (128, 64),
) -> Domain:
    """Draw a whole domain into a folder with its ``domain.csv``; the same arguments give the same bytes.

    A share ``train_fraction`` of the people is for training. Each of the others has one crop as a query and the rest in
    the gallery, but a tenth of them are distractors, seen by one camera only.

    Args:
        out: an absent or empty folder.
        style: one of ``STYLES``.
        identities: number of people, at least 4.
        cameras: number of cameras, at least 1.
        per_camera: crops of a person from a camera, at least 1.
        train_fraction: share of people in train, between 0 and 1.
        seed: seed of everything drawn.
        size: rows and columns of the crops.

    Raises:
        DataError: a wrong argument, or a folder that is not empty.
    """
    out, traits = Path(out), style_of(style)
    for name, value, least in (
        ("identities", identities, 4),
        ("cameras", cameras, 1),
        ("per_camera", per_camera, 1),
        ("seed", seed, 0),
    ):
        _check_whole(name, value, least)
    height, width = size
    _check_size(height, width)
    if not isinstance(train_fraction, float) or not 0 < train_fraction < 1:
        raise DataError(f"train_fraction must lie between 0 and 1, got {train_fraction!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} already exists and is not an empty folder; choose another folder")
    (out / "crops").mkdir(parents=True, exist_ok=True)
    key = (seed, STYLES.index(style))
    lenses = [draw_camera(style, np.random.default_rng((*key, 1, number))) for number in range(cameras)]
    training = max(2, min(identities - 2, round(train_fraction * identities)))
    rows: list[tuple[str, str, str | None, str]] = []
    times: list[str] = []
    for number in range(identities):
        person = draw_person(np.random.default_rng((*key, 2, number)), season=traits.season, muted=traits.muted)
        rng = np.random.default_rng((*key, 3, number))
        distractor = number >= training and cameras > 1 and (number - training) % 10 == 9
        seen_by = sorted(
            rng.permutation(cameras)[
                : 1 if distractor or (cameras > 1 and rng.random() < 0.05 and number < training) else cameras
            ].tolist()
        )
        has_query = False
        for camera in seen_by:
            for shot in range(per_camera):
                name = f"crops/{number:04d}_c{camera + 1}_{shot}.jpg"
                crop = draw_crop(
                    person,
                    lenses[camera],
                    np.random.default_rng((*key, 4, number, camera, shot)),
                    height=height,
                    width=width,
                )
                _write_jpeg(out / name, crop)
                query = number >= training and not distractor and not has_query
                has_query |= query
                rows.append(
                    (
                        "train" if number < training else "query" if query else "gallery",
                        name,
                        f"{style}-{number:03d}",
                        f"{style}-{camera + 1}",
                    )
                )
                times.append((START + timedelta(minutes=7 * number + 2 * camera, seconds=11 * shot)).isoformat())
    _write_table(out / "domain.csv", rows, times)
    return from_rows(out.name, out, "csv", rows, times=times)


def _check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise DataError(f"{name} must be a whole number {limit}, got {value!r}")


def _check_size(height: int, width: int) -> None:
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in (height, width))
    if not whole or not (32 <= height <= 1024 and 16 <= width <= 1024):
        raise DataError(f"a drawn crop must be from 32×16 to 1024×1024 pixels, got {height}×{width}")


def _write_jpeg(path: Path, crop: Crop) -> None:
    path.write_bytes(cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes())


def _write_table(path: Path, rows: list[tuple[str, str, str | None, str]], times: list[str]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "pid", "camid", "split", "time"])
    table.writerows(
        [name, pid, camera, split, time] for (split, name, pid, camera), time in zip(rows, times, strict=True)
    )
    write_atomic(path, text.getvalue().encode(), private=False)


def _background(camera: Camera, rng: np.random.Generator, rows: int, columns: int) -> Float32s:
    """A random stretch of the camera's backdrop."""
    whole = backdrop(camera, rows, columns)
    top = round((SCALE - 1) / 2 * rows) + int(rng.integers(-rows // 14, rows // 14 + 1))
    left = int(rng.integers(whole.shape[1] - columns + 1))
    return whole[top : top + rows, left : left + columns].astype(np.float32)


def _stand(
    scene: Float32s, person: Person, camera: Camera, rng: np.random.Generator, foot: tuple[float, float], tall: float
) -> None:
    """Put a person into the scene, with their shadow."""
    rows, columns = scene.shape[:2]
    strength = style_of(camera.style).shadow
    cast = np.zeros((rows, columns), np.float32)
    away = -camera.sun * 0.16 * tall
    cv2.ellipse(
        cast,
        (round(foot[0] + away), round(foot[1] - 0.03 * tall)),
        (max(1, round(0.2 * tall)), max(1, round(0.025 * tall))),
        0,
        0,
        360,
        0.8,
        -1,
    )
    cv2.ellipse(
        cast,
        (round(foot[0]), round(foot[1] - 0.02 * tall)),
        (max(1, round(0.1 * tall)), max(1, round(0.022 * tall))),
        0,
        0,
        360,
        1.0,
        -1,
    )
    scene *= (1 - strength * cv2.GaussianBlur(cast, (0, 0), 0.016 * tall))[..., None]
    colours, cover = render(person, draw_pose(rng, tilt=camera.tilt, sun=camera.sun), rows, columns, foot, tall)
    scene *= (1 - cover)[..., None]
    scene += colours


def _occlude(scene: Float32s, camera: Camera, rng: np.random.Generator, foot: tuple[float, float], tall: float) -> None:
    """Put something in front: a post, a bag or barrier at the feet, or another person at the edge."""
    rows, columns = scene.shape[:2]
    kind = rng.integers(3)
    if kind == 0:
        x, thick = int(rng.integers(columns)), max(2, round(columns * rng.uniform(0.06, 0.12)))
        post = scene[:, x : x + thick]
        round_ = np.sin(np.linspace(0.3, 2.6, thick, dtype=np.float32))[: post.shape[1]]
        post[:] = rng.uniform(60, 150) * (0.35 + 0.65 * round_)[None, :, None]
    elif kind == 1:
        high, left = int(rows * rng.uniform(0.1, 0.26)), int(rng.integers(-columns // 3, columns // 2))
        thing = scene[rows - high :, max(0, left) : left + columns * 2 // 3]
        paint = rng.uniform(50, 110) + rng.normal(0, 14, 3)
        thing[:] = (paint * np.linspace(1.25, 0.7, high)[:, None, None]).astype(np.float32)
        thing[: max(1, high // 9)] *= 1.25
    else:
        traits = style_of(camera.style)
        other = draw_person(rng, season=traits.season, muted=traits.muted)
        side = foot[0] + columns * rng.choice([-1, 1]) * rng.uniform(0.36, 0.52)
        _stand(scene, other, camera, rng, (float(side), foot[1] + 0.02 * tall), tall * 1.03)
