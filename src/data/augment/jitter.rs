//! Colour jitter, as defined by torchvision's `ColorJitter` on 8-bit images, with Pillow's arithmetic.
//!
//! Shapes: planar [3, H, W] bytes.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// Strengths; 0 disables an adjustment, which then draws nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter {
    /// Factor in 1 - b..1 + b, not below 0.
    pub brightness: f64,
    /// Likewise.
    pub contrast: f64,
    /// Likewise.
    pub saturation: f64,
    /// Shift of the hue in -h..h of the colour circle; at most 0.5.
    pub hue: f64,
}

/// An adjustment of all pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Adjustment {
    /// Blends with black: 0 is black, 1 changes nothing.
    Brightness(f64),
    /// Blends with the mean grey.
    Contrast(f64),
    /// Blends with the grey image.
    Saturation(f64),
    /// Shifts the hue by -0.5..=0.5 of the colour circle.
    Hue(f64),
}

impl Jitter {
    /// Changes nothing and draws nothing.
    pub const NONE: Jitter = Jitter { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };

    /// Draws the adjustments of one image, in random order.
    pub fn draw(&self, rng: &mut impl Rng) -> Vec<Adjustment> {
        let mut factor = |strength: f64, low: f64, high: f64, adjustment: fn(f64) -> Adjustment| {
            (strength > 0.0).then(|| adjustment(low + (high - low) * rng.random::<f64>()))
        };
        let mut around_1 = |s: f64, adjustment| factor(s, (1.0 - s).max(0.0), 1.0 + s, adjustment);
        let scaled = [
            around_1(self.brightness, Adjustment::Brightness),
            around_1(self.contrast, Adjustment::Contrast),
            around_1(self.saturation, Adjustment::Saturation),
        ];
        let hue = factor(self.hue, -self.hue, self.hue, Adjustment::Hue);
        let mut adjustments: Vec<Adjustment> = scaled.into_iter().chain([hue]).flatten().collect();
        adjustments.shuffle(rng);
        adjustments
    }

    /// Draws the adjustments and applies them.
    pub fn apply(&self, rng: &mut impl Rng, planar: &mut [u8]) {
        self.draw(rng).into_iter().for_each(|adjustment| adjustment.apply(planar));
    }
}

impl Adjustment {
    /// Applies the adjustment to every pixel.
    pub fn apply(self, planar: &mut [u8]) {
        let (red, rest) = planar.split_at_mut(planar.len() / 3);
        let (green, blue) = rest.split_at_mut(red.len());
        match self {
            Adjustment::Brightness(factor) => blend_all(0, planar, factor as f32),
            Adjustment::Contrast(factor) => {
                let sum: u64 = greys(red, green, blue).map(u64::from).sum();
                let mean = sum as f64 / red.len() as f64 + 0.5;
                blend_all(mean as u8, planar, factor as f32);
            }
            Adjustment::Saturation(factor) => {
                for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                    let grey = grey(*r, *g, *b);
                    [r, g, b].into_iter().for_each(|value| *value = blend(grey, *value, factor as f32));
                }
            }
            Adjustment::Hue(shift) => {
                // Truncated towards zero, then modulo 256.
                let table = HueTable::new((shift * 255.0) as i32 as u8);
                for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                    (*r, *g, *b) = table.shift(*r, *g, *b);
                }
            }
        }
    }
}

/// Pillow's `Image.blend`: interpolates or extrapolates from `from` to `to`; truncated to an integer, clamped to
/// 0..=255.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

