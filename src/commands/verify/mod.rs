//! `verify`: runs golden files (inputs, weights and every result of the published code) through this program's own
//! network and tells how far apart they are.

mod bounds;
mod comparison;
mod counts;
mod dirichlet;
mod golden;
mod network;
mod schedules;
mod supernet;

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
use golden::{Golden, Listed};
use serde::Serialize;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tch::{Device, Tensor};

/// How networks are verified unless somebody wants it otherwise: in float32 on the CPU, cut after every part.
pub const PLACEMENT: Placement = Placement::on_cpu(Precision::Fp32);

/// Compares golden files with this program's network; an error if one differs.
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
    // What a damaged file makes libtorch say is an error then (see [`verify`]), and said once. Not earlier: what goes wrong
    // with a card before that has to be heard.
    std::panic::set_hook(Box::new(|_| ()));
    // Threads change the order of sums, which shows in bf16: the same figures on every machine.
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
            // The other files may tell more.
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

/// What verifying one file gave: one finding per kind of tensor, one at least.
#[derive(Debug)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Whether all are within what is allowed.
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
    /// Why there are no findings.
    problem: Option<String>,
}

impl<'a> Verified<'a> {
    /// What came of verifying `path` as `placement` says.
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

/// Verifies one file by what it holds; networks compute as `placement` says. Local; needs no other rank.
///
/// Tensors that do not fit together make libtorch panic, in too many places for a check before each: a panic is an error of
/// the file here. On a card it may also be a kernel that the libraries do not have. The panic hook has been called by then.
pub fn verify(path: &Path, placement: Placement) -> Result<Findings> {
    catch_unwind(AssertUnwindSafe(|| compare(path, placement))).unwrap_or_else(|panic| {
        let why = match placement.device {
            Device::Cpu => "its parts do not fit together",
            _ => "it cannot be computed on this device",
        };
        let what = format!("{why}: {}", panic_line(&*panic));
        Err(CommandError::Golden { path: path.display().to_string(), what }.into())
    })
}

fn compare(path: &Path, placement: Placement) -> Result<Findings> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".json") {
        let listed = Listed::read(path)?;
        return match &*name {
            name if name.starts_with("schedules") => schedules::schedules(&listed).map(Findings),
            name if name.starts_with("eval_counts") => counts::counts(&listed).map(Findings),
            _ => Err(listed
                .wrong("not a golden file: schedules*.json, eval_counts*.json or *.safetensors is expected")),
        };
    }
    let golden = Golden::read(path)?;
    let findings = match (golden.setting("network"), golden.setting("space")) {
        (Some("eval-imagenet"), _) => network::network(&golden, SearchSpace::DartsImagenet, placement),
        (Some("eval-cifar"), _) => network::network(&golden, SearchSpace::DartsCifar, placement),
        (_, Some("darts-imagenet")) => supernet::supernet(&golden, SearchSpace::DartsImagenet, placement),
        (_, Some("darts-cifar")) => supernet::supernet(&golden, SearchSpace::DartsCifar, placement),
        (_, Some("nas-bench-201")) => supernet::supernet(&golden, SearchSpace::NasBench201, placement),
        _ if golden.tensors.contains_key("concentration") => dirichlet::distribution(&golden),
        _ => Err(golden.wrong("not a golden file: neither a network nor Dirichlet figures are in it")),
    };
    findings.map(Findings)
}

/// The gradients of `loss` by all weights, under the published names.
fn gradients(tape: Tape, loss: &Tensor, params: &Params) -> Result<Named> {
    for segment in tape.backward(loss) {
        let (bucket, grads) = segment?;
        params.buckets[bucket].add(&grads);
    }
    Ok(params.export(|bucket| &bucket.grads))
}
