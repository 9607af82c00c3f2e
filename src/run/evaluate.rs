//! Run of an evaluation: its data sets, messages and results; and `--test-only`.

use super::error::Error as RunError;
use super::run;
use super::streams::{Streams, open};
use super::training::{Announcement, StepPlace, Totals, Training};
use crate::cli::EvaluateArgs;
use crate::comm::Communicator;
use crate::config::{self, EvaluateConfig, Settings};
use crate::data::{Augment, DecodePool, Loader, ShardSet, TestLoader, TestSpec};
use crate::error::Result;
use crate::eval::state::{check_classes, read_classes, read_weights, write_weights};
use crate::eval::{self, Evaluation, Tested};
use crate::files;
use crate::net::network::Network;
use crate::process::messages::{counted, print_stderr, print_stdout};
use crate::process::phase::{Phase, begin};
use crate::report::{
    EpochSummary, EvaluatedEpochRecord, EvaluatedRecord, LogRecord, NetworkRecord, evaluated_text,
};
use crate::space;
use crate::space::genotype::Genotype;
use crate::train::state::State;
use crate::train::tally::StepOutcome;
use crate::world::World;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// File in the run folder: weights with the best test accuracy so far.
pub const BEST_WEIGHTS: &str = "best.safetensors";
/// File in the run folder: the architecture.
pub const GENOTYPE: &str = "genotype.json";
/// File in the run folder: result of `--test-only`.
const TEST_RESULT: &str = "test.json";

/// Limit of the mobile setting in which ImageNet networks are compared.
const MOBILE_MULTIPLY_ADDS: i64 = 600_000_000;

/// Trains and tests a network, or only tests it (`args.test_only`). Called by all ranks.
pub fn evaluate(config: &EvaluateConfig, args: &EvaluateArgs, world: &World) -> Result<()> {
    let genotype = Genotype::read(&args.genotype)?;
    let test_set = open(&args.test)?;
    config.check_classes(test_set.num_classes())?;
    if let (true, Some(weights)) = (args.test_only, &args.weights) {
        return test_only(config, &genotype, weights, &test_set, &args.run.out, world);
    }
    config.check_ranks(world.size())?;
    let train = args.train.as_ref().expect("clap requires --train without --test-only");
    let train_set = open(train)?;
    check_sets(config, &train_set, &test_set)?;

    let replicas = config.replicas_of(world.rank(), world.size());
    let streams = Streams::new(config, replicas.clone(), world.threads());
    let steps_of_data = streams.steps_per_pass(&train_set)?;
    let evaluation = Evaluation::new(config, &genotype, steps_of_data, replicas, world.device());
    let (rank, size, out) = (world.rank(), world.size(), args.run.out.clone());
    let training = EvaluateRun {
        config,
        genotype,
        evaluation,
        streams,
        train_set,
        test_set,
        loader: None,
        rank,
        size,
        out,
    };
    run(training, &args.run, world)
}

fn check_sets(config: &EvaluateConfig, train: &ShardSet, test: &ShardSet) -> Result<()> {
    config.check_classes(train.num_classes())?;
    if train.hash() == test.hash() {
        return Err(RunError::TrainIsTest { train: train.dir().into(), test: test.dir().into() }.into());
    }
    if train.classes() != test.classes() {
        return Err(config::Error::Check(format!(
            "{} and {} have different classes; pack both from folders with the same classes",
            train.dir().display(),
            test.dir().display()
        ))
        .into());
    }
    Ok(())
}

/// Opens one pass over the test set, split over the ranks.
fn open_test(
    config: &EvaluateConfig,
    set: &Arc<ShardSet>,
    pool: &DecodePool,
    (rank, size): (usize, usize),
) -> Result<TestLoader> {
    let spec = TestSpec {
        px: config.data.test_crop_px() as u32,
        augment: Augment::test(&config.data),
        rank,
        size,
        batch: config.evaluate.test_batch as usize,
        prefetch: config.data.prefetch,
    };
    Ok(TestLoader::open(Arc::clone(set), spec, pool)?)
}

