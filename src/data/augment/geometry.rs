//! Cropping and resizing, as in torchvision and Pillow.
//!
//! Shapes: H W rows and columns, px output side; planar means [3, H, W].

use crate::data::decode::{DecodedImage, Fault, MAX_PIXELS};
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use rand::{Rng, RngExt};
use std::cell::RefCell;

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

impl Rect {
    /// Returns the whole `image`.
    pub fn whole(image: &DecodedImage) -> Rect {
        Rect { left: 0, top: 0, width: image.width, height: image.height }
    }
}

const RATIO_MIN: f64 = 3.0 / 4.0;
const RATIO_MAX: f64 = 4.0 / 3.0;

/// Draws the rectangle of torchvision's `RandomResizedCrop.get_params`: ten attempts, then the largest allowed centre
/// crop.
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

/// Returns the size of torchvision's `Resize(side)`: the shorter side becomes `side`, the other is truncated to an
/// integer.
pub fn shorter_side_to(width: u32, height: u32, side: u32) -> (u32, u32) {
    let long = |short: u32, long: u32| (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
    if width <= height { (side, long(width, height)) } else { (long(height, width), side) }
}

thread_local! {
    // Each decode thread reuses coefficients and intermediate rows.
    static RESIZER: RefCell<(Resizer, Vec<u8>)> = RefCell::new((Resizer::new(), Vec::new()));
}

/// Resizes `crop` to `size`, bilinear and antialiased (the filter widens with the reduction), as Pillow does and
/// torchvision does on PIL images: pixels outside the crop are not used. `use_it` gets interleaved RGB.
fn resize(image: &DecodedImage, crop: Rect, size: (u32, u32), use_it: impl FnOnce(&[u8])) {
    if crop == Rect::whole(image) && size == (crop.width, crop.height) {
        return use_it(image.rgb());
    }
    RESIZER.with_borrow_mut(|(resizer, buffer)| {
        let needed = 3 * size.0 as usize * size.1 as usize;
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        let source = TypedImageRef::<U8x3>::from_buffer(image.width, image.height, image.rgb())
            .expect("an image has 3 * width * height bytes");
        let source = TypedCroppedImage::new(source, crop.left, crop.top, crop.width, crop.height)
            .expect("the crop lies inside the image");
        let mut target = TypedImage::<U8x3>::from_buffer(size.0, size.1, &mut buffer[..needed])
            .expect("the buffer has 3 * width * height bytes");
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        resizer.resize_typed(&source, &mut target, &options).expect("source and target are not empty");
        use_it(&buffer[..needed]);
    })
}

/// torchvision's `resized_crop`: resizes `crop` to px x px, planar, mirrored if `flip`.
pub fn resized_crop(image: &DecodedImage, crop: Rect, px: u32, flip: bool, out: &mut [u8]) {
    resize(image, crop, (px, px), |resized| planar(resized, px, (0, 0), px, flip, out));
}

/// torchvision's `Resize(side)` and `CenterCrop(px)`, px at most `side`; planar.
/// Errors: the image is so long and narrow that the result would be too large.
pub fn centre_crop(image: &DecodedImage, side: u32, px: u32, out: &mut [u8]) -> Result<(), Fault> {
    let (width, height) = shorter_side_to(image.width, image.height, side);
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let (width, height) = (image.width, image.height);
        return Err(format!("{width} x {height} pixels: too long and narrow to resize"));
    }
    // Rounds half to even, as Python does.
    let half = |size: u32| (f64::from(size - px) / 2.0).round_ties_even() as u32;
    let origin = (half(width), half(height));
    resize(image, Rect::whole(image), (width, height), |resized| {
        planar(resized, width, origin, px, false, out)
    });
    Ok(())
}

/// Copies the px x px piece at `origin` (column, row) of interleaved rows of `width` pixels, planar, mirrored if
/// `flip`.
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

