//! Drop path: random dropping of operations of an evaluation network per image.
//!
//! Shapes: N batch. Source: `drop_path` of the published code: every operation except the identity, independently for
//! every image; the kept results are divided by the probability of keeping them.

use crate::process::torch;
use crate::random::{Purpose, stream};
use rand::RngExt;
use tch::{Device, Kind, Tensor};

/// Factors of one pass, 0 or 1 / (1 - probability).
pub struct DropPath {
    /// [cells, edges, N, 1, 1, 1].
    factors: Tensor,
}

impl DropPath {
    /// Draws factors for `n` images of `replica` at `step`, independent of the rank; `None` if the probability is 0.
    pub fn draw(
        probability: f64,
        (seed, step, replica): (u64, u64, u64),
        [cells, edges, n]: [i64; 3],
        (kind, device): (Kind, Device),
    ) -> Option<DropPath> {
        if probability == 0.0 {
            return None;
        }
        let mut random = stream(seed, Purpose::DropPath, &[step, replica]);
        let stays = 1.0 / (1.0 - probability);
        let factors: Vec<f64> = (0..cells * edges * n)
            .map(|_| if random.random::<f64>() < probability { 0.0 } else { stays })
            .collect();
        // One copy to the device for the whole network.
        let factors = torch::upload(&Tensor::from_slice(&factors).to_kind(kind), device);
        Some(DropPath { factors: factors.view([cells, edges, n, 1, 1, 1]) })
    }

    /// Multiplies `y` [N, C, H, W], the result of edge `edge` of cell `cell`, by the factors.
    pub fn apply(&self, cell: usize, edge: usize, y: &Tensor) -> Tensor {
        y * self.factors.get(cell as i64).get(edge as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

    #[test]
    fn the_expected_value_is_unchanged() {
        assert!(DropPath::draw(0.0, (0, 0, 0), [1, 1, 1], F64).is_none());
        let drop = DropPath::draw(0.3, (1, 2, 3), [20, 8, 400], F64).unwrap();
        let factors = drop.factors.reshape([-1]);
        let dropped = factors.eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        // 64,000 draws: standard deviation 0.0018.
        assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
        assert!((factors.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.02);
        let kept = factors.max().double_value(&[]);
        assert!((kept - 1.0 / 0.7).abs() < 1e-12);
    }

    #[test]
    fn draws_are_independent_and_reproducible() {
        let draw = |step, replica| DropPath::draw(0.5, (1, step, replica), [3, 8, 64], F64).unwrap().factors;
        assert!(draw(5, 1).equal(&draw(5, 1)));
        assert!(!draw(5, 1).equal(&draw(5, 2)) && !draw(5, 1).equal(&draw(6, 1)));
        let rows = draw(0, 0).view([24, 64]);
        for row in 1..24 {
            assert!(!rows.get(0).equal(&rows.get(row)));
        }
        let drop = DropPath { factors: draw(0, 0) };
        let y = drop.apply(1, 2, &Tensor::ones([64, 3, 2, 2], F64));
        assert!(y.select(1, 2).select(1, 0).select(1, 1).equal(&rows.get(8 + 2)));
    }
}
