"""Draw the demo's data set in the contest's layout: 30 classes in three groups, four without training photographs.

python -m demo.make_data FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from demo import world
from fewshot import cli
from jclip.paths import expand

TRAIN, TEST = 10, 16  # photographs per class
SHOTLESS = ("dotted square", "hollow triangle", "five crosses", "two squares")  # classes without training photographs
QUALITY = 92  # of the JPEG files


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--seed")
    p.add_argument(
        "folder",
        type=expand,
        metavar="FOLDER",
        help="what to write: classes_b.txt, train.txt, TrainSet/ and TestSetB/CLASS/",
    )
    return p.parse_args(argv)


@cli.command
def main(argv=None):
    a = parse(argv)
    things = {**world.signs(), **world.flocks(), **world.things()}
    classes = [
        (group, name)
        for group, names in (("Sign", world.NEW_SIGNS), ("Flock", world.NEW_FLOCKS), ("Thing", world.THINGS))
        for name in names
    ]
    train_lines = []
    for label, (group, name) in enumerate(classes):
        words = name.replace(" ", "_")
        for i in range(0 if name in SHOTLESS else TRAIN):
            path = f"TrainSet/{group}/{words}/{i + 1}.jpg"
            save(things[name], np.random.default_rng([a.seed, label, 0, i]), a.folder / path)
            train_lines.append(f"{path} {label}\n")
        for i in range(TEST):
            save(
                things[name],
                np.random.default_rng([a.seed, label, 1, i]),
                a.folder / f"TestSetB/{group}_{words}/{i + 1}.jpg",
            )
    (a.folder / "train.txt").write_text("".join(train_lines))
    (a.folder / "classes_b.txt").write_text(
        "".join(f"{group}_{name.replace(' ', '_')} {label}\n" for label, (group, name) in enumerate(classes))
    )
    print(f"{a.folder}: {len(classes)} classes, {len(train_lines)} training and {len(classes) * TEST} test photographs")


def save(thing: world.Thing, rng: np.random.Generator, path: Path) -> None:
    """Draw a photograph of the thing in a random colour and save it as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = str(rng.choice(list(world.COLOURS)))
    world.photograph(thing, colour, rng, *world.SIZE).save(path, quality=QUALITY)


if __name__ == "__main__":
    sys.exit(main())
