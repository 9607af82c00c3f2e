//! Crop, resize, flip, normalise, as torchvision defines them; the random generator is an argument.
//!
//! Shapes: N images, 3 channels, H W rows and columns, px output side.

use super::decode::{MAX_PIXELS, Picture};
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use rand::{Rng, RngExt};
use std::cell::RefCell;
use tch::{Kind, Tensor};

/// How a picture becomes `[3, px, px]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Augment {
    /// RandomResizedCrop (area `area_min`..1, ratio 3/4..4/3), then a flip with probability 1/2 where `flip`.
    RandomResizedCrop {
        /// Smallest part of the area, 0..=1; the published run: 0.08.
        area_min: f64,
        /// Mirror half of the pictures.
        flip: bool,
    },
    /// Resize the shorter side to `resize`, then the centre px x px. Draws nothing.
    CentreCrop {
        /// At least px.
        resize: u32,
    },
    /// `pad` black pixels on each side, then a random px x px piece (CIFAR), then the flip.
    PadCrop {
        /// Pixels on each side.
        pad: u32,
        /// Mirror half of the pictures.
        flip: bool,
    },
}

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

const RATIO_MIN: f64 = 3.0 / 4.0;
const RATIO_MAX: f64 = 4.0 / 3.0;

impl Augment {
    /// Writes `picture`, changed as `self` says, as planar `[3, px, px]` into `out` (`3 * px * px` bytes).
    /// Errors: the picture is too small for a `PadCrop`, or too long and narrow for a `CentreCrop`.
    pub fn apply(
        &self,
        picture: &Picture,
        px: u32,
        rng: &mut impl Rng,
        out: &mut [u8],
    ) -> Result<(), String> {
        match *self {
            Augment::RandomResizedCrop { area_min, flip } => {
                let crop = random_resized_crop(picture.width, picture.height, area_min, rng);
                let flip = flip && rng.random::<bool>();
                resize(picture, crop, (px, px), |resized| {
                    planar(resized, px, (0, 0), px, flip, out)
                });
            }
            Augment::CentreCrop { resize: side } => {
                let (width, height) = shorter_side_to(picture.width, picture.height, side.max(px));
                if u64::from(width) * u64::from(height) > MAX_PIXELS {
                    return Err(format!(
                        "{} x {} pixels are too long and narrow to resize",
                        picture.width, picture.height
                    ));
                }
                let whole = Crop {
                    left: 0,
                    top: 0,
                    width: picture.width,
                    height: picture.height,
                };
                let half = |size: u32| (f64::from(size - px) / 2.0).round_ties_even() as u32;
                let origin = (half(width), half(height));
                resize(picture, whole, (width, height), |resized| {
                    planar(resized, width, origin, px, false, out)
                });
            }
            Augment::PadCrop { pad, flip } => {
                let (width, height) = (picture.width + 2 * pad, picture.height + 2 * pad);
                if width < px || height < px {
                    return Err(format!(
                        "{} x {} pixels with {pad} of padding are smaller than {px} x {px}",
                        picture.width, picture.height
                    ));
                }
                let top = rng.random_range(0..=height - px);
                let left = rng.random_range(0..=width - px);
                let flip = flip && rng.random::<bool>();
                pad_crop(picture, pad, (left, top), px, flip, out);
            }
        }
        Ok(())
    }
}

/// The rectangle of torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest allowed centre piece.
pub fn random_resized_crop(width: u32, height: u32, area_min: f64, rng: &mut impl Rng) -> Crop {
    let area = f64::from(width) * f64::from(height);
    let (ratio_min, ratio_max) = (RATIO_MIN.ln(), RATIO_MAX.ln());
    for _ in 0..10 {
        let target = area * (area_min + (1.0 - area_min) * rng.random::<f64>());
        let ratio = (ratio_min + (ratio_max - ratio_min) * rng.random::<f64>()).exp();
        let w = (target * ratio).sqrt().round_ties_even();
        let h = (target / ratio).sqrt().round_ties_even();
        if w >= 1.0 && h >= 1.0 && w <= f64::from(width) && h <= f64::from(height) {
            let (w, h) = (w as u32, h as u32);
            let top = rng.random_range(0..=height - h);
            let left = rng.random_range(0..=width - w);
            return Crop {
                left,
                top,
                width: w,
                height: h,
            };
        }
    }
    let ratio = f64::from(width) / f64::from(height);
    let (mut w, mut h) = (width, height);
    if ratio < RATIO_MIN {
        h = ((f64::from(w) / RATIO_MIN).round_ties_even() as u32).clamp(1, height);
    } else if ratio > RATIO_MAX {
        w = ((f64::from(h) * RATIO_MAX).round_ties_even() as u32).clamp(1, width);
    }
    Crop {
        left: (width - w) / 2,
        top: (height - h) / 2,
        width: w,
        height: h,
    }
}

