#!/usr/bin/env python3
"""Shrinks an NCCL library for the bundle: keeps the device code of one GPU architecture.

    launch/gpu/slim-nccl.py libnccl.so.2 90 out/libnccl.so.2

The library of the wheel contains code for all architectures, 300 MB. Code for architectures other than the given one
(compute capability times 10: 90 for H100 and H200) is overwritten with zeros, which compress well; file size and
addresses do not change. It is an error if the library has no code for the given architecture.
"""

import struct
import sys

# A fat binary: magic, version, header size, size of the entries that follow.
FATBIN = struct.Struct("<IHHQ")
MAGIC = 0xBA55ED50
# An entry: kind, version, header size, payload size; the architecture is at byte 28.
ENTRY = struct.Struct("<HHIQ")
ARCHITECTURE = 28


def entries(image, start, end):
    """Yields (architecture, start, end) of the payload of each entry of one fat binary."""
    while start < end:
        _, _, header, payload = ENTRY.unpack_from(image, start)
        if header < ARCHITECTURE + 4 or start + header + payload > end:
            return
        (architecture,) = struct.unpack_from("<I", image, start + ARCHITECTURE)
        yield architecture, start + header, start + header + payload
        start += header + payload


def slim(image, keep):
    """Zeroes in place the code for all architectures except `keep`; returns bytes kept and bytes zeroed."""
    kept = zeroed = 0
    magic = struct.pack("<I", MAGIC)
    at = image.find(magic)
    while at >= 0:
        following = at + 4
        if at + FATBIN.size <= len(image):
            _, _, header, size = FATBIN.unpack_from(image, at)
            if header == FATBIN.size and at + header + size <= len(image):
                for architecture, start, end in entries(image, at + header, at + header + size):
                    if architecture == keep:
                        kept += end - start
                    else:
                        image[start:end] = bytes(end - start)
                        zeroed += end - start
                following = at + header + size
        at = image.find(magic, following)
    return kept, zeroed


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, architecture, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with open(source, "rb") as file:
        image = bytearray(file.read())
    kept, zeroed = slim(image, architecture)
    if kept == 0:
        sys.exit(f"slim-nccl.py: {source} has no code for architecture {architecture}")
    with open(target, "wb") as file:
        file.write(image)
    print(f"{target}: kept {kept / 1e6:.0f} MB for architecture {architecture}, zeroed {zeroed / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
