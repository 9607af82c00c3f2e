//! `verify`: runs the inputs and weights of golden files through the networks of this program and compares all results
//! with those of the published code.

mod comparison;
mod counts;
mod dirichlet;
mod golden;
mod methods;
mod network;
mod schedules;
mod supernet;
mod tolerances;

pub use comparison::Finding;

use crate::cli::VerifyArgs;
use crate::commands::error::Error as CommandError;
use crate::config::{DeviceChoice, Precision};
use crate::error::{Result, chain, panic_line};
use crate::net::params::{Named, Params};
use crate::net::placement::Placement;
use crate::net::tape::Tape;
use crate::process::{console, torch};
use crate::report::append_json;
use crate::space::SearchSpace;
use crate::world::{COMMAND_LIMIT, Devices, World};
use golden::{Golden, GoldenList};
use methods::MethodFile;
use serde::Serialize;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tch::{Device, Tensor};

/// Default placement for `verify`: float32 on the CPU, cut after every part.
pub const PLACEMENT: Placement = Placement::on_cpu(Precision::Fp32);

/// `drnas-dist verify`. Errors: a file differs by more than the tolerance.
pub fn run(args: &VerifyArgs) -> Result<()> {
    if args.device == DeviceChoice::Cpu {
        return verify_on(args, Device::Cpu);
    }
    let devices = Devices { choice: args.device, ..Devices::default() };
    let world = World::start_on(devices, COMMAND_LIMIT, None)?;
    let outcome = verify_on(args, world.device());
    world.end(outcome)
}

fn verify_on(args: &VerifyArgs, device: Device) -> Result<()> {
    // A panic of libtorch about a corrupt file becomes an error (see [`verify`]) and is printed once. The hook is set
    // only now, so that earlier panics, such as those about a GPU, are printed.
    std::panic::set_hook(Box::new(|_| ()));
    // The number of threads changes the order of summation, which is visible in bf16: one thread gives the same values
    // everywhere.
    tch::set_num_threads(1);
    torch::allow_tf32(args.precision == Precision::Tf32);
    tch::Cuda::set_user_enabled_cudnn(!args.no_cudnn);
    let placement = Placement {
        precision: args.precision,
        device,
        channels_last: !args.channels_first,
        checkpoint_cells: args.checkpoint_cells,
        ..PLACEMENT
    };
    let mut failed = 0;
    for file in &args.files {
        let outcome = verify(file, placement);
        if let Some(path) = &args.json {
            append_json(path, &Verified::new(file, placement, &outcome))?;
        }
        match outcome {
            Ok(findings) => {
                console::print_result(&format!("{}\n{findings}\n", file.display()))?;
                failed += usize::from(!findings.pass());
            }
            Err(why) if args.files.len() == 1 => return Err(why),
            // Continue with the other files.
            Err(why) => {
                console::print_result(&format!("{}\n  FAILED {}\n\n", file.display(), chain(&why)))?;
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(CommandError::NotGolden { failed, files: args.files.len() }.into()),
    }
}

/// Result of verifying one file: a finding per kind of tensor, at least one.
#[derive(Debug)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Returns whether all findings pass.
    pub fn pass(&self) -> bool {
        self.0.iter().all(Finding::passes)
    }
}

/// One line of `verify --json`.
#[derive(Serialize)]
pub struct Verified<'a> {
    file: String,
    precision: Precision,
    device: String,
    channels_last: bool,
    checkpoint_cells: bool,
    pass: bool,
    findings: &'a [Finding],
    /// The error, if there are no findings.
    problem: Option<String>,
}

impl<'a> Verified<'a> {
    /// Describes the outcome for `path` and `placement`.
    pub fn new(path: &Path, placement: Placement, outcome: &'a Result<Findings>) -> Verified<'a> {
        Verified {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            precision: placement.precision,
            device: format!("{:?}", placement.device),
            channels_last: placement.channels_last,
            checkpoint_cells: placement.checkpoint_cells,
            pass: outcome.as_ref().is_ok_and(Findings::pass),
            findings: outcome.as_ref().map_or(&[], |findings| &findings.0),
            problem: outcome.as_ref().err().map(|why| chain(why)),
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|finding| writeln!(out, "  {finding}"))
    }
}

/// Verifies one file; networks are computed with `placement`. Local; requires no other rank.
///
/// libtorch panics on mismatched tensors, in too many places for a check before each, so a panic is returned as an
/// error of the file. On a GPU it may also be due to a kernel missing from the libraries. The panic hook has already
/// been called.
pub fn verify(path: &Path, placement: Placement) -> Result<Findings> {
    catch_unwind(AssertUnwindSafe(|| compare(path, placement))).unwrap_or_else(|panic| {
        let why = match placement.device {
            Device::Cpu => "its tensors do not match",
            _ => "it cannot be computed on this device",
        };
        let what = format!("{why}: {}", panic_line(&*panic));
        Err(CommandError::Golden { path: path.display().to_string(), what }.into())
    })
}

fn compare(path: &Path, placement: Placement) -> Result<Findings> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".json") {
        let list = GoldenList::read(path)?;
        return match &*name {
            name if name.starts_with("schedules") => schedules::schedules(&list).map(Findings),
            name if name.starts_with("eval_counts") => counts::counts(&list).map(Findings),
            name if name.starts_with("methods_") => methods::list(name, &list).map(Findings),
            _ => Err(list.wrong(
                "not a golden file: expected schedules*.json, eval_counts*.json, methods_*.json or *.safetensors",
            )),
        };
    }
    let golden = Golden::read(path)?;
    if let Some(method) = MethodFile::of(&golden) {
        return method.verify(&golden, placement).map(Findings);
    }
    let findings = match (golden.setting("network"), golden.space()) {
        (Some("eval-imagenet"), _) => network::network(&golden, SearchSpace::DartsImagenet, placement),
        (Some("eval-cifar"), _) => network::network(&golden, SearchSpace::DartsCifar, placement),
        (_, Some(space)) => supernet::supernet(&golden, space, placement),
        _ if golden.tensors.contains_key("concentration") => dirichlet::distribution(&golden),
        _ => Err(golden.wrong("not a golden file: it contains neither a network nor Dirichlet values")),
    };
    findings.map(Findings)
}

/// Returns the gradients of `loss` with respect to all weights, under the published names.
fn gradients(tape: Tape, loss: &Tensor, params: &Params) -> Result<Named> {
    for segment in tape.backward(loss) {
        let (bucket, grads) = segment?;
        params.buckets[bucket].add(&grads);
    }
    Ok(params.export(|bucket| &bucket.grads))
}
