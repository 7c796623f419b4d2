"""Fill a gallery from Python, find a person, and erase them again. Run learn_two_sites.py first: this needs its bundle.

    python examples/gallery_from_python.py [FOLDER]       # default: ./example

Nothing here needs torch: it is what runs at the edge.
"""

import sys
from pathlib import Path

import domains
from deploy import Encoder, Gallery
from domains.crops import read_crop


def main(folder: Path) -> None:
    """Use the bundle and one site's crops that lie in a folder."""
    site = domains.open(folder / "sites" / "plaza")
    encoder = Encoder.load(folder / "bundle", provider="cpu")

    with Gallery.create(folder / "gallery", dim=encoder.dim, feature_space=encoder.feature_space) as gallery:
        files = site.files(site.gallery)
        cameras = [site.cameras[camera] for camera in site.gallery.camids]
        for camera in sorted(set(cameras)):
            seen = [file for file, name in zip(files, cameras, strict=True) if name == camera]
            vectors = encoder([read_crop(file) for file in seen])
            gallery.add(vectors, camera=camera, source=[str(file) for file in seen])  # returns once it is on disk

        query = site.files(site.query)[0]
        (matches,) = gallery.search(encoder([read_crop(query)]), k=5)
        for match in matches:
            print(f"{match.rank}. {match.score:.3f} camera {match.camera} {Path(match.source).name}")

        erased = gallery.forget(ids=[match.id for match in matches])
        print(f"erased {erased} entries, {len(gallery)} are left")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
