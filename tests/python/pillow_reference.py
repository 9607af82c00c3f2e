"""The results of torchvision's transforms, computed with Pillow only.

Usage: pillow_reference.py CASES OUT. CASES is a JSON list; each case has "op", "args" and, for images, "width",
"height" and "rgb" (a file of interleaved bytes). Case N writes OUT/N: planar bytes, or numbers as text.
"""

import json
import os
import sys

from PIL import Image, ImageEnhance, ImageOps


def centre_crop(image, side, px):
    """Resize(side) and CenterCrop(px)."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = side, int(side * long / short)
    size = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize(size, Image.BILINEAR)
    top, left = int(round((size[1] - px) / 2.0)), int(round((size[0] - px) / 2.0))
    return image.crop((left, top, left + px, top + px))


def resized_crop(image, left, top, width, height, px):
    return image.crop((left, top, left + width, top + height)).resize((px, px), Image.BILINEAR)


def pad_crop(image, pad, left, top, px):
    """Pad(pad, fill=0) and the crop at (left, top) that RandomCrop(px) may draw."""
    return ImageOps.expand(image, border=pad, fill=0).crop((left, top, left + px, top + px))


def hue(image, factor):
    hue, saturation, value = image.convert("HSV").split()
    # torchvision adds uint8(int(factor * 255)) to an array of uint8.
    turned = hue.point([(old + int(factor * 255)) % 256 for old in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def hole(row, column, px, side):
    """The rectangle that DARTS' Cutout(side) clears around a pixel: left, top, width, height."""
    top, bottom = max(row - side // 2, 0), min(row + side // 2, px)
    left, right = max(column - side // 2, 0), min(column + side // 2, px)
    return left, top, right - left, bottom - top


IMAGE_OPS = {
    "centre_crop": centre_crop,
    "resized_crop": resized_crop,
    "pad_crop": pad_crop,
    "flip": lambda image: image.transpose(Image.FLIP_LEFT_RIGHT),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": hue,
}


def main():
    cases, out = sys.argv[1:]
    with open(cases) as file:
        cases = json.load(file)
    for number, case in enumerate(cases):
        with open(os.path.join(out, str(number)), "wb") as file:
            if case["op"] == "hole":
                file.write(" ".join(str(n) for n in hole(*case["args"])).encode())
                continue
            with open(case["rgb"], "rb") as rgb:
                image = Image.frombytes("RGB", (case["width"], case["height"]), rgb.read())
            image = IMAGE_OPS[case["op"]](image, *case["args"])
            file.writelines(plane.tobytes() for plane in image.split())


if __name__ == "__main__":
    main()
