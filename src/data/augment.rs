//! From a decoded picture to the network's input: cut, mirror, colour, cut out, normalise; as torchvision defines them.
//!
//! Shapes: N images, 3 channels, H W rows and columns, px output side. The random generator is an argument; draws come
//! in a fixed order (crop, flip, jitter, cut-out), so that what is switched on later does not change what comes before.

pub mod geometry;
pub mod jitter;

pub use geometry::Rect;
pub use jitter::Jitter;

use super::decode::{Fault, Picture};
use crate::config::{CropKind, Data};
use geometry::{centre_crop, pad_crop, random_resized_crop, resized_crop};
use rand::{Rng, RngExt};
use tch::{Device, Kind, Tensor};

/// How a picture becomes `[3, px, px]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    /// Which pixels.
    pub crop: Crop,
    /// Mirror half of the pictures left to right.
    pub flip: bool,
    /// Change colours.
    pub jitter: Jitter,
    /// Side of the square that is cut out around a random pixel, parts outside the picture included; 0 = none.
    pub cutout: u32,
}

/// Which pixels of a picture are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crop {
    /// RandomResizedCrop: area `area_min`..1 (published: 0.08), ratio 3/4..4/3, then resized to px x px.
    RandomResized {
        /// Smallest part of the area, 0..=1.
        area_min: f64,
    },
    /// `pad` black pixels on each side, then a random px x px piece (CIFAR).
    Pad {
        /// Pixels on each side.
        pad: u32,
    },
    /// The shorter side becomes `resize`, then the centre px x px. Draws nothing.
    Centre {
        /// At least px; smaller ones count as px.
        resize: u32,
    },
}

impl From<Crop> for Augment {
    /// The crop alone.
    fn from(crop: Crop) -> Augment {
        Augment { crop, flip: false, jitter: Jitter::NONE, cutout: 0 }
    }
}

impl Augment {
    /// What training pictures go through.
    pub fn train(data: &Data) -> Augment {
        let crop = match data.crop {
            CropKind::RandomResized => Crop::RandomResized { area_min: data.crop_area_min },
            CropKind::Pad => Crop::Pad { pad: data.pad },
        };
        let [brightness, contrast, saturation, hue] = data.jitter;
        let jitter = Jitter { brightness, contrast, saturation, hue };
        Augment { crop, flip: data.flip, jitter, cutout: data.cutout }
    }

    /// What test pictures go through; the side of its output is `Data::test_crop_px`.
    pub fn test(data: &Data) -> Augment {
        Crop::Centre { resize: data.test_resize_px() as u32 }.into()
    }

    /// Writes `picture`, changed as `self` says, as planar `[3, px, px]` into `out` (`3 * px * px` bytes). The hole of
    /// the cut-out, if any, is only returned: it is to be zero after normalisation.
    /// Errors: the picture is too small for a `Crop::Pad`, or too long and narrow for a `Crop::Centre`.
    pub fn apply(
        &self,
        picture: &Picture,
        px: u32,
        rng: &mut impl Rng,
        out: &mut [u8],
    ) -> Result<Option<Rect>, Fault> {
        let mirrored = |rng: &mut _| self.flip && RngExt::random::<bool>(rng);
        match self.crop {
            Crop::RandomResized { area_min } => {
                let crop = random_resized_crop(picture.width, picture.height, area_min, rng);
                resized_crop(picture, crop, px, mirrored(rng), out);
            }
            Crop::Pad { pad } => {
                let (width, height) = (picture.width + 2 * pad, picture.height + 2 * pad);
                if width < px || height < px {
                    let (width, height) = (picture.width, picture.height);
                    return Err(format!(
                        "{width} x {height} pixels with {pad} of padding are smaller than {px} x {px}"
                    ));
                }
                let top = rng.random_range(0..=height - px);
                let left = rng.random_range(0..=width - px);
                pad_crop(picture, pad, (left, top), px, mirrored(rng), out);
            }
            Crop::Centre { resize } => centre_crop(picture, resize.max(px), px, out)?,
        }
        self.jitter.apply(rng, out);
        Ok((self.cutout > 0).then(|| hole(px, self.cutout, rng)))
    }
}

/// Where Cutout (DeVries and Taylor, 2017; as in DARTS) makes its hole: `side` / 2 to each side of a random pixel, cut
/// at the border.
pub fn hole(px: u32, side: u32, rng: &mut impl Rng) -> Rect {
    let (row, column) = (rng.random_range(0..px), rng.random_range(0..px));
    let span = |centre: u32| (centre.saturating_sub(side / 2), (centre + side / 2).min(px));
    let ((top, bottom), (left, right)) = (span(row), span(column));
    Rect { left, top, width: right - left, height: bottom - top }
}

/// Bytes to `(x / 255 - mean) / std`, computed as one multiplication and one addition: x * 1/(255 std) - mean/std. Its
/// constants are on the device.
pub struct Normaliser {
    scale: Tensor,
    shift: Tensor,
}

