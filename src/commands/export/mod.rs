//! `export`: writes a trained network for PyTorch: weights under the published names, genotype, sizes, and a Python
//! file that builds the network and loads them.

use crate::cli::ExportArgs;
use crate::config::{EvaluateConfig, Settings};
use crate::console;
use crate::error::Result;
use crate::eval::shape;
use crate::eval::state::{read_classes, read_weights, weights_file};
use crate::files;
use crate::net::network::Network;
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::run::evaluate::{BEST_WEIGHTS, GENOTYPE};
use crate::space::SearchSpace;
use crate::space::genotype::Genotype;
use crate::train;
use crate::train::checkpoint::{self, classes_of};
use crate::train::state::group;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// The exported Python file.
const NETWORK_PY: &str = include_str!("network.py");

/// Content of `network.json`: what the Python file requires beside the genotype.
#[derive(Serialize)]
struct About {
    space: SearchSpace,
    init_channels: i64,
    layers: i64,
    num_classes: i64,
    /// Side of the test images, pixels.
    px: i64,
    /// Normalisation of red, green, blue.
    mean: [f64; 3],
    std: [f64; 3],
    /// Class names in the order of the outputs; absent for runs of older versions, which did not store them.
    #[serde(skip_serializing_if = "Option::is_none")]
    classes: Option<Vec<String>>,
    /// Origin of the weights.
    weights: String,
}

/// Trained weights and their origin.
pub struct Trained {
    /// Tensors by published name.
    pub weights: Named,
    /// Class names in the order of the outputs, if known.
    pub classes: Option<Vec<String>>,
    /// Origin of the weights.
    pub from: String,
}

/// `drnas-dist export`. Local.
pub fn run(args: &ExportArgs) -> Result<()> {
    let config = EvaluateConfig::load(&args.run.join("config.toml"), &[])?;
    let genotype = Genotype::read(&args.run.join(GENOTYPE).display().to_string())?;
    let trained = if args.best { best_of(&args.run)? } else { newest_of(&args.run)? };
    if trained.classes.is_none() {
        console::print_diagnostic(&format!(
            "warning: {} was trained by an older version and contains no class names; neither does the export, so its \
             class order cannot be checked in tests",
            args.run.display()
        ));
    }
    export(&config, &genotype, trained, &args.to, args.overwrite)?;
    Ok(console::print_result(&format!(
        "{}: weights.safetensors, genotype.json, network.json, network.py (to load them: `python {}`)\n",
        args.to.display(),
        args.to.join("network.py").display()
    ))?)
}

fn best_of(run: &Path) -> Result<Trained> {
    let path = run.join(BEST_WEIGHTS);
    Ok(Trained { weights: read_weights(&path)?, classes: read_classes(&path)?, from: "the best test".into() })
}

fn newest_of(run: &Path) -> Result<Trained> {
    let folder = checkpoint::folder(run);
    let latest = checkpoint::latest(&folder)?;
    latest.warnings.iter().for_each(|warning| console::print_diagnostic(&format!("warning: {warning}")));
    let (step, saved) =
        latest.found.ok_or(train::Error::NoValidCheckpoint { folder, count: latest.warnings.len() })?;
    Ok(Trained {
        weights: group(&saved, "weights/"),
        classes: classes_of(&saved.meta),
        from: format!("the checkpoint of step {step}"),
    })
}

/// Writes the four files to the folder `to`; files with different content are replaced only if `overwrite` is set. The
/// weights must belong to the network of the configuration. Local.
pub fn export(
    config: &EvaluateConfig,
    genotype: &Genotype,
    trained: Trained,
    to: &Path,
    overwrite: bool,
) -> Result<()> {
    let Trained { weights, classes, from } = trained;
    // Detects mismatched weights here rather than in Python.
    let placement = Placement::on_cpu(config.precision);
    Network::new(shape(config, genotype), placement).params.load(&weights)?;
    let about = About {
        space: config.model.space,
        init_channels: config.model.init_channels,
        layers: config.model.layers,
        num_classes: config.model.num_classes,
        px: config.data.test_crop_px(),
        mean: config.data.mean,
        std: config.data.std,
        classes: classes.clone(),
        weights: from,
    };
    let json =
        |value: serde_json::Result<String>| value.expect("plain data can be serialised as JSON") + "\n";
    fs::create_dir_all(to).map_err(files::io("create folder", to))?;
    let files = [
        ("genotype.json", json(serde_json::to_string_pretty(genotype)).into_bytes()),
        ("network.json", json(serde_json::to_string_pretty(&about)).into_bytes()),
        ("network.py", NETWORK_PY.as_bytes().to_vec()),
        ("weights.safetensors", weights_file(&weights, classes.as_deref())?),
    ];
    // All files or none.
    for (name, bytes) in &files {
        files::check_new(&to.join(name), bytes, overwrite)?;
    }
    files.iter().try_for_each(|(name, bytes)| Ok(files::write_new(&to.join(name), bytes, overwrite)?))
}
