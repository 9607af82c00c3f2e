//! Augmentation: crop, flip, colour jitter, cutout and normalisation, as defined by torchvision.
//!
//! Shapes: N images, 3 channels, H W rows and columns, px output side. The random generator is an argument; draws come
//! in a fixed order (crop, flip, jitter, cutout), so that enabling a later one does not change earlier ones.

pub mod geometry;
pub mod jitter;

pub use geometry::Rect;
pub use jitter::Jitter;

use super::decode::{DecodedImage, Fault};
use crate::config::{CropKind, DataSection};
use geometry::{centre_crop, pad_crop, random_resized_crop, resized_crop};
use rand::{Rng, RngExt};
use tch::{Device, Kind, Tensor};

/// How an image is turned into `[3, px, px]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    /// The crop.
    pub crop: Crop,
    /// Mirror half of the images horizontally.
    pub flip: bool,
    /// Colour jitter.
    pub jitter: Jitter,
    /// Side of the cutout square around a random pixel, which may extend beyond the image; 0 = none.
    pub cutout: u32,
}

/// Which pixels of an image are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crop {
    /// RandomResizedCrop: area `area_min`..1 (published: 0.08), ratio 3/4..4/3, then resized to px x px.
    RandomResized {
        /// Smallest fraction of the area, 0..=1.
        area_min: f64,
    },
    /// `pad` black pixels on each side, then a random px x px crop (CIFAR).
    Pad {
        /// Pixels on each side.
        pad: u32,
    },
    /// Resizes the shorter side to `resize`, then crops the centre px x px. Deterministic.
    Centre {
        /// At least px; smaller values count as px.
        resize: u32,
    },
}

impl From<Crop> for Augment {
    /// The crop without other augmentation.
    fn from(crop: Crop) -> Augment {
        Augment { crop, flip: false, jitter: Jitter::NONE, cutout: 0 }
    }
}

impl Augment {
    /// Returns the augmentation of training images.
    pub fn train(data: &DataSection) -> Augment {
        let crop = match data.crop {
            CropKind::RandomResized => Crop::RandomResized { area_min: data.crop_area_min },
            CropKind::Pad => Crop::Pad { pad: data.pad },
        };
        let [brightness, contrast, saturation, hue] = data.jitter;
        let jitter = Jitter { brightness, contrast, saturation, hue };
        Augment { crop, flip: data.flip, jitter, cutout: data.cutout }
    }

    /// Returns the preprocessing of test images, whose output side is `DataSection::test_crop_px`.
    pub fn test(data: &DataSection) -> Augment {
        Crop::Centre { resize: data.test_resize_px() as u32 }.into()
    }

    /// Writes the augmented `image` as planar `[3, px, px]` into `out` (`3 * px * px` bytes). The hole of cutout, if
    /// any, is returned, not applied: it must be zero after normalisation.
    /// Errors: the image is too small for a `Crop::Pad`, or too long and narrow for a `Crop::Centre`.
    pub fn apply(
        &self,
        image: &DecodedImage,
        px: u32,
        rng: &mut impl Rng,
        out: &mut [u8],
    ) -> Result<Option<Rect>, Fault> {
        let mirrored = |rng: &mut _| self.flip && RngExt::random::<bool>(rng);
        match self.crop {
            Crop::RandomResized { area_min } => {
                let crop = random_resized_crop(image.width, image.height, area_min, rng);
                resized_crop(image, crop, px, mirrored(rng), out);
            }
            Crop::Pad { pad } => {
                let (width, height) = (image.width + 2 * pad, image.height + 2 * pad);
                if width < px || height < px {
                    let (width, height) = (image.width, image.height);
                    return Err(format!(
                        "{width} x {height} pixels with padding {pad} are smaller than the {px} x {px} crop"
                    ));
                }
                let top = rng.random_range(0..=height - px);
                let left = rng.random_range(0..=width - px);
                pad_crop(image, pad, (left, top), px, mirrored(rng), out);
            }
            Crop::Centre { resize } => centre_crop(image, resize.max(px), px, out)?,
        }
        self.jitter.apply(rng, out);
        Ok((self.cutout > 0).then(|| hole(px, self.cutout, rng)))
    }
}

/// Draws the hole of Cutout (DeVries and Taylor, 2017; as in DARTS): `side` / 2 to each side of a random pixel, clipped
/// at the border.
pub fn hole(px: u32, side: u32, rng: &mut impl Rng) -> Rect {
    let (row, column) = (rng.random_range(0..px), rng.random_range(0..px));
    let span = |centre: u32| (centre.saturating_sub(side / 2), (centre + side / 2).min(px));
    let ((top, bottom), (left, right)) = (span(row), span(column));
    Rect { left, top, width: right - left, height: bottom - top }
}

/// Maps bytes to `(x / 255 - mean) / std`, computed as one multiplication and one addition: x * 1/(255 std) - mean/std.
/// The constants are on the device.
pub struct Normaliser {
    scale: Tensor,
    shift: Tensor,
}

impl Normaliser {
    /// Creates a normaliser for images on `device`.
    pub fn new(mean: &[f64; 3], std: &[f64; 3], device: Device) -> Normaliser {
        let column = |values: [f64; 3]| {
            Tensor::from_slice(&values).to_kind(Kind::Float).view([1, 3, 1, 1]).to_device(device)
        };
        Normaliser {
            scale: column(std.map(|s| 1.0 / (255.0 * s))),
            shift: column([0, 1, 2].map(|c| -mean[c] / std[c])),
        }
    }

    /// Normalises `images`. Shapes: `images` [N, 3, H, W] of kind Uint8, result the same in Float.
    pub fn apply(&self, images: &Tensor) -> Tensor {
        (images.to_kind(Kind::Float) * &self.scale) + &self.shift
    }
}

/// Applies a [`Normaliser`] once.
pub fn normalise(images: &Tensor, mean: &[f64; 3], std: &[f64; 3]) -> Tensor {
    Normaliser::new(mean, std, images.device()).apply(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    fn mirrored(crop: Crop) -> Augment {
        Augment { flip: true, ..crop.into() }
    }

    #[test]
    fn half_of_the_images_are_mirrored_and_padding_is_black() {
        // Values increase from column to column; in a mirrored crop they decrease.
        let rising =
            DecodedImage { width: 8, height: 8, buffer: (0..64).flat_map(|i| [10 + i % 8; 3]).collect() };
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
        // Shifts of -2..=2: two of five have padding on this side.
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
