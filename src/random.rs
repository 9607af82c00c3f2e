//! Stateless random streams: each is a function of the seed and of its address (purpose, step, replica ...).
//!
//! No generator state needs to be saved: a run that resumes from a checkpoint, or with a different number of ranks or
//! threads, draws the same values as an uninterrupted run.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The purpose of a stream; streams with different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights.
    Weights = 1,
    /// Initial eta.
    Eta = 2,
    /// Dirichlet samples of the weight step.
    ThetaWeightStep = 3,
    /// Dirichlet samples of the architecture step.
    ThetaArchitectureStep = 4,
    /// Channels duplicated when the network is widened.
    Widen = 5,
    /// Order of the samples.
    Order = 6,
    /// Crop and flip of one sample.
    Augment = 7,
    /// Class-balanced subsets.
    Split = 8,
    /// Demonstration images.
    Demo = 9,
    /// Operations dropped in a training pass (drop-path).
    DropPath = 10,
    /// Dirichlet samples of the virtual weight step inside a second-order architecture step.
    ThetaVirtualStep = 11,
    /// Architectures drawn for the trajectory figure.
    Trajectory = 12,
    /// Noise that replaces the output of an operation.
    Noise = 13,
    /// Initial parameters of edge weights.
    EdgeParameters = 14,
    /// Perturbed mixing weights of the weight step.
    Perturbation = 15,
}

/// Returns the seed of the stream at `place`: step, replica, sample or whatever else identifies the use.
pub fn seed_of(seed: u64, purpose: Purpose, place: &[u64]) -> u64 {
    let mut bytes = Vec::with_capacity(8 + 8 * place.len());
    bytes.extend((purpose as u64).to_le_bytes());
    for number in place {
        bytes.extend(number.to_le_bytes());
    }
    xxh3_64_with_seed(&bytes, seed)
}

/// Returns the generator of the stream at `place`.
pub fn stream(seed: u64, purpose: Purpose, place: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed_of(seed, purpose, place))
}

/// Seeds libtorch's generator with `seed` and calls `draw`, which must not call this function. The generator is global
/// to the process, so threads take turns.
pub fn torch_seeded<T>(seed: u64, draw: impl FnOnce() -> T) -> T {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _turn = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed as i64);
    draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;
    use tch::{Tensor, kind};

    #[test]
    fn threads_take_turns_using_the_libtorch_generator() {
        let begun = Barrier::new(4);
        let draw = |pause| {
            torch_seeded(3, || {
                [(); 20].map(|()| {
                    // Gives another thread time to interleave.
                    thread::sleep(pause);
                    Tensor::rand([10], kind::DOUBLE_CPU)
                })
            })
        };
        let alone = draw(Duration::ZERO);
        let together = || {
            begun.wait();
            draw(Duration::from_millis(1))
        };
        let all = thread::scope(|scope| {
            let others: Vec<_> = (0..4).map(|_| scope.spawn(together)).collect();
            others.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for drawn in all {
            assert!(drawn.iter().zip(&alone).all(|(drawn, alone)| drawn.equal(alone)));
        }
    }

    #[test]
    fn streams_are_repeatable_and_distinct() {
        let draw = |seed, purpose, place: &[u64]| stream(seed, purpose, place).next_u64();
        assert_eq!(draw(1, Purpose::Order, &[2, 3]), draw(1, Purpose::Order, &[2, 3]));
        assert_ne!(draw(1, Purpose::Order, &[2, 3]), draw(1, Purpose::Order, &[3, 2]));
        assert_ne!(draw(1, Purpose::Order, &[2, 3]), draw(1, Purpose::Augment, &[2, 3]));
        assert_ne!(draw(1, Purpose::Order, &[2, 3]), draw(2, Purpose::Order, &[2, 3]));
    }
}