/// Applies `blend` to every byte with the same `from`.
fn blend_all(from: u8, planar: &mut [u8], factor: f32) {
    let table: [u8; 256] = std::array::from_fn(|to| blend(from, to as u8, factor));
    planar.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// Pillow's `convert("L")`.
fn grey(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn greys<'a>(red: &'a [u8], green: &'a [u8], blue: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
    red.iter().zip(green).zip(blue).map(|((r, g), b)| grey(*r, *g, *b))
}

/// A hue shift: for each 8-bit hue, as in Pillow, the new sextant and the position in it.
struct HueTable {
    shifted: [(u8, f32); 256],
}

impl HueTable {
    fn new(shift: u8) -> HueTable {
        let mut shifted = [(0, 0.0); 256];
        for (old, entry) in shifted.iter_mut().enumerate() {
            let sextants = f64::from((old as u8).wrapping_add(shift)) * 6.0 / 255.0;
            *entry = (sextants as u8 % 6, (sextants - sextants.floor()) as f32);
        }
        HueTable { shifted }
    }

    /// Converts RGB to HSV, shifts the hue and converts back, rounding where Pillow rounds. Branch-free: the colours of
    /// photos are unpredictable. A grey has saturation 0 and is unchanged, whatever its hue.
    fn shift(&self, r: u8, g: u8, b: u8) -> (u8, u8, u8) {
        let (value, least) = (r.max(g).max(b), r.min(g).min(b));
        let range = f32::from((value - least).max(1));
        let [rc, gc, bc] = [r, g, b].map(|colour| f32::from(value - colour) / range);
        let of_green = (2.0 + f64::from(rc) - f64::from(bc)) as f32;
        let of_blue = (4.0 + f64::from(gc) - f64::from(rc)) as f32;
        let not_red = if g == value { of_green } else { of_blue };
        let sextant = if r == value { bc - gc } else { not_red };
        let circle = f64::from(sextant) / 6.0 + 1.0;
        let hue = (circle - f64::from(u8::from(circle >= 1.0))) as f32;
        let hue = (f64::from(hue) * 255.0) as u8;
        let saturation = f32::from(value - least) / f32::from(value.max(1));
        let saturation = (f64::from(saturation) * 255.0) as u8;

        let (sextant, within) = self.shifted[usize::from(hue)];
        let saturation = (f64::from(saturation) / 255.0) as f32;
        let v = f64::from(value);
        let round = |x: f64| (x + 0.5) as u8;
        let low = round(v * (1.0 - f64::from(saturation)));
        let falling = round(v * (1.0 - f64::from(saturation * within)));
        let rising = round(v * (1.0 - f64::from(saturation) * (1.0 - f64::from(within))));
        let levels = [value, rising, low, falling];
        let [r, g, b] = SEXTANTS[usize::from(sextant)].map(|level| levels[level]);
        (r, g, b)
    }
}

/// Indices of red, green and blue in [value, rising, low, falling], for each sextant.
const SEXTANTS: [[usize; 3]; 6] = [[0, 1, 2], [3, 0, 2], [2, 0, 1], [2, 3, 0], [1, 2, 0], [0, 2, 3]];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    #[test]
    fn factors_and_order_are_distributed_as_defined() {
        let jitter = Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2 };
        let mut rng = stream(5, Purpose::Augment, &[]);
        let num = 24_000usize;
        // Ten bins for each of the four factors, one for each of the 24 orders.
        let (mut bins, mut orders) = ([[0u32; 10]; 4], std::collections::BTreeMap::new());
        for _ in 0..num {
            let adjustments = jitter.draw(&mut rng);
            let places = adjustments.iter().map(|adjustment| match adjustment {
                Adjustment::Brightness(f) => (0, (f - 0.6) / 0.8),
                Adjustment::Contrast(f) => (1, (f - 0.6) / 0.8),
                Adjustment::Saturation(f) => (2, (f - 0.6) / 0.8),
                Adjustment::Hue(f) => (3, (f + 0.2) / 0.4),
            });
            let mut order = [0; 4];
            for (at, (which, place)) in places.enumerate() {
                assert!((0.0..1.0).contains(&place), "{adjustments:?}");
                bins[which][(place * 10.0) as usize] += 1;
                order[at] = which;
            }
            *orders.entry(order).or_insert(0u32) += 1;
        }
        // Chi-squared against equal counts: 99.9 % of fair draws are below 27.9 (9 degrees of freedom) and 49.7 (23).
        let chi2 = |counts: &mut dyn Iterator<Item = u32>, cells: f64| -> f64 {
            let expected = num as f64 / cells;
            counts.map(|count| (f64::from(count) - expected).powi(2) / expected).sum()
        };
        for factor in bins {
            let found = chi2(&mut factor.into_iter(), 10.0);
            assert!(found < 27.9, "{found} {factor:?}");
        }
        assert_eq!(orders.len(), 24);
        let found = chi2(&mut orders.values().copied(), 24.0);
        assert!(found < 49.7, "{found} {orders:?}");
    }

    #[test]
    fn disabled_jitter_draws_nothing_and_changes_nothing() {
        let (mut rng, mut same) = (stream(6, Purpose::Augment, &[]), stream(6, Purpose::Augment, &[]));
        let mut planar = [1, 2, 3, 4, 5, 6];
        Jitter::NONE.apply(&mut rng, &mut planar);
        assert_eq!(planar, [1, 2, 3, 4, 5, 6]);
        assert_eq!(rng.random::<u64>(), same.random::<u64>());
        let strong = Jitter { brightness: 3.0, ..Jitter::NONE };
        for _ in 0..100 {
            let adjustments = strong.draw(&mut rng);
            assert!(
                matches!(adjustments[..], [Adjustment::Brightness(f)] if (0.0..4.0).contains(&f)),
                "{adjustments:?}"
            );
        }
    }

    #[test]
    fn neutral_factors_change_nothing() {
        let before: Vec<u8> = (0..3 * 64).map(|i| (i * 37 % 256) as u8).collect();
        for adjustment in
            [Adjustment::Brightness(1.0), Adjustment::Contrast(1.0), Adjustment::Saturation(1.0)]
        {
            let mut planar = before.clone();
            adjustment.apply(&mut planar);
            assert_eq!(planar, before, "{adjustment:?}");
        }
    }
}
