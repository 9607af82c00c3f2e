//! Random streams that are addressed, not advanced: a stream is a function of the seed and of where it is used.
//!
//! Nothing random has a state to save: a run that goes on from a checkpoint, or with other ranks or threads, asks for
//! the stream of (purpose, step, replica ...) and gets the numbers that the run that was never stopped got.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a stream is for; streams of different purposes are independent.
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
    /// Channels copied when the network is widened.
    Widen = 5,
    /// Order of the samples.
    Order = 6,
    /// Crop and flip of one sample.
    Augment = 7,
    /// Class-balanced subsets.
    Split = 8,
    /// Demonstration images.
    Demo = 9,
    /// Operations left out of a training pass.
    DropPath = 10,
    /// Dirichlet samples of the virtual weight step inside a second-order architecture step.
    ThetaVirtualStep = 11,
    /// Architectures drawn for the trajectory figure.
    Trajectory = 12,
}

/// The seed of the stream at `place` (step, replica, sample ... whatever tells two uses apart).
pub fn seed_of(seed: u64, purpose: Purpose, place: &[u64]) -> u64 {
    let mut bytes = Vec::with_capacity(8 + 8 * place.len());
    bytes.extend((purpose as u64).to_le_bytes());
    for number in place {
        bytes.extend(number.to_le_bytes());
    }
    xxh3_64_with_seed(&bytes, seed)
}

/// The generator of the stream at `place`.
pub fn stream(seed: u64, purpose: Purpose, place: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed_of(seed, purpose, place))
}

/// What `draw` draws from libtorch's generator, which is set to `seed` first. It is one for all threads of the process:
/// they take turns here. `draw` may not call this itself.
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
    fn threads_take_turns_at_the_generator_of_libtorch() {
        let begun = Barrier::new(4);
        let draw = |pause| {
            torch_seeded(3, || {
                [(); 20].map(|()| {
                    // Time for another thread to come between two draws.
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
