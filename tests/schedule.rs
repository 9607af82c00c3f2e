//! Compares learning rate schedules with those of the published runs.
//!
//! `schedules.json` was generated with PyTorch: `CosineAnnealingLR(optimizer, epochs, eta_min)` from a fresh optimiser,
//! and `adjust_lr` of the published evaluation; the first five epochs of the ImageNet runs are set to
//! lr * (epoch + 1) / 5.

use drnas_dist::Config;
use drnas_dist::train::schedule::{Decay, Schedule};

fn golden(name: &str) -> Vec<f64> {
    let all: serde_json::Value = serde_json::from_str(include_str!("golden/schedules.json")).unwrap();
    serde_json::from_value(all[name].clone()).unwrap()
}

fn compare(name: &str, schedule: Schedule) {
    let expected = golden(name);
    assert_eq!(expected.len() as u64, schedule.epochs, "{name}");
    for (epoch, expected) in expected.iter().enumerate() {
        let found = schedule.lr(epoch as u64);
        let relative = (found - expected).abs() / expected;
        assert!(relative < 1e-12, "{name} epoch {epoch}: expected {expected}, found {found}");
    }
}

fn cosine(lr: f64, lr_min: f64, epochs: u64) -> Schedule {
    Schedule { lr, epochs, warmup_epochs: 0, decay: Decay::Cosine { lr_min } }
}

#[test]
fn schedules_equal_the_published_ones() {
    compare("cifar_search_cosine_0.1_50", cosine(0.1, 0.0, 50));
    compare("nb201_progressive_cosine_0.025_100", cosine(0.025, 0.001, 100));
    compare("cifar_eval_cosine_0.025_600", cosine(0.025, 0.0, 600));
    compare("imagenet_search_0.5_50_warmup5", Schedule::of_search(&Config::default()));
    compare(
        "imagenet_eval_linear_0.5_250_warmup5",
        Schedule { lr: 0.5, epochs: 250, warmup_epochs: 5, decay: Decay::Linear },
    );
    let all: serde_json::Map<_, _> = serde_json::from_str(include_str!("golden/schedules.json")).unwrap();
    assert_eq!(all.len(), 5, "a schedule of the file is not compared");
}
