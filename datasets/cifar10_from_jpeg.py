#!/usr/bin/env python3
"""Converts a copy of CIFAR-10 as JPEG files, with an order list for each part, into the binary files of CIFAR-10.

    python3 -m venv venv && venv/bin/pip install pillow
    venv/bin/python datasets/cifar10_from_jpeg.py cifar10_jpeg cifar10

PACK/order_train.txt and PACK/order_test.txt contain lines "<canonical index> <path relative to PACK>"; the path ends in
<class>/<file>. OUT gets data_batch_1.bin ... data_batch_5.bin, test_batch.bin and batches.meta.txt, as `drnas-dist pack`
reads them. The pixels are those of the JPEG files and differ slightly from the official ones.
"""

import os
import sys

from PIL import Image

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def order(pack, part):
    """Returns the paths of a part in canonical order."""
    name = os.path.join(pack, f"order_{part}.txt")
    with open(name) as file:
        entries = [line.split() for line in file if line.strip()]
    if any(len(entry) != 2 for entry in entries):
        sys.exit(f"{name}: expected lines \"<canonical index> <path>\"")
    entries = sorted((int(index), path) for index, path in entries)
    if len({index for index, _ in entries}) != len(entries):
        sys.exit(f"{name}: duplicate index")
    return [path for _, path in entries]


def record(pack, path):
    """Returns one label byte, then the red, green and blue plane, each 32 rows of 32 bytes."""
    name = os.path.basename(os.path.dirname(path))
    if name not in CLASSES:
        sys.exit(f"{path}: \"{name}\" is not a CIFAR-10 class")
    with Image.open(os.path.join(pack, path)) as image:
        if image.size != (32, 32):
            sys.exit(f"{path}: expected 32 x 32 pixels, found {image.size[0]} x {image.size[1]}")
        planes = image.convert("RGB").split()
    return bytes([CLASSES.index(name)]) + b"".join(plane.tobytes() for plane in planes)


def write(pack, paths, out):
    with open(out + ".tmp", "wb") as file:
        file.writelines(record(pack, path) for path in paths)
    os.replace(out + ".tmp", out)
    print(f"{out}: {len(paths)} records")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pack, out = sys.argv[1:]
    train, test = order(pack, "train"), order(pack, "test")
    os.makedirs(out, exist_ok=True)
    fifth = -(-len(train) // 5)
    for batch in range(5):
        paths = train[batch * fifth : (batch + 1) * fifth]
        write(pack, paths, os.path.join(out, f"data_batch_{batch + 1}.bin"))
    write(pack, test, os.path.join(out, "test_batch.bin"))
    with open(os.path.join(out, "batches.meta.txt"), "w") as file:
        file.write("\n".join(CLASSES) + "\n")


if __name__ == "__main__":
    main()
