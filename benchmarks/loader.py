"""Loader: images per second, the usual ImageFolder + PIL + DataLoader against the
decode-once cache. Run by hand.

    python benchmarks/loader.py [--images 600] [--sizes 96 224] [--rounds 5]

Draws its own 1300x1000 JPEG files. Both sides augment every sample (ours with gamma,
blur and noise on top) and deliver normalised float32 batches of 64 on the device, in
interleaved rounds; the cache is built once and its time is reported beside.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sample_data  # noqa: E402
import utils  # noqa: E402


def large_images(root: Path, images: int) -> Path:
    """The drawn X-rays, enlarged to the size of the real ones."""
    place = sample_data.draw_chest_xray(root, images)
    for path in place.rglob("*.jpeg"):
        try:
            picture = (
                Image.open(path)
                .convert("L")
                .resize((1300, 1000), Image.Resampling.BICUBIC)
            )
        except OSError:
            continue  # the planted cut file stays as it is
        grain = np.random.default_rng(len(path.name)).normal(0, 4, (1000, 1300))
        Image.fromarray(
            np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
        ).save(path, "JPEG", quality=90)
    return root


def compare(source: Path, size: int, rounds: int, home: Path) -> None:
    """Print one row a round and the ratio at one image size."""
    course = utils.start(1, source=source, profile="quick", image_size=size, home=home)
    utils.build_index(course)
    began = time.perf_counter()
    data = utils.load_data(course)
    built = time.perf_counter() - began
    table = pd.DataFrame(utils.compare_loaders(data, rounds))
    ratio = table["cached"] / table["naive"]
    print(table.round(0).assign(ratio=ratio.round(2)).to_string())
    print(
        f"ratio at {size} px: median {ratio.median():.1f}x, range"
        f" {ratio.min():.1f}-{ratio.max():.1f}x, {len(ratio)} rounds of"
        f" {len(data.where('train'))} images; cache of {len(data.labels)} built in"
        f" {built:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = large_images(Path(folder) / "raw", options.images)
        for size in options.sizes:
            compare(source, size, options.rounds, Path(folder) / f"home-{size}")
    print(utils.hardware())


if __name__ == "__main__":
    main()