/// The size of torchvision's `Resize(side)`: the shorter side becomes `side`, the other is cut to an integer.
fn shorter_side_to(width: u32, height: u32, side: u32) -> (u32, u32) {
    let long =
        |short: u32, long: u32| (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
    if width <= height {
        (side, long(width, height))
    } else {
        (long(height, width), side)
    }
}

thread_local! {
    // Coefficients and intermediate rows are used again by each decode thread.
    static RESIZER: RefCell<(Resizer, Vec<u8>)> = RefCell::new((Resizer::new(), Vec::new()));
}

/// Bilinear, antialiased (the filter grows with the reduction) from `crop` to `size`, as Pillow and so torchvision do
/// on PIL images: the piece is cut first, pixels outside do not count. `use_it` gets interleaved RGB.
fn resize(picture: &Picture, crop: Crop, size: (u32, u32), use_it: impl FnOnce(&[u8])) {
    RESIZER.with_borrow_mut(|(resizer, buffer)| {
        let needed = 3 * size.0 as usize * size.1 as usize;
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        let source =
            TypedImageRef::<U8x3>::from_buffer(picture.width, picture.height, picture.rgb())
                .expect("a picture has 3 * width * height bytes");
        let source = TypedCroppedImage::new(source, crop.left, crop.top, crop.width, crop.height)
            .expect("the crop lies inside the picture");
        let mut target = TypedImage::<U8x3>::from_buffer(size.0, size.1, &mut buffer[..needed])
            .expect("the buffer has 3 * width * height bytes");
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        resizer
            .resize_typed(&source, &mut target, &options)
            .expect("source and target are not empty");
        use_it(&buffer[..needed]);
    })
}

/// The px x px piece at `origin` (column, row) of interleaved rows of `width` pixels, planar, mirrored where `flip`.
fn planar(rgb: &[u8], width: u32, origin: (u32, u32), px: u32, flip: bool, out: &mut [u8]) {
    let (px, width) = (px as usize, width as usize);
    let (red, rest) = out.split_at_mut(px * px);
    let (green, blue) = rest.split_at_mut(px * px);
    for row in 0..px {
        let start = 3 * ((row + origin.1 as usize) * width + origin.0 as usize);
        let source = &rgb[start..start + 3 * px];
        let line = row * px..(row + 1) * px;
        let targets = red[line.clone()]
            .iter_mut()
            .zip(&mut green[line.clone()])
            .zip(&mut blue[line]);
        let put = |(((r, g), b), p): (((&mut u8, &mut u8), &mut u8), &[u8])| {
            (*r, *g, *b) = (p[0], p[1], p[2]);
        };
        if flip {
            targets.rev().zip(source.chunks_exact(3)).for_each(put);
        } else {
            targets.zip(source.chunks_exact(3)).for_each(put);
        }
    }
}

fn pad_crop(picture: &Picture, pad: u32, origin: (u32, u32), px: u32, flip: bool, out: &mut [u8]) {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let (rgb, side) = (picture.rgb(), px as usize);
    for row in 0..side {
        for column in 0..side {
            let x = (origin.0 as usize + column).wrapping_sub(pad as usize);
            let y = (origin.1 as usize + row).wrapping_sub(pad as usize);
            let at = row * side + if flip { side - 1 - column } else { column };
            for channel in 0..3 {
                let inside = x < width && y < height;
                out[channel * side * side + at] = if inside {
                    rgb[3 * (y * width + x) + channel]
                } else {
                    0
                };
            }
        }
    }
}

/// Bytes to `(x / 255 - mean) / std`. Shapes: `images` [N, 3, H, W] of kind Uint8, result the same in Float on the
/// images' device.
pub fn normalise(images: &Tensor, mean: &[f64; 3], std: &[f64; 3]) -> Tensor {
    let column = |values: [f64; 3]| {
        Tensor::from_slice(&values)
            .to_kind(Kind::Float)
            .view([1, 3, 1, 1])
            .to_device(images.device())
    };
    // One multiplication and one addition: x * 1/(255 std) - mean/std.
    let scale = column(std.map(|s| 1.0 / (255.0 * s)));
    let shift = column([0, 1, 2].map(|c| -mean[c] / std[c]));
    (images.to_kind(Kind::Float) * scale) + shift
}
