//! Which pixels of a picture are taken, and how they are resized: as torchvision and Pillow do.
//!
//! Shapes: H W rows and columns, px output side; planar means [3, H, W], one colour behind the other.

use crate::data::decode::{Fault, MAX_PIXELS, Picture};
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use rand::{Rng, RngExt};
use std::cell::RefCell;

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Rect {
    /// All of `picture`.
    pub fn whole(picture: &Picture) -> Rect {
        Rect { left: 0, top: 0, width: picture.width, height: picture.height }
    }
}

const RATIO_MIN: f64 = 3.0 / 4.0;
/// Largest ratio of width to height of a random crop.
pub(super) const RATIO_MAX: f64 = 4.0 / 3.0;

/// The rectangle of torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest allowed centre piece.
pub fn random_resized_crop(width: u32, height: u32, area_min: f64, rng: &mut impl Rng) -> Rect {
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
            return Rect { left, top, width: w, height: h };
        }
    }
    let ratio = f64::from(width) / f64::from(height);
    let (mut w, mut h) = (width, height);
    if ratio < RATIO_MIN {
        h = ((f64::from(w) / RATIO_MIN).round_ties_even() as u32).clamp(1, height);
    } else if ratio > RATIO_MAX {
        w = ((f64::from(h) * RATIO_MAX).round_ties_even() as u32).clamp(1, width);
    }
    Rect { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// The size of torchvision's `Resize(side)`: the shorter side becomes `side`, the other is cut to an integer.
pub fn shorter_side_to(width: u32, height: u32, side: u32) -> (u32, u32) {
    let long = |short: u32, long: u32| (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
    if width <= height { (side, long(width, height)) } else { (long(height, width), side) }
}

thread_local! {
    // Coefficients and intermediate rows are used again by each decode thread.
    static RESIZER: RefCell<(Resizer, Vec<u8>)> = RefCell::new((Resizer::new(), Vec::new()));
}

/// Bilinear, antialiased (the filter grows with the reduction) from `crop` to `size`, as Pillow and so torchvision do
/// on PIL images: the piece is cut first, pixels outside do not count. `use_it` gets interleaved RGB.
fn resize(picture: &Picture, crop: Rect, size: (u32, u32), use_it: impl FnOnce(&[u8])) {
    if crop == Rect::whole(picture) && size == (crop.width, crop.height) {
        return use_it(picture.rgb());
    }
    RESIZER.with_borrow_mut(|(resizer, buffer)| {
        let needed = 3 * size.0 as usize * size.1 as usize;
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        let source = TypedImageRef::<U8x3>::from_buffer(picture.width, picture.height, picture.rgb())
            .expect("a picture has 3 * width * height bytes");
        let source = TypedCroppedImage::new(source, crop.left, crop.top, crop.width, crop.height)
            .expect("the crop lies inside the picture");
        let mut target = TypedImage::<U8x3>::from_buffer(size.0, size.1, &mut buffer[..needed])
            .expect("the buffer has 3 * width * height bytes");
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        resizer.resize_typed(&source, &mut target, &options).expect("source and target are not empty");
        use_it(&buffer[..needed]);
    })
}

/// torchvision's `resized_crop`: the piece `crop` at px x px, planar, mirrored where `flip`.
pub fn resized_crop(picture: &Picture, crop: Rect, px: u32, flip: bool, out: &mut [u8]) {
    resize(picture, crop, (px, px), |resized| planar(resized, px, (0, 0), px, flip, out));
}

/// torchvision's `Resize(side)` and `CenterCrop(px)`, px at most `side`; planar.
/// Errors: the picture is so long and narrow that it would be too large.
pub fn centre_crop(picture: &Picture, side: u32, px: u32, out: &mut [u8]) -> Result<(), Fault> {
    let (width, height) = shorter_side_to(picture.width, picture.height, side);
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let (width, height) = (picture.width, picture.height);
        return Err(format!("{width} x {height} pixels are too long and narrow to resize"));
    }
    // As Python rounds: a half goes to the even side.
    let half = |size: u32| (f64::from(size - px) / 2.0).round_ties_even() as u32;
    let origin = (half(width), half(height));
    resize(picture, Rect::whole(picture), (width, height), |resized| {
        planar(resized, width, origin, px, false, out)
    });
    Ok(())
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
        let targets = red[line.clone()].iter_mut().zip(&mut green[line.clone()]).zip(&mut blue[line]);
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

/// torchvision's `RandomCrop(px, padding=pad)`: the px x px piece at `origin` (column, row) of the picture with `pad`
/// black pixels on each side, planar, mirrored where `flip`.
pub fn pad_crop(picture: &Picture, pad: u32, origin: (u32, u32), px: u32, flip: bool, out: &mut [u8]) {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let (px, pad, x0, y0) = (px as usize, pad as usize, origin.0 as usize, origin.1 as usize);
    // Columns first..end of the piece, and rows likewise, show the picture.
    let (first, end) = (pad.saturating_sub(x0).min(px), (width + pad).saturating_sub(x0).min(px));
    let rgb = picture.rgb();
    out.fill(0);
    for row in 0..px {
        let y = row + y0;
        if y < pad || y >= height + pad || first >= end {
            continue;
        }
        let start = 3 * ((y - pad) * width + x0 + first - pad);
        for (step, pixel) in rgb[start..start + 3 * (end - first)].chunks_exact(3).enumerate() {
            let column = first + step;
            let at = row * px + if flip { px - 1 - column } else { column };
            for (channel, value) in pixel.iter().enumerate() {
                out[channel * px * px + at] = *value;
            }
        }
    }
}