/// Tests given weights (`--test-only`). Collective.
fn test_only(
    config: &EvaluateConfig,
    genotype: &Genotype,
    weights: &Path,
    set: &Arc<ShardSet>,
    out: &Path,
    world: &World,
) -> Result<()> {
    let path = out.join(TEST_RESULT);
    // Checked first, so that no test runs in vain.
    if world.rank() == 0 && path.exists() {
        return Err(RunError::TestExists(path).into());
    }
    match read_classes(weights)? {
        Some(classes) => check_classes(weights, &classes, set)?,
        None if world.rank() == 0 => print_stderr(&format!(
            "warning: {} has no class names (written by an older version or another program); cannot check that its \
             outputs match the classes of {}",
            weights.display(),
            set.dir().display()
        )),
        None => {}
    }
    begin(Phase::Test)?;
    let pool = DecodePool::new(config.data.threads(world.threads()));
    let mut loader = open_test(config, set, &pool, (world.rank(), world.size()))?;
    let named = read_weights(weights)?;
    let comm = world.communicator();
    let tested = eval::test_weights(config, genotype, &named, &mut loader, world.device(), comm)?;
    begin(Phase::End)?;
    if world.rank() == 0 {
        print_stdout(&format!(
            "{} on {}: top-1 {:.2} %, top-5 {:.2} %, loss {:.4}, {}",
            weights.display(),
            set.dir().display(),
            100.0 * tested.top1(),
            100.0 * tested.top5(),
            tested.loss,
            counted(tested.images, "image")
        ));
        fs::create_dir_all(out).map_err(files::io("create folder", out))?;
        let json = serde_json::to_string_pretty(&tested).expect("numbers can be serialised as JSON");
        files::write(&path, format!("{json}\n").as_bytes())?;
    }
    Ok(())
}

/// Describes the size and the genotype of a network.
fn network_text(net: &Network) -> String {
    let millions = |count: i64| count as f64 / 1e6;
    let (parameters, adds, px) = (net.num_parameters(), net.multiply_adds(), net.shape().px);
    let auxiliary = match net.shape().auxiliary {
        true => format!(
            " ({:.3} M with the auxiliary head, used only in training)",
            millions(net.params.num_elements())
        ),
        false => String::new(),
    };
    let mut text = format!(
        "network: {:.3} M parameters{auxiliary}, {:.1} M multiply-adds per image of {px} px\n{}",
        millions(parameters),
        millions(adds),
        net.shape().genotype.to_line()
    );
    if adds > MOBILE_MULTIPLY_ADDS {
        text += &format!(
            "\nwarning: {:.1} M multiply-adds exceed the 600 M of the mobile setting in which ImageNet results are \
             compared",
            millions(adds)
        );
    }
    text
}

/// An evaluation with its data.
struct EvaluateRun<'a> {
    config: &'a EvaluateConfig,
    genotype: Genotype,
    evaluation: Evaluation,
    streams: Streams,
    train_set: Arc<ShardSet>,
    test_set: Arc<ShardSet>,
    /// Training images; `Some` after `open_data`.
    loader: Option<Loader>,
    rank: usize,
    size: usize,
    out: PathBuf,
}

impl EvaluateRun<'_> {
    /// Returns the test after the epoch that has just ended, if there was one.
    fn newest_test(&self) -> Option<Tested> {
        let epochs = self.evaluation.step() / self.evaluation.steps_per_epoch();
        self.evaluation.tests().last.filter(|tested| tested.epoch == epochs)
    }
}

