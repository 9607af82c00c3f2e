//! Draws one operation per edge, on the host: the network computes only those. GDAS and DSNAS.
//!
//! Shapes: E edges, O operations; all tables are [E, O], in double precision on the CPU.

use super::softmax::{concrete, softmax};
use crate::space::Mask;
use tch::{Kind, Tensor};

/// One operation per edge, with the distribution that it came from.
pub struct Drawn {
    /// 1 for the drawn operations, 0 elsewhere.
    pub one_hot: Tensor,
    /// The distribution: rows sum to 1.
    pub q: Tensor,
    /// The drawn operations.
    pub mask: Mask,
}

/// Draws from a Gumbel-softmax of temperature `tau`: q = softmax((alpha + g) / tau), whose largest entry is taken (the first
/// of equal ones). Source: GDAS (CVPR 2019), equation 3.
pub fn straight_through(alpha: &Tensor, gumbel: &Tensor, tau: f64, kept: &Tensor) -> Drawn {
    let q = concrete(alpha, gumbel, tau, kept);
    Drawn::new(&q.shallow_clone(), q)
}

/// Draws each operation with its probability, softmax(alpha): the largest alpha + g is taken. Source: DSNAS (CVPR 2020).
pub fn categorical(alpha: &Tensor, gumbel: &Tensor, kept: &Tensor) -> Drawn {
    Drawn::new(&concrete(alpha, gumbel, 1.0, kept), softmax(alpha, kept))
}

impl Drawn {
    /// Takes the largest entry of each row of `table`.
    fn new(table: &Tensor, q: Tensor) -> Drawn {
        let one_hot = table.zeros_like().scatter_value(-1, &table.argmax(-1, true), 1.0);
        let rows = Vec::<Vec<f64>>::try_from(one_hot.to_kind(Kind::Double)).expect("a table");
        let mask = Mask(rows.iter().map(|row| row.iter().map(|entry| *entry == 1.0).collect()).collect());
        Drawn { one_hot, q, mask }
    }
}
