//! The keys that every kind of run has: they, and what asks for them, are written once.

/// Declares the configuration of one kind of run: the shared keys around the section of its own, which holds `replicas`
/// and `global_batch`, and any more sections. The order is that of the file. (`#[serde(flatten)]` would do without a
/// macro, but changes that order and takes the line numbers from the errors of wrong values.) `check_keys` and
/// `settle_keys` are what [`Settings`](super::Settings) asks of it.
macro_rules! configuration {
    (
        $(#[$doc:meta])*
        pub struct $name:ident {
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
            /// Everything random in a run is a function of this number; at most 2^63 - 1 (TOML has no larger ones).
            pub seed: u64,
            /// What ranks compute on.
            pub device: $crate::config::DeviceChoice,
            /// How exact the network computes.
            pub precision: $crate::config::Precision,
            /// Channels last in memory.
            pub channels_last: bool,
            /// Keep only the inputs of cells for the backward pass and compute the rest again.
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
            /// The defaults of the shared keys, with the sections whose defaults differ between kinds of runs.
            fn with(
                data: $crate::config::DataSection,
                $section: $Section,
                weights: $crate::config::WeightsSection,
                $($more: $More,)*
            ) -> $name {
                $name {
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

            fn settle(&mut self, given: &dyn Fn(&str) -> bool) {
                self.settle_keys(given);
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

            fn take_free_keys(&mut self, now: &Self) {
                self.device = now.device;
                self.checkpoint_cells = now.checkpoint_cells;
                self.run = now.run.clone();
                self.data.take_free_keys(&now.data);
            }
        }
    };
}

pub(super) use configuration;
