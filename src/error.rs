//! Everything that can go wrong, one variant each: what, where, expected, found, and a way out.

mod chain;

pub use chain::{chain, panic_line};

use crate::whereabouts::Whereabouts;
use std::path::PathBuf;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text is one line a person can act on; `source` carries the cause below it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // -- files ------------------------------------------------------------------------------
    /// A file or folder could not be read, written, renamed or removed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "create folder" ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    // -- data -------------------------------------------------------------------------------
    /// A file whose name cannot be stored or listed.
    #[error("{}: a name that no list can hold (not UTF-8, a line break, outer spaces, a leading #); rename it", path.display())]
    FileName {
        /// The file.
        path: PathBuf,
    },
    /// A folder that should hold one folder of images per class does not.
    #[error(
        "{}: no class folders found; expected ROOT/<class>/<image>.jpg, one folder a class",
        root.display()
    )]
    NoClasses {
        /// The folder looked at.
        root: PathBuf,
    },
    /// A class without an image: its label would never occur.
    #[error("class {class} of {} has no usable image; add some or remove the class folder", root.display())]
    EmptyClass {
        /// The class folder's name.
        class: String,
        /// The folder, or the list, that names the images.
        root: PathBuf,
    },
    /// A data set, or a list of its images, that is not what it should be.
    #[error("{}: {what} (datasets/README.md says what is expected)", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Arguments about a data set that do not fit it.
    #[error("{0}; datasets/README.md has examples")]
    SourceArgs(String),
    /// A line of a split list that cannot be used.
    #[error("{} line {line}: {what}", path.display())]
    ListLine {
        /// The list.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what was expected.
        what: String,
    },
    /// Fractions or names of a split that make no sense.
    #[error("split: {0}")]
    SplitArgs(String),
    /// A class too small for a fraction.
    #[error(
        "split {name}: class {class} has {images} images, {fraction} of them is 0; take a larger fraction"
    )]
    SplitEmpty {
        /// The subset.
        name: String,
        /// The class.
        class: String,
        /// Images of the class.
        images: usize,
        /// The fraction asked for.
        fraction: f64,
    },
    /// A file that would be replaced by another content.
    #[error("{} is there already with another content; give --overwrite or another place", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// Images cannot be drawn or encoded as asked.
    #[error("demo-data: {0}")]
    Demo(String),
    /// An image that cannot be used for training.
    #[error(
        "{place}: not a usable image: {reason}; replace or remove it, or give --skip-bad (skip_bad = true)"
    )]
    BadImage {
        /// The file, or shard, record and file name.
        place: String,
        /// What the decoder said.
        reason: String,
    },
    /// Shards of another plan are in the way.
    #[error(
        "{}: holds shards of another set (other images, classes, seed or options); pack into an empty folder or give --overwrite",
        dir.display()
    )]
    OtherPlan {
        /// The folder of shards.
        dir: PathBuf,
    },
    /// Packing was stopped on purpose; finished shards stay.
    #[error("{}: stopped after {done} of {total} shards; the same command goes on from there", dir.display())]
    PackStopped {
        /// The folder of shards.
        dir: PathBuf,
        /// Finished shards.
        done: usize,
        /// Planned shards.
        total: usize,
    },
    /// A folder without `set.json`, which is written last.
    #[error("{}: no set.json, so this is no finished set of shards; run `drnas-dist pack` (again)", dir.display())]
    SetMissing {
        /// The folder of shards.
        dir: PathBuf,
    },
    /// A `set.json` that cannot be understood.
    #[error("{}: {what}; pack it again (datasets/README.md)", path.display())]
    SetDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A shard that `set.json` names is not there.
    #[error("shard {shard}: not in {}, of {num_shards} shards; copy it again or pack again", dir.display())]
    ShardMissing {
        /// File name.
        shard: String,
        /// The folder of shards.
        dir: PathBuf,
        /// Shards of the set.
        num_shards: usize,
    },
    /// Not a shard at all.
    #[error(
        "shard {shard}: not a drnas-dist shard (its first 8 bytes are not \"DRNASHRD\"); pack it again (datasets/README.md)"
    )]
    ShardMagic {
        /// File name.
        shard: String,
    },
    /// A shard of another format version.
    #[error(
        "shard {shard}: format version {found}, this program reads version {expected}; pack it again (datasets/README.md)"
    )]
    ShardVersion {
        /// File name.
        shard: String,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// A shard that ends too early.
    #[error(
        "shard {shard}: {present} of {expected} samples present, the file is cut short; pack it again (datasets/README.md)"
    )]
    ShardCutShort {
        /// File name.
        shard: String,
        /// Samples that are complete.
        present: usize,
        /// Samples promised; 0 when the header itself is cut.
        expected: usize,
    },
    /// A checksum or a bound of a shard does not hold.
    #[error("shard {shard}: {part} is damaged ({what}); copy it again or pack it again (datasets/README.md)")]
    ShardDamaged {
        /// File name.
        shard: String,
        /// "header", "index", "record 12 (class/file)".
        part: String,
        /// Expected and found.
        what: String,
    },
    /// A good shard that belongs to another set.
    #[error("shard {shard}: belongs to another set than {}/set.json (files of two sets are mixed); pack again", dir.display())]
    ShardForeign {
        /// File name.
        shard: String,
        /// The folder of shards.
        dir: PathBuf,
    },
    /// Fewer images than one global batch.
    #[error(
        "{}: the set has {images} images, one global batch needs {global_batch} ({num_replicas} replicas x {batch}); use a smaller batch or more images",
        set.display()
    )]
    SetTooSmall {
        /// Folder of the set.
        set: PathBuf,
        /// Images of the set.
        images: usize,
        /// Images of a step over all replicas.
        global_batch: usize,
        /// Replicas.
        num_replicas: usize,
        /// Images per replica.
        batch: usize,
    },
    /// A loader that was asked for something impossible.
    #[error("loader: {0}")]
    LoaderSpec(String),
    /// A decode thread panicked: a bug of ours.
    #[error("a decode thread panicked on {place}: {what}; please report it with that image")]
    DecodePanic {
        /// Which sample.
        place: String,
        /// The panic's message.
        what: String,
    },
    /// `next` after the loader had ended with an error.
    #[error("the loader has ended, see the earlier error")]
    LoaderEnded,

    // -- configuration ----------------------------------------------------------------------
    /// A file or a `--set` that cannot be read, or a value of the wrong kind.
    #[error("{place}: {message}")]
    ConfigSyntax {
        /// "FILE line N", or the `--set`.
        place: String,
        /// What is wrong there.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown key \"{key}\" in {place}{}", did_you_mean(nearest))]
    UnknownKey {
        /// The key, dotted.
        key: String,
        /// "FILE line N", or the `--set`.
        place: String,
        /// The known key that is most like it, if any is.
        nearest: Option<String>,
    },
    /// Values that do not fit together; the line says which and what would fit.
    #[error("configuration: {0}")]
    ConfigCheck(String),

    // -- ranks ------------------------------------------------------------------------------
    /// The other ranks did not come to a collective operation within the time limit.
    #[error(
        "rank {rank} on {host}: waited {waited_s:.1} s in operation {number} ({operation}) and not every rank \
         came{missing}; look for a rank that hangs or a link that is cut, then go on with --resume"
    )]
    Stalled {
        /// The rank that waited.
        rank: usize,
        /// Its host.
        host: String,
        /// What it waited in.
        operation: String,
        /// The how manyth collective call of this run it was, from 1.
        number: u64,
        /// Seconds waited.
        waited_s: f64,
        /// Who did not come and where they are, in brackets; empty if that is not known.
        missing: String,
    },

    /// A rank that died or stopped, as another one sees it.
    #[error("rank {rank} on {host}: lost {lost}: {how}; all ranks are ended, go on with --resume")]
    RankLost {
        /// The rank that noticed.
        rank: usize,
        /// Its host.
        host: String,
        /// The lost rank, its host, step and phase when it was last heard of.
        lost: String,
        /// How it shows.
        how: String,
    },

    /// Heartbeats cannot begin.
    #[error("heartbeats: {what}: {source}; run.heartbeat_s = 0 goes without them")]
    Watch {
        /// What was tried.
        what: String,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A rank that does not reach rank 0 outside MPI.
    #[error(
        "heartbeats: rank {rank} on {host} does not reach rank 0 at {}; let a firewall between the machines pass TCP, or \
         go without heartbeats by run.heartbeat_s = 0",
        doors.iter().map(|door| door.to_string()).collect::<Vec<_>>().join(", ")
    )]
    WatchLink {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
        /// Where it tried.
        doors: Vec<std::net::SocketAddr>,
    },

    /// The ranks called different collective operations, or the same one with other lengths.
    #[error(
        "operation {number}: the ranks do not do the same ({differ}); give all of them the same program, \
         configuration and data"
    )]
    RanksDiffer {
        /// The how manyth collective call of this run it was, from 1.
        number: u64,
        /// What the ranks do, one for each kind of difference.
        differ: String,
    },

    /// The MPI library refused or broke off an operation.
    #[error("rank {rank} on {host}: MPI broke off operation {number} ({operation}): {text}")]
    Mpi {
        /// The rank that got the error.
        rank: usize,
        /// Its host.
        host: String,
        /// What it was doing.
        operation: String,
        /// The how manyth collective call of this run it was, from 1.
        number: u64,
        /// What the library said.
        text: String,
    },

    /// A collective operation after one that failed.
    #[error("rank {rank} on {host}: {operation} is not possible, an earlier operation failed")]
    RanksLost {
        /// The rank that asked.
        rank: usize,
        /// Its host.
        host: String,
        /// What it asked for.
        operation: String,
    },

    /// A buffer that cannot be sent.
    #[error("{operation}: {expected} expected, {found} found")]
    Buffer {
        /// The operation.
        operation: &'static str,
        /// What it takes.
        expected: String,
        /// What it got.
        found: String,
    },

    /// The launcher and MPI count different numbers of ranks.
    #[error(
        "{variable} says {promised} ranks, MPI says {size}: each process would be a world of its own and write the \
         same folder; {advice}"
    )]
    WorldSize {
        /// The environment variable of the launcher.
        variable: &'static str,
        /// Ranks by that variable.
        promised: usize,
        /// Ranks by MPI.
        size: usize,
        /// How to start it.
        advice: &'static str,
    },

    /// MPI does not allow a process with several threads.
    #[error(
        "MPI grants thread level {granted} only, Funneled is needed (worker threads read the data); \
         use an MPI built with threads"
    )]
    MpiThreads {
        /// The level granted.
        granted: String,
    },

    // -- devices ----------------------------------------------------------------------------
    /// The driver refused a call, or the card failed in work given to it earlier.
    #[error("{call}: {text} (CUDA error {code}); `drnas-dist doctor` shows cards and libraries")]
    Cuda {
        /// The call.
        call: &'static str,
        /// Its answer.
        code: u32,
        /// The same in the driver's words.
        text: String,
    },

    /// A card is wanted, and there is none.
    #[error("device = \"cuda\": no GPU can be used on {host}: {why}, or compute there with --set device=cpu")]
    NoGpu {
        /// The machine.
        host: String,
        /// Why not, and what to do.
        why: String,
    },

    /// Some machines have cards, some have none.
    #[error(
        "{with} has a GPU that can be used, {host} has none: {why}; leave {host} out, or compute everywhere with \
         --set device=cpu"
    )]
    SomeHaveNoGpu {
        /// A machine with cards.
        with: String,
        /// A machine without.
        host: String,
        /// Why not, and what to do.
        why: String,
    },

    /// More ranks than cards on a machine.
    #[error(
        "{host}: {ranks} ranks, but {gpus} GPUs; start at most one rank for each GPU, or let ranks share one with \
         --share-gpu"
    )]
    TooFewGpus {
        /// The machine.
        host: String,
        /// Its ranks.
        ranks: usize,
        /// Its cards.
        gpus: usize,
    },

    /// NCCL is not there.
    #[error("NCCL is not found, ranks on several cards need it ({why}); {advice}")]
    NcclMissing {
        /// What the loader said.
        why: String,
        /// How to get it.
        advice: &'static str,
    },

    /// A library that is not NCCL, or an NCCL that lacks something.
    #[error("{}: has no {symbol}, so this NCCL is too old or another library; {advice}", path.display())]
    NcclSymbol {
        /// The library.
        path: PathBuf,
        /// The missing function.
        symbol: &'static str,
        /// How to get another.
        advice: &'static str,
    },

    /// An NCCL that lacks what is needed.
    #[error("{}: NCCL {found} is too old, {oldest} or newer is needed; {advice}", path.display())]
    NcclTooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest that will do.
        oldest: String,
        /// How to get another.
        advice: &'static str,
    },

    /// Ranks with different versions of NCCL.
    #[error(
        "rank {rank} has NCCL {found}, rank 0 has {first}; give all hosts the same one (rank 0 or {rank} uses {})",
        path.display()
    )]
    NcclVersions {
        /// The first rank that differs.
        rank: usize,
        /// Version of rank 0.
        first: String,
        /// Version of that rank.
        found: String,
        /// The library of the rank that says it.
        path: PathBuf,
    },

    /// NCCL does not start.
    #[error("{call}: {text}; NCCL_DEBUG=INFO makes NCCL say more, `drnas-dist doctor` shows what it runs on")]
    NcclStart {
        /// The call that failed.
        call: &'static str,
        /// The library's words.
        text: String,
    },

    /// NCCL or the card failed in a collective operation.
    #[error(
        "{at}: {operation}: {call}: {text}; look at the cards and links of the hosts, then go on with --resume"
    )]
    NcclLost {
        /// The rank that found it, and where it was.
        at: Box<Whereabouts>,
        /// The operation.
        operation: String,
        /// The call that told it.
        call: &'static str,
        /// The library's words.
        text: String,
    },

    /// A collective operation on the cards that does not end.
    #[error(
        "{at}: waited {waited_s:.1} s in {operation} and it does not end{behind}; \
         look for a rank that hangs or a link that is cut, then go on with --resume"
    )]
    NcclStalled {
        /// The rank that waited, and where it was.
        at: Box<Whereabouts>,
        /// The operation.
        operation: String,
        /// Seconds waited.
        waited_s: f64,
        /// Who was last heard of furthest behind, as the end of a sentence.
        behind: String,
    },

    /// Two ranks with one card.
    #[error(
        "ranks {first} and {second} both have the card at {bus_id}; start as many ranks as there are cards, or let \
         them share with --share-gpu"
    )]
    SameCard {
        /// A rank.
        first: usize,
        /// The other.
        second: usize,
        /// Where the card is plugged in.
        bus_id: String,
    },

    /// Ranks may share a card, but NCCL will not let them.
    #[error(
        "ranks are to share the card at {bus_id} (--share-gpu): that needs NCCL {oldest} or newer and \
         NCCL_MULTI_RANK_GPU_ENABLE=1 in the environment; this is NCCL {found}"
    )]
    CannotShare {
        /// Where the card is plugged in.
        bus_id: String,
        /// Version of NCCL.
        found: String,
        /// The oldest that will do.
        oldest: String,
    },

    // -- report -----------------------------------------------------------------------------
    /// A run that cannot stand in a table of speeds.
    #[error("{}: no {what} in its log (metrics.jsonl); only finished runs can be compared", run.display())]
    NotMeasured {
        /// The run folder.
        run: PathBuf,
        /// What is missing.
        what: &'static str,
    },

    // -- checkpoints ------------------------------------------------------------------------
    /// A checkpoint that cannot be read back.
    #[error("checkpoint {}: {why}", path.display())]
    CheckpointDamaged {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// A checkpoint that could not be written.
    #[error("the checkpoint of step {step} was not written, the ones before it are untouched: {source}")]
    CheckpointNotWritten {
        /// The step.
        step: u64,
        /// What stood in the way.
        source: Box<Error>,
    },

    /// A state that has no place in a checkpoint.
    #[error("checkpoint: tensor {name}: {why}")]
    CheckpointTensor {
        /// The tensor.
        name: String,
        /// Why.
        why: String,
    },

    /// A run folder that another job writes to.
    #[error(
        "{} is held by {who}: another job writes this run; wait for it, end it, or choose another --out",
        path.display()
    )]
    RunLocked {
        /// The lock.
        path: PathBuf,
        /// Its holder.
        who: String,
    },

    /// A lock that this job held and that is another's now.
    #[error(
        "{} was taken by another job (this one did not answer for long, or the file was removed); this job ends and \
         writes nothing more",
        path.display()
    )]
    LockLost {
        /// The lock.
        path: PathBuf,
    },

    // -- search -----------------------------------------------------------------------------
    /// A run folder that holds a run, without `--resume`.
    #[error("{} holds a run already; add --resume to go on with it, or choose another --out", .0.display())]
    RunExists(PathBuf),

    /// The result of a test that would be replaced.
    #[error("{} holds the result of an earlier test; choose another --out, or move that file away", .0.display())]
    TestExists(PathBuf),

    /// Another configuration or other data than the run began with.
    #[error(
        "the run began with {before}, now it is {now}; go on with what it began with, or start another run"
    )]
    RunChanged {
        /// Then.
        before: String,
        /// Now.
        now: String,
    },

    /// Ranks were started with different things.
    #[error("rank {rank} and rank 0 do not have the same {what}; start all ranks with the same files")]
    StartsDiffer {
        /// The first rank that differs.
        rank: usize,
        /// What differs.
        what: String,
    },

    /// Ranks that must have computed the same have not.
    #[error(
        "after step {step} ranks {ranks:?} of {of} hold other weights, eta or masks than the rest; a machine computes wrongly or a message was lost: go on from the newest checkpoint with --resume"
    )]
    StateDiffers {
        /// Steps done.
        step: u64,
        /// The ranks that differ from most.
        ranks: Vec<usize>,
        /// All ranks.
        of: usize,
    },

    /// Weights or eta that are not numbers, or infinite.
    #[error(
        "after step {step} the {what} are no longer finite, the checkpoint is not written; begin another run with a lower weights.lr or longer weights.warmup_epochs"
    )]
    StateNotFinite {
        /// Steps done.
        step: u64,
        /// "weights" or "eta".
        what: &'static str,
    },

    /// The weights and the architecture would be trained on the same images.
    #[error("--train {} and --valid {} hold the same images; eta has to be trained on images that the weights do not see (`drnas-dist split` makes two lists)", train.display(), valid.display())]
    SameSets {
        /// Shards of the weights.
        train: PathBuf,
        /// Shards of eta.
        valid: PathBuf,
    },

    /// The network would be tested on what it was trained on.
    #[error("--train {} and --test {} hold the same images; a test needs images that the weights have not seen", train.display(), test.display())]
    TestedOnTraining {
        /// Shards of the training.
        train: PathBuf,
        /// Shards of the test.
        test: PathBuf,
    },

    /// Weights and a test set whose labels mean other classes.
    #[error(
        "{} and {} do not have the same classes: label {label} is {expected} in the weights and {found} in the test set; \
         pack the test images from a folder with the class folders of the training",
        weights.display(),
        set.display()
    )]
    ClassesDiffer {
        /// The file of weights.
        weights: PathBuf,
        /// The folder of shards.
        set: PathBuf,
        /// The first label that differs.
        label: usize,
        /// Its class in the weights, in quotes, or "nothing".
        expected: String,
        /// Its class in the set, in the same way.
        found: String,
    },

    /// `--resume` where there are checkpoints, but none that can be read.
    #[error("none of the {count} checkpoints in {} can be read (see the warnings); restore one, or remove the folder to begin again", folder.display())]
    NoGoodCheckpoint {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Checkpoints looked at.
        count: usize,
    },

    /// A loss that is not a number, or infinite.
    #[error(
        "step {step}: the loss is {loss} (weights), {architecture_loss} (architecture); begin another run with a lower weights.lr or longer weights.warmup_epochs"
    )]
    LossNotFinite {
        /// The step, from 1.
        step: u64,
        /// Of the weight step.
        loss: f64,
        /// Of the architecture step, 0 without one.
        architecture_loss: f64,
    },

    /// A checkpoint that is whole, but of another program or run.
    #[error("the checkpoint does not fit: {0}")]
    CheckpointState(String),

    /// A test whose losses are no numbers.
    #[error(
        "the test after epoch {epoch} gave losses that are not finite; begin another run with a lower weights.lr or longer weights.warmup_epochs"
    )]
    TestNotFinite {
        /// Epochs trained.
        epoch: u64,
    },

    /// A file of weights that cannot be read or written.
    #[error("weights {}: {why}; a safetensors file is expected", path.display())]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// A genotype file that does not describe an architecture of the space.
    #[error("genotype: {0}")]
    Genotype(String),

    /// A file of weights lacks a tensor that the network has.
    #[error(
        "tensor {0} is missing; the weights belong to another network (space, layers or kept operations differ)"
    )]
    MissingTensor(String),

    /// A tensor has another shape than the network's.
    #[error(
        "tensor {name} has shape {found:?}, the network expects {expected:?} (channels, k or classes differ)"
    )]
    TensorShape {
        /// Published name.
        name: String,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape in the network.
        expected: Vec<i64>,
    },

    /// The network does not reproduce golden files.
    #[error("{failed} of {files} golden files differ by more than is allowed; see the lines marked FAILED")]
    NotGolden {
        /// Files that differ.
        failed: usize,
        /// Files looked at.
        files: usize,
    },

    /// A golden file that cannot be compared with.
    #[error("golden file {path}: {what}")]
    Golden {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },

    // -- NAS-Bench-201 ----------------------------------------------------------------------
    /// A text that names no architecture of NAS-Bench-201.
    #[error(
        "architecture \"{text}\": {what}; it reads like |nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    )]
    Nb201Architecture {
        /// The text, its first 200 characters.
        text: String,
        /// What is wrong and what was expected.
        what: String,
    },

    /// Not a table at all.
    #[error("{}: not a drnas-dist table (its first 8 bytes are not \"DRNAS201\"); make one with `drnas-dist nb201 import`", path.display())]
    Nb201Magic {
        /// The file.
        path: PathBuf,
    },
    /// A table of another format version.
    #[error("{}: format version {found}, this program reads version {expected}; import the table again", path.display())]
    Nb201Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// A table that ends too early.
    #[error("{}: cut short: {expected} bytes expected, {found} found; copy it again or import it again", path.display())]
    Nb201CutShort {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// A checksum or a bound of a table does not hold.
    #[error("{}: damaged: {what}; copy it again or import it again", path.display())]
    Nb201Damaged {
        /// The file.
        path: PathBuf,
        /// The part, expected and found.
        what: String,
    },
    /// A column that the table does not have.
    #[error("{}: no column \"{name}\"; there are {columns}", path.display())]
    Nb201NoColumn {
        /// The table.
        path: PathBuf,
        /// The column asked for.
        name: String,
        /// Those there are.
        columns: String,
    },
    /// An index that no architecture has.
    #[error("no architecture has the index {0}; they go from 0 to 15624")]
    Nb201NoIndex(String),
    /// A source of a table that cannot be read.
    #[error("{}{place}: {what}", path.display())]
    Nb201Source {
        /// The JSON or CSV file.
        path: PathBuf,
        /// " row 12", " line 12", or nothing.
        place: String,
        /// What is wrong, expected and found.
        what: String,
    },

    // -- figures ----------------------------------------------------------------------------
    /// A run that has not what a figure shows.
    #[error("{}: {what}", path.display())]
    PlotSource {
        /// The run's file.
        path: PathBuf,
        /// What is missing or wrong, and what to do.
        what: String,
    },
    /// A figure that could not be drawn or encoded.
    #[error("draw {}: {what}", path.display())]
    PlotDraw {
        /// The file it was for.
        path: PathBuf,
        /// What the drawing library said.
        what: String,
    },

    /// libtorch refused an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An `Io` error about `path`, for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean \"{key}\"?")).unwrap_or_default()
}