/// torchvision's `RandomCrop(px, padding=pad)`: the px x px crop at `origin` (column, row) of the image with `pad`
/// black pixels on each side, planar, mirrored if `flip`.
pub fn pad_crop(image: &DecodedImage, pad: u32, origin: (u32, u32), px: u32, flip: bool, out: &mut [u8]) {
    let (width, height) = (image.width as usize, image.height as usize);
    let (px, pad, x0, y0) = (px as usize, pad as usize, origin.0 as usize, origin.1 as usize);
    // Columns first..end of the crop, and rows likewise, are inside the image.
    let (first, end) = (pad.saturating_sub(x0).min(px), (width + pad).saturating_sub(x0).min(px));
    let rgb = image.rgb();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    /// The image of the golden values, 40 x 30 pixels.
    fn image() -> DecodedImage {
        let mut buffer = Vec::new();
        for y in 0..30u32 {
            for x in 0..40u32 {
                buffer.extend([x * 7 + y * 13, x * x + y * 3, x * y * 5].map(|v| v as u8));
            }
        }
        DecodedImage { width: 40, height: 30, buffer }
    }

    fn assert_close(found: &[u8], expected: &[u8]) {
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(1), "{found:?}\n{expected:?}");
    }

    // Golden values, Pillow 13.0.0:
    //   im = Image.new("RGB", (40, 30)); im.putdata([((x*7+y*13)%256, (x*x+y*3)%256, (x*y*5)%256)
    //                                                for y in range(30) for x in range(40)])
    //   im.crop((5, 3, 33, 26)).resize((4, 4), Image.BILINEAR)   and   im.crop((10, 8, 15, 12)) likewise
    //   im.resize((10, 8), Image.BILINEAR).crop((2, 1, 8, 7))
    const REDUCED: [u8; 48] = [
        138, 178, 172, 92, 186, 140, 73, 87, 85, 76, 118, 162, 92, 136, 183, 176, 98, 141, 137, 125, 113,
        135, 124, 132, 130, 133, 125, 126, 141, 124, 132, 120, 140, 131, 124, 128, 124, 126, 127, 121, 134,
        133, 130, 128, 126, 128, 129, 116,
    ];
    const ENLARGED: [u8; 48] = [
        176, 184, 192, 200, 189, 197, 205, 213, 202, 210, 218, 226, 215, 223, 231, 239, 129, 155, 183, 213,
        132, 158, 186, 216, 135, 161, 189, 219, 138, 164, 192, 222, 154, 201, 98, 38, 205, 151, 54, 107, 193,
        59, 117, 176, 52, 116, 180, 52,
    ];
    const CENTRE_RED: [u8; 36] = [
        133, 161, 189, 205, 166, 82, 183, 207, 174, 90, 51, 67, 193, 124, 56, 60, 87, 115, 62, 54, 80, 108,
        136, 164, 72, 100, 128, 156, 184, 207, 122, 150, 178, 202, 186, 112,
    ];

    fn crop_to(crop: Rect, px: u32, flip: bool) -> Vec<u8> {
        let mut out = vec![0; 3 * (px * px) as usize];
        resized_crop(&image(), crop, px, flip, &mut out);
        out
    }

    #[test]
    fn crops_are_resized_as_in_pillow() {
        let large = Rect { left: 5, top: 3, width: 28, height: 23 };
        let small = Rect { left: 10, top: 8, width: 5, height: 4 };
        assert_close(&crop_to(large, 4, false), &REDUCED);
        assert_close(&crop_to(small, 4, false), &ENLARGED);
        let mirrored = crop_to(large, 4, true);
        assert_close(&[mirrored[3], mirrored[2], mirrored[1], mirrored[0]], &REDUCED[..4]);
        assert_close(&[mirrored[35], mirrored[34], mirrored[33], mirrored[32]], &REDUCED[32..36]);
    }

    #[test]
    fn the_centre_is_cropped_as_in_torchvision() {
        let mut out = vec![0; 108];
        centre_crop(&image(), 8, 6, &mut out).unwrap();
        assert_close(&out[..36], &CENTRE_RED);
        let line = DecodedImage { width: 1, height: 60_000, buffer: vec![0; 180_000] };
        assert!(centre_crop(&line, 8, 6, &mut out).is_ok());
        assert!(centre_crop(&line, 256, 6, &mut out).unwrap_err().contains("too long"));
    }

    #[test]
    fn crop_parameters_are_distributed_as_defined() {
        let (side, num) = (1000, 20_000);
        let mut rng = stream(1, Purpose::Augment, &[]);
        let (mut area, mut small, mut log_ratio, mut left, mut top) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for _ in 0..num {
            let crop = random_resized_crop(side, side, 0.08, &mut rng);
            let (w, h) = (f64::from(crop.width), f64::from(crop.height));
            assert!(crop.left + crop.width <= side && crop.top + crop.height <= side);
            assert!((0.745..1.342).contains(&(w / h)) && w * h > 0.0795e6);
            area += w * h / 1e6 / f64::from(num);
            small += f64::from(w * h < 0.3e6) / f64::from(num);
            log_ratio += (w / h).ln() / f64::from(num);
            left += f64::from(crop.left) / f64::from(side - crop.width + 1) / f64::from(num);
            top += f64::from(crop.top) / f64::from(side - crop.height + 1) / f64::from(num);
        }
        // An attempt with area A and ratio r fits the square if |ln r| <= -ln A, so the density of A among the accepted
        // crops is min(1, -ln A / ln(4/3)); ten failures in a row are rare.
        let steps = 100_000;
        let (mut weight, mut mean, mut below) = (0.0, 0.0, 0.0);
        for step in 0..steps {
            let a = 0.08 + 0.92 * (f64::from(step) + 0.5) / f64::from(steps);
            let density = (-a.ln() / RATIO_MAX.ln()).min(1.0);
            weight += density;
            mean += density * a;
            below += if a < 0.3 { density } else { 0.0 };
        }
        // Within four standard errors.
        assert!(
            (area - mean / weight).abs() < 4.0 * 0.25 / f64::from(num).sqrt(),
            "{area} {}",
            mean / weight
        );
        assert!((small - below / weight).abs() < 4.0 * 0.46 / f64::from(num).sqrt(), "{small}");
        let root = f64::from(num).sqrt();
        assert!(log_ratio.abs() < 4.0 * 0.17 / root, "{log_ratio}");
        // Offsets are 0..=side - size, so their mean over (side - size + 1) is a little below 1/2.
        for offset in [left, top] {
            assert!((offset - 0.5).abs() < 0.003 + 4.0 * 0.29 / root, "{offset}");
        }
    }

    #[test]
    fn extreme_images_fall_back_to_the_centre() {
        let mut rng = stream(1, Purpose::Augment, &[]);
        let mut crop = |width, height| random_resized_crop(width, height, 0.08, &mut rng);
        assert_eq!(crop(10, 1000), Rect { left: 0, top: 493, width: 10, height: 13 });
        assert_eq!(crop(1000, 10), Rect { left: 493, top: 0, width: 13, height: 10 });
        for _ in 0..100 {
            assert_eq!(crop(1, 1), Rect { left: 0, top: 0, width: 1, height: 1 });
            let crop = crop(1, 2);
            assert!(crop.width == 1 && crop.top + crop.height <= 2);
        }
    }
}