impl Training for EvaluateRun<'_> {
    type Settings = EvaluateConfig;

    fn settings(&self) -> &EvaluateConfig {
        self.config
    }

    fn input_hashes(&self) -> Vec<(&'static str, u64)> {
        let genotype = xxh3_64(self.genotype.to_line().as_bytes());
        vec![("train", self.train_set.hash()), ("test", self.test_set.hash()), ("genotype", genotype)]
    }

    fn classes(&self) -> &[String] {
        self.train_set.classes()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.evaluation.steps_per_epoch()
    }

    fn num_steps(&self) -> u64 {
        self.config.evaluate.epochs * self.evaluation.steps_per_epoch()
    }

    fn step(&self) -> u64 {
        self.evaluation.step()
    }

    fn place(&self, step: u64) -> StepPlace {
        let epoch = self.evaluation.epoch_of(step);
        StepPlace { stage: 0, num_stages: 1, epoch, lr: self.evaluation.lr(epoch), eta_lr: None }
    }

    fn open_data(&mut self) -> Result<()> {
        self.loader = Some(self.streams.open(&self.train_set, 0, self.evaluation.step())?);
        Ok(())
    }

    fn train_step(&mut self, comm: &dyn Communicator) -> Result<StepOutcome> {
        self.evaluation.train_step(self.loader.as_mut().expect("open_data was called"), comm)
    }

    fn end_epoch(&mut self, comm: &dyn Communicator) -> Result<()> {
        if !self.evaluation.test_is_due() {
            return Ok(());
        }
        begin(Phase::Test)?;
        let mut loader = open_test(self.config, &self.test_set, &self.streams.pool, (self.rank, self.size))?;
        let best = self.evaluation.test(&mut loader, comm)?;
        if best && self.rank == 0 {
            let weights = self.evaluation.tested_weights();
            write_weights(&self.out.join(BEST_WEIGHTS), &weights, Some(self.train_set.classes()))?;
        }
        Ok(())
    }

    fn state(&self) -> &dyn State {
        &self.evaluation
    }

    fn state_mut(&mut self) -> &mut dyn State {
        &mut self.evaluation
    }

    fn inputs(&self) -> Result<Vec<(&'static str, String)>> {
        let json = serde_json::to_string_pretty(&self.genotype);
        let json = json.map_err(|error| space::Error::Genotype(error.to_string()))?;
        Ok(vec![(GENOTYPE, format!("{json}\n"))])
    }

    fn announce_stage(&self) -> Announcement {
        let net = self.evaluation.net();
        let record = NetworkRecord {
            step: self.evaluation.step(),
            epochs: self.config.evaluate.epochs,
            parameters: net.num_parameters(),
            num_weights: net.params.num_elements(),
            multiply_adds: net.multiply_adds(),
            genotype: self.genotype.to_line(),
        };
        Announcement { record: LogRecord::Network(record), text: network_text(net) }
    }

    fn announce_epoch(&self, summary: EpochSummary) -> Result<Announcement> {
        let (test, best) = (self.newest_test(), self.evaluation.tests().best);
        let more = match (test, best) {
            (Some(test), Some(best)) => format!(
                ", test top-1 {:.2} %, top-5 {:.2} % (best top-1 {:.2} %, epoch {})",
                100.0 * test.top1(),
                100.0 * test.top5(),
                100.0 * best.top1(),
                best.epoch
            ),
            _ => String::new(),
        };
        let text = summary.text(&more);
        let record = EvaluatedEpochRecord {
            test_loss: test.map(|test| test.loss),
            test_top1: test.map(|test| test.top1()),
            test_top5: test.map(|test| test.top5()),
            test_images: test.map(|test| test.images),
            best_top1: best.map(|best| best.top1()),
            best_epoch: best.map(|best| best.epoch),
            drop_path: self.evaluation.drop_path(summary.epoch - 1),
            summary,
        };
        Ok(Announcement { record: LogRecord::EvaluatedEpoch(record), text })
    }

    fn finish(&self, out: &Path, totals: &Totals) -> Result<Announcement> {
        let tests = self.evaluation.tests();
        let (last, best) = tests.last.zip(tests.best).expect("the last epoch is always tested");
        let net = self.evaluation.net();
        let record = EvaluatedRecord {
            step: self.evaluation.step(),
            epochs: self.config.evaluate.epochs,
            last_top1: last.top1(),
            last_top5: last.top5(),
            best_epoch: best.epoch,
            best_top1: best.top1(),
            best_top5: best.top5(),
            test_images: last.images,
            parameters: net.num_parameters(),
            multiply_adds: net.multiply_adds(),
            images: totals.images,
            replaced_images: totals.replaced_images,
            ranks: totals.ranks,
            genotype: self.genotype.to_line(),
            wall_s: totals.wall_s,
        };
        Ok(Announcement { text: evaluated_text(out, &record), record: LogRecord::Evaluated(record) })
    }
}