impl Normaliser {
    /// For images on `device`.
    pub fn new(mean: &[f64; 3], std: &[f64; 3], device: Device) -> Normaliser {
        let column = |values: [f64; 3]| {
            Tensor::from_slice(&values).to_kind(Kind::Float).view([1, 3, 1, 1]).to_device(device)
        };
        Normaliser {
            scale: column(std.map(|s| 1.0 / (255.0 * s))),
            shift: column([0, 1, 2].map(|c| -mean[c] / std[c])),
        }
    }

    /// Shapes: `images` [N, 3, H, W] of kind Uint8, result the same in Float.
    pub fn apply(&self, images: &Tensor) -> Tensor {
        (images.to_kind(Kind::Float) * &self.scale) + &self.shift
    }
}

/// [`Normaliser`], for once.
pub fn normalise(images: &Tensor, mean: &[f64; 3], std: &[f64; 3]) -> Tensor {
    Normaliser::new(mean, std, images.device()).apply(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::geometry::RATIO_MAX;
    use crate::random::{Purpose, stream};

    /// 40 x 30 pixels, the picture of the golden numbers.
    fn picture() -> Picture {
        let mut buffer = Vec::new();
        for y in 0..30u32 {
            for x in 0..40u32 {
                buffer.extend([x * 7 + y * 13, x * x + y * 3, x * y * 5].map(|v| v as u8));
            }
        }
        Picture { width: 40, height: 30, buffer }
    }

    fn mirrored(crop: Crop) -> Augment {
        Augment { flip: true, ..crop.into() }
    }

    fn assert_close(found: &[u8], expected: &[u8]) {
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(1), "{found:?}\n{expected:?}");
    }

    // Golden numbers, Pillow 13.0.0:
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
        resized_crop(&picture(), crop, px, flip, &mut out);
        out
    }

    #[test]
    fn crops_are_resized_as_pillow_does() {
        let large = Rect { left: 5, top: 3, width: 28, height: 23 };
        let small = Rect { left: 10, top: 8, width: 5, height: 4 };
        assert_close(&crop_to(large, 4, false), &REDUCED);
        assert_close(&crop_to(small, 4, false), &ENLARGED);
        let mirrored = crop_to(large, 4, true);
        assert_close(&[mirrored[3], mirrored[2], mirrored[1], mirrored[0]], &REDUCED[..4]);
        assert_close(&[mirrored[35], mirrored[34], mirrored[33], mirrored[32]], &REDUCED[32..36]);
    }

    #[test]
    fn the_centre_is_cut_as_torchvision_does() {
        let mut rng = stream(0, Purpose::Augment, &[]);
        let mut out = vec![0; 108];
        let centre = Augment::from(Crop::Centre { resize: 8 });
        centre.apply(&picture(), 6, &mut rng, &mut out).unwrap();
        assert_close(&out[..36], &CENTRE_RED);
        let line = Picture { width: 1, height: 60_000, buffer: vec![0; 180_000] };
        assert!(centre.apply(&line, 6, &mut rng, &mut out).is_ok());
        let huge = Augment::from(Crop::Centre { resize: 256 });
        assert!(huge.apply(&line, 6, &mut rng, &mut out).unwrap_err().contains("too long"));
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
        // A try of area A and ratio r fits the square when |ln r| <= -ln A, so the density of A among the crops that are
        // taken is min(1, -ln A / ln(4/3)); ten failures in a row are rare.
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
    fn extreme_pictures_fall_back_to_the_centre() {
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

    #[test]
    fn half_of_the_pictures_are_mirrored_and_padding_is_black() {
        // One row whose columns rise: a mirrored piece falls.
        let rising = Picture { width: 8, height: 8, buffer: (0..64).flat_map(|i| [10 + i % 8; 3]).collect() };
        let mut rng = stream(3, Purpose::Augment, &[]);
        let (mut num_mirrored, mut padded, mut out) = (0, 0, vec![0; 192]);
        for _ in 0..2000 {
            mirrored(Crop::Pad { pad: 2 }).apply(&rising, 8, &mut rng, &mut out).unwrap();
            let row = &out[24..32];
            num_mirrored += u32::from(row[2] > row[5]);
            padded += u32::from(row[0] == 0);
            assert!(row.iter().all(|v| *v == 0 || (10..18).contains(v)));
        }
        assert!((900..1100).contains(&num_mirrored), "{num_mirrored}");
        // Shifts of -2..=2: two of five show padding on one side.
        assert!((700..900).contains(&padded), "{padded}");
        let whole = Augment::from(Crop::RandomResized { area_min: 1.0 });
        whole.apply(&rising, 8, &mut rng, &mut out).unwrap();
        assert!(mirrored(Crop::Pad { pad: 2 }).apply(&rising, 13, &mut rng, &mut out).is_err());
    }

    #[test]
    fn normalised_values() {
        let images = Tensor::from_slice(&[0u8, 255, 51, 0, 255, 51]).view([1, 3, 1, 2]);
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let found = Vec::<f32>::try_from(&normalise(&images, &mean, &std).flatten(0, -1)).unwrap();
        for (at, byte) in [0.0, 255.0, 51.0, 0.0, 255.0, 51.0].into_iter().enumerate() {
            let expected = (byte / 255.0 - mean[at / 2]) / std[at / 2];
            assert!((f64::from(found[at]) - expected).abs() < 1e-6, "{found:?}");
        }
    }
}
