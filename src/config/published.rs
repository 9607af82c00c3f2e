//! Published configurations from `configs/`: name and text of each file.

use super::Method;
use crate::space::SearchSpace;
use crate::space::nb201::Dataset;

/// DARTS cells on ImageNet.
pub const IMAGENET: (&str, &str) =
    ("configs/search-imagenet.toml", include_str!("../../configs/search-imagenet.toml"));
/// DARTS cells on CIFAR-10.
pub const CIFAR: (&str, &str) =
    ("configs/search-cifar.toml", include_str!("../../configs/search-cifar.toml"));
/// NAS-Bench-201, single stage.
pub const NB201: (&str, &str) =
    ("configs/search-nb201.toml", include_str!("../../configs/search-nb201.toml"));
/// NAS-Bench-201, progressive.
pub const NB201_PROGRESSIVE: (&str, &str) =
    ("configs/search-nb201-progressive.toml", include_str!("../../configs/search-nb201-progressive.toml"));
/// Evaluation on ImageNet of the architecture found there.
pub const EVALUATE_IMAGENET: (&str, &str) =
    ("configs/evaluate-imagenet.toml", include_str!("../../configs/evaluate-imagenet.toml"));
/// Evaluation on CIFAR-10 of the architecture found there.
pub const EVALUATE_CIFAR: (&str, &str) =
    ("configs/evaluate-cifar10.toml", include_str!("../../configs/evaluate-cifar10.toml"));

macro_rules! method_files {
    ($($method:ident: $name:literal,)*) => {
        /// Returns the configuration of `method`, other than DrNAS, in `space`: the published one, or where none was
        /// published a proposal that says so.
        pub fn of_method(method: Method, space: SearchSpace) -> (&'static str, &'static str) {
            match (method, space) {
                (Method::Drnas, SearchSpace::DartsImagenet) => IMAGENET,
                (Method::Drnas, SearchSpace::DartsCifar) => CIFAR,
                (Method::Drnas, SearchSpace::NasBench201) => NB201,
                $(
                    (Method::$method, SearchSpace::DartsImagenet) => method_files!(file $name, "imagenet"),
                    (Method::$method, SearchSpace::DartsCifar) => method_files!(file $name, "cifar"),
                    (Method::$method, SearchSpace::NasBench201) => method_files!(file $name, "nb201"),
                )*
            }
        }
    };
    (file $name:literal, $space:literal) => {
        (
            concat!("configs/methods/", $name, "-", $space, ".toml"),
            include_str!(concat!("../../configs/methods/", $name, "-", $space, ".toml")),
        )
    };
}

method_files! {
    Darts: "darts",
    Snas: "snas",
    Gdas: "gdas",
    Dsnas: "dsnas",
    PcDarts: "pc-darts",
    SdartsRs: "sdarts-rs",
    SdartsAdv: "sdarts-adv",
}

/// Returns the `--set` overrides that `--dataset` implies.
pub fn dataset_overrides(dataset: Dataset) -> Vec<String> {
    let overrides = match dataset {
        Dataset::Cifar10 => [
            "model.num_classes=10",
            "data.px=32",
            "data.pad=4",
            "data.mean=[0.49139968, 0.48215827, 0.44653124]",
            "data.std=[0.24703233, 0.24348505, 0.26158768]",
        ],
        Dataset::Cifar100 => [
            "model.num_classes=100",
            "data.px=32",
            "data.pad=4",
            "data.mean=[0.5071, 0.4865, 0.4409]",
            "data.std=[0.2673, 0.2564, 0.2762]",
        ],
        // As published: (122.68, 116.66, 104.01) / 255 and (63.22, 61.26, 65.09) / 255.
        Dataset::ImageNet16 => [
            "model.num_classes=120",
            "data.px=16",
            "data.pad=2",
            "data.mean=[0.4810980392156863, 0.4574901960784314, 0.4078823529411765]",
            "data.std=[0.24792156862745098, 0.24023529411764705, 0.2552549019607843]",
        ],
    };
    overrides.map(String::from).to_vec()
}
