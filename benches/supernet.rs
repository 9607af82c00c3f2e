//! Forward and backward of the stacked supernet against the obvious one, in alternating pairs.
//!
//! `cargo bench --bench supernet -- [THREADS] [PAIRS]`: prints medians and their ratio. 48 channels, 14 layers, 1000
//! classes. Times are CPU time of the process (all threads), which a busy machine disturbs less than a clock does.

#[path = "../tests/common/naive.rs"]
mod naive;

use drnas_dist::net::params::Named;
use drnas_dist::net::supernet::{Placement, Shape, Supernet, cross_entropy};
use drnas_dist::space::{Mask, SearchSpace};
use naive::Naive;
use tch::{Device, Kind, Tensor};

/// CPU time of this process so far.
fn cpu_ms() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn median(mut times: Vec<f64>) -> (f64, f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0], times[times.len() - 1])
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let threads = numbers.first().copied().unwrap_or(2);
    let pairs = numbers.get(1).copied().unwrap_or(5);
    tch::set_num_threads(threads as i32);
    println!("{threads} threads, {pairs} alternating pairs; CPU ms, median (least - most)");
    for (px, batch) in [(224, 4), (64, 2)] {
        for (k, keep) in [(6, 7), (3, 4)] {
            let mask = Mask((0..14).map(|edge| (0..7).map(|op| (op + edge) % 7 < keep).collect()).collect());
            let shape = Shape {
                space: SearchSpace::DartsImagenet,
                init_channels: 48,
                layers: 14,
                num_classes: 1000,
                k,
                masks: vec![mask.clone(), mask],
            };
            let placement = Placement {
                kind: Kind::Float,
                device: Device::Cpu,
                channels_last: true,
                replicas: 1,
                bucket_bytes: 1 << 20,
            };
            let mut net = Supernet::new(shape.clone(), placement);
            net.params.initialise(1);
            let images = Tensor::randn([batch, 3, px, px], (Kind::Float, Device::Cpu));
            let labels = Tensor::zeros([batch], (Kind::Int64, Device::Cpu));
            let share = 1.0 / keep as f64;
            let theta = [share, share].map(|value| Tensor::full([14, 7], value, (Kind::Float, Device::Cpu)));
            let weights: Named = net
                .params
                .export(|bucket| &bucket.weights)
                .into_iter()
                .map(|(name, tensor)| (name, tensor.set_requires_grad(true)))
                .collect();
            let running = net.params.export_running(0);
            let leaves: Vec<&Tensor> = weights.values().collect();
            let obvious = || {
                let start = cpu_ms();
                let naive = Naive { shape: &shape, weights: &weights, running: &running };
                let loss = cross_entropy(&naive.logits(&images, &theta), &labels);
                std::hint::black_box(Tensor::run_backward(&[&loss], &leaves, false, false));
                cpu_ms() - start
            };
            let stacked = || {
                let start = cpu_ms();
                let tape = net.forward(&images, &theta, 0);
                let loss = cross_entropy(tape.logits(), &labels);
                tape.backward(&loss, |_, grads| {
                    std::hint::black_box(grads);
                    Ok(())
                })
                .expect("backward");
                cpu_ms() - start
            };
            obvious();
            stacked();
            let (mut slow, mut fast) = (Vec::new(), Vec::new());
            for _ in 0..pairs {
                slow.push(obvious());
                fast.push(stacked());
            }
            let (slow, fast) = (median(slow), median(fast));
            println!(
                "{px:4} px, batch {batch}, k {k}, {keep} kept: edge by edge {:7.0} ({:.0} - {:.0}), stacked {:7.0} ({:.0} - {:.0}), ratio {:.2}",
                slow.0,
                slow.1,
                slow.2,
                fast.0,
                fast.1,
                fast.2,
                slow.0 / fast.0
            );
        }
    }
}
