//! Keys that searches and evaluations share, with their accessors.

/// Declares a configuration: keys of its own, the shared keys, a specific section that holds `replicas` and
/// `global_batch`, and further sections, in the order of the file. (`#[serde(flatten)]` would replace the macro, but changes that order and loses
/// the line numbers in errors.) The type must have the methods `check_keys`, `derive_keys` and
/// `keys_without_effect`, which implement [`Settings`](super::Settings).
macro_rules! configuration {
    (
        $(#[$doc:meta])*
        pub struct $name:ident {
            $($(#[$key_doc:meta])* $key:ident: $Key:ty,)*
            ;
            $(#[$section_doc:meta])*
            $section:ident: $Section:ty,
            ;
            $($(#[$more_doc:meta])* $more:ident: $More:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$key_doc])* pub $key: $Key,)*
            /// Seed of everything random in a run; at most 2^63 - 1, the largest integer of TOML.
            pub seed: u64,
            /// Device of the ranks.
            pub device: $crate::config::DeviceChoice,
            /// Numerical precision of the network.
            pub precision: $crate::config::Precision,
            /// Channels-last memory format of activations.
            pub channels_last: bool,
            /// Keep only the inputs of cells for the backward pass and recompute the rest.
            pub checkpoint_cells: bool,
            /// The network.
            pub model: $crate::config::ModelSection,
            /// Images: size, augmentation, workers.
            pub data: $crate::config::DataSection,
            $(#[$section_doc])*
            pub $section: $Section,
            /// SGD of the weights.
            pub weights: $crate::config::WeightsSection,
            $($(#[$more_doc])* pub $more: $More,)*
            /// Reporting, checkpoints, communication: changes results by rounding at most.
            pub run: $crate::config::RunSection,
        }

        impl $name {
            /// Combines the defaults of the shared keys with the given sections.
            fn with(
                data: $crate::config::DataSection,
                $section: $Section,
                weights: $crate::config::WeightsSection,
                $($more: $More,)*
            ) -> $name {
                $name {
                    $($key: <$Key>::default(),)*
                    seed: 0,
                    device: $crate::config::DeviceChoice::Auto,
                    precision: $crate::config::Precision::Fp32,
                    channels_last: true,
                    checkpoint_cells: false,
                    model: $crate::config::ModelSection::default(),
                    data,
                    $section,
                    weights,
                    $($more,)*
                    run: $crate::config::RunSection::default(),
                }
            }
        }

        impl $crate::config::Settings for $name {
            const SECTION: &'static str = stringify!($section);

            fn check(&self) -> $crate::config::Result<()> {
                self.check_keys()
            }

            fn derive(&mut self, given: &dyn Fn(&str) -> bool) -> $crate::config::Result<()> {
                self.derive_keys(given)
            }

            fn unused_keys(&self) -> Vec<&'static str> {
                self.keys_without_effect()
            }

            fn seed(&self) -> u64 {
                self.seed
            }

            fn replicas(&self) -> i64 {
                self.$section.replicas
            }

            fn global_batch(&self) -> i64 {
                self.$section.global_batch
            }

            fn device(&self) -> $crate::config::DeviceChoice {
                self.device
            }

            fn precision(&self) -> $crate::config::Precision {
                self.precision
            }

            fn channels_last(&self) -> bool {
                self.channels_last
            }

            fn checkpoint_cells(&self) -> bool {
                self.checkpoint_cells
            }

            fn model(&self) -> &$crate::config::ModelSection {
                &self.model
            }

            fn data(&self) -> &$crate::config::DataSection {
                &self.data
            }

            fn run(&self) -> &$crate::config::RunSection {
                &self.run
            }

            fn take_runtime_keys(&mut self, other: &Self) {
                self.device = other.device;
                self.checkpoint_cells = other.checkpoint_cells;
                self.run = other.run.clone();
                self.data.take_runtime_keys(&other.data);
            }
        }
    };
}

pub(super) use configuration;
