//! Times forward and backward pass of the stacked supernet against the edge-by-edge one, in alternating pairs.
//!
//! `cargo bench --bench supernet -- [THREADS] [PAIRS] [PX]` prints medians (and minima) and their ratio for 48 channels,
//! 14 layers, 1000 classes: wall-clock time, and CPU time of the process, which other load disturbs less. Give PX to
//! measure one size per process: the heap left by 224 px slows 64 px down by a tenth. On a shared machine with
//! THREADS > 1, set `OMP_WAIT_POLICY=passive`: then waiting does not count as CPU time, but waking up does.

#[path = "../tests/common/naive.rs"]
mod naive;

use drnas_dist::config::Precision;
use drnas_dist::net::loss::cross_entropy;
use drnas_dist::net::mixing::MixingWeights;
use drnas_dist::net::params::Named;
use drnas_dist::net::placement::Placement;
use drnas_dist::net::supernet::{Supernet, SupernetShape};
use drnas_dist::space::{Mask, SearchSpace};
use naive::Naive;
use tch::{Device, Kind, Tensor};

/// Returns the wall clock and the CPU time of this process, ms.
fn now_ms() -> [f64; 2] {
    [libc::CLOCK_MONOTONIC, libc::CLOCK_PROCESS_CPUTIME_ID].map(|clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid timespec to write to.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
    })
}

/// Returns wall-clock and CPU time of `work`, ms.
fn timed(work: &dyn Fn()) -> [f64; 2] {
    let start = now_ms();
    work();
    let end = now_ms();
    [end[0] - start[0], end[1] - start[1]]
}

/// Returns median and minimum of the given clock.
fn summary(times: &[[f64; 2]], clock: usize) -> (f64, f64) {
    let mut times: Vec<f64> = times.iter().map(|times| times[clock]).collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let threads = numbers.first().copied().unwrap_or(2);
    let pairs = numbers.get(1).copied().unwrap_or(5);
    tch::set_num_threads(threads as i32);
    println!("{threads} threads, {pairs} alternating pairs; ms, median (minimum)");
    for (px, batch) in [(224, 4), (64, 2)] {
        if numbers.get(2).is_some_and(|&only| only != px as usize) {
            continue;
        }
        for (k, keep) in [(6, 7), (3, 4)] {
            let mask = Mask((0..14).map(|edge| (0..7).map(|op| (op + edge) % 7 < keep).collect()).collect());
            let shape = SupernetShape {
                space: SearchSpace::DartsImagenet,
                operations: SearchSpace::DartsImagenet.operations().to_vec(),
                init_channels: 48,
                layers: 14,
                num_classes: 1000,
                k,
                masks: vec![mask.clone(), mask],
            };
            let placement = Placement {
                precision: Precision::Fp32,
                device: Device::Cpu,
                channels_last: true,
                checkpoint_cells: false,
                replicas: 1,
                bucket_bytes: 1 << 20,
            };
            let mut net = Supernet::new(shape.clone(), placement);
            net.params.initialise(1);
            let images = Tensor::randn([batch, 3, px, px], (Kind::Float, Device::Cpu));
            let labels = Tensor::zeros([batch], (Kind::Int64, Device::Cpu));
            let weight = 1.0 / keep as f64;
            let table = || Tensor::full([14, 7], weight, (Kind::Float, Device::Cpu));
            let theta = MixingWeights::of(vec![table(), table()]);
            let weights: Named = net
                .params
                .export(|bucket| &bucket.weights)
                .into_iter()
                .map(|(name, tensor)| (name, tensor.set_requires_grad(true)))
                .collect();
            let running = net.params.export_running(0);
            let leaves: Vec<&Tensor> = weights.values().collect();
            let edge_by_edge = || {
                let naive = Naive { shape: &shape, weights: &weights, running: &running };
                let loss = cross_entropy(&naive.logits(&images, &theta.operations), &labels);
                std::hint::black_box(Tensor::run_backward(&[&loss], &leaves, false, false));
            };
            let stacked = || {
                let tape = net.forward(&images, &theta, 0);
                let loss = cross_entropy(tape.logits(), &labels);
                for segment in tape.backward(&loss) {
                    std::hint::black_box(segment.expect("backward"));
                }
            };
            edge_by_edge();
            stacked();
            let (mut slow, mut fast) = (Vec::new(), Vec::new());
            for _ in 0..pairs {
                slow.push(timed(&edge_by_edge));
                fast.push(timed(&stacked));
            }
            println!("{px:4} px, batch {batch}, k {k}, {keep} kept:");
            for (clock, name) in ["wall", "CPU"].into_iter().enumerate() {
                let (slow, fast) = (summary(&slow, clock), summary(&fast, clock));
                println!(
                    "  {name:5}: edge by edge {:6.0} ({:.0}), stacked {:6.0} ({:.0}), ratio {:.2} ({:.2})",
                    slow.0,
                    slow.1,
                    fast.0,
                    fast.1,
                    slow.0 / fast.0,
                    slow.1 / fast.1
                );
            }
        }
    }
}
