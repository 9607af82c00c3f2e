//! Ranks with one GPU each, on the test double of CUDA and NCCL (tests/double): ordering, values, faults. Needs no GPU.
//!
//! The tests start this test program again under mpirun; each rank runs `rank_program`. Tensors are in host memory; the
//! work that libtorch would do on stream 0 is enqueued on the double, which runs it late.

#[path = "../common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;
mod double;
mod scenarios;

use bench::mpirun::{Outcome, SCENARIO};
use bench::{Bench, assert_same_result};
use double::{Double, compiled, double, fails, fails_on, run_on, succeeds};
use drnas_dist::config;
use drnas_dist::config::{DeviceChoice, Reduce};
use drnas_dist::world::{Devices, World};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tch::Device;

/// Time limit of the scenarios in which an operation hangs.
const LIMIT: Duration = Duration::from_secs(4);
/// Time limit of the other scenarios, which must not fail on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);

// -- the rank program -----------------------------------------------------------------------------

#[test]
#[ignore = "run under mpirun by the other tests"]
fn rank_program() {
    let Ok(scenario) = std::env::var(SCENARIO) else {
        return;
    };
    let flag = |name: &str| std::env::var_os(name).is_some();
    let devices = Devices {
        choice: if flag("TEST_AUTO") { DeviceChoice::Auto } else { DeviceChoice::Cuda },
        share_gpu: flag("TEST_SHARE"),
        reduce: if scenario == "bf16" { Reduce::Bf16 } else { Reduce::Fp32 },
        tensors: Some(if scenario == "wrong-device" { Device::Cuda(0) } else { Device::Cpu }),
    };
    let limit = if flag("TEST_IMPATIENT") { LIMIT } else { PATIENCE };
    if scenario == "doctor" {
        return drnas_dist::commands::doctor::run(limit, None).unwrap();
    }
    if flag("TEST_CROSSED") && std::env::var("OMPI_COMM_WORLD_RANK").is_ok_and(|rank| rank == "1") {
        // SAFETY: no other thread of this process reads the environment yet.
        unsafe { std::env::set_var("CUDA_VISIBLE_DEVICES", "1,0") };
    }
    let started = match scenario.as_str() {
        "by-mpi" => World::start(limit, Some(1)),
        _ => World::start_on(devices, limit, Some(1)),
    };
    let world = match started {
        Ok(world) => world,
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(2);
        }
    };
    let outcome = match scenario.as_str() {
        "by-mpi" => scenarios::means(&world, None),
        "means" => scenarios::means(&world, Some(&Double::open())),
        "broadcasts" => scenarios::broadcasts(&world, &Double::open()),
        "host-side" => scenarios::host_side(&world),
        "wrong-device" => scenarios::wrong_device(&world),
        "bf16" => scenarios::in_bf16(&world),
        "ahead" => scenarios::ahead(&world, &Double::open()),
        "groups" => scenarios::groups(&world, &Double::open()),
        "steps" => scenarios::steps(&world, &Double::open()),
        "lengths" => scenarios::lengths(&world),
        "later-lengths" => scenarios::later_lengths(&world),
        "stop" => scenarios::stop(&world),
        "kept" => scenarios::kept(&world),
        "failed-mean" => scenarios::failed(&world, |buffer| Ok(world.communicator().start_mean(buffer)?)),
        "failed-broadcast" => {
            scenarios::failed(&world, |buffer| Ok(world.communicator().broadcast(buffer, 0)?))
        }
        "traced" => scenarios::traced(&world, &Double::open()),
        "time" => scenarios::time(&world, &Double::open()),
        "leave" => {
            scenarios::steps(&world, &Double::open()).unwrap();
            world.set_exit_message("to resume, add --resume");
            world.exit_stopped()
        }
        "abort" => world.communicator().abort(&config::Error::Check("injected error".into())),
        "dropped" => return scenarios::dropped(world),
        "gpu" => scenarios::gpu(&world),
        "uploads" => scenarios::uploads(&world),
        "slots" => scenarios::slots(&world, &Double::open()),
        "failed-copy" => scenarios::failed_copy(&world),
        "search" => scenarios::search(&world),
        other => panic!("unknown scenario {other}"),
    };
    match world.end(outcome) {
        Ok(()) => println!("rank done"),
        Err(why) => {
            eprintln!("error: {why}");
            std::process::exit(1);
        }
    }
}

// -- the tests ------------------------------------------------------------------------------------

/// Delays stream 0 or the other streams, so that a missing wait in either direction is detected.
const LATE: [[(&str, &str); 2]; 2] = [
    [("DOUBLE_LATE_LEGACY_US", "20000"), ("DOUBLE_LATE_US", "0")],
    [("DOUBLE_LATE_LEGACY_US", "0"), ("DOUBLE_LATE_US", "20000")],
];

#[test]
fn means_are_ordered_and_equal_those_of_mpi_on_2_and_4_ranks() {
    for size in [2, 4] {
        let hash = |outcome: Outcome| {
            let at = outcome.output.find("hash ").expect("a hash");
            outcome.output[at..at + 21].to_string()
        };
        let by_mpi = hash(succeeds("by-mpi", size, &[]));
        for late in LATE {
            assert_eq!(hash(succeeds("means", size, &late)), by_mpi, "{late:?}");
        }
    }
}

#[test]
fn broadcasts_are_ordered() {
    for late in LATE {
        succeeds("broadcasts", 2, &late);
    }
    succeeds("broadcasts", 4, &[]);
}

#[test]
fn host_data_goes_through_mpi_and_unsupported_tensors_are_refused() {
    succeeds("host-side", 2, &[]);
    succeeds("wrong-device", 2, &[]);
}

#[test]
fn gradients_are_reduced_in_bf16_on_request() {
    for size in [2, 4] {
        succeeds("bf16", size, &[("DOUBLE_LEGACY", "host"), ("DOUBLE_LATE_US", "5000")]);
    }
}

#[test]
fn host_and_stream_0_do_not_wait_for_other_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let passed = folder.path().join("passed");
    let outcome = succeeds("ahead", 2, &[("TEST_AHEAD", passed.to_str().unwrap())]);
    assert!(outcome.output.contains("the host is ahead"), "{}", outcome.output);
}

#[test]
fn small_buffers_share_a_group() {
    succeeds("groups", 2, &[]);
    // Two groups: the buffers up to the large one, and the rest; a third group is never started.
    succeeds("groups", 2, &[("DOUBLE_FAIL", "ncclGroupStart:3")]);
    fails("groups", 2, &[("DOUBLE_FAIL", "ncclGroupStart:2")], &["ncclGroupStart"]);
    fails("groups", 2, &[("DOUBLE_FAIL", "ncclAllReduce:8")], &["ncclAllReduce"]);
}

#[test]
fn buffers_are_kept_until_their_means_are_complete() {
    let late = ("DOUBLE_LATE_US", "50000");
    succeeds("kept", 2, &[("DOUBLE_LEGACY", "host"), late]);
    // The collective is in progress when the event record after it fails (the first record is on libtorch's stream).
    for scenario in ["failed-mean", "failed-broadcast"] {
        fails(
            scenario,
            2,
            &[late, ("DOUBLE_FAIL", "cuEventRecord:2")],
            &["cuEventRecord: unspecified launch"],
        );
    }
}

#[test]
fn streams_copy_and_events_measure_time() {
    succeeds("time", 0, &[("DOUBLE_LATE_US", "20000")]);
    for call in ["cuMemcpyHtoDAsync", "cuEventSynchronize"] {
        let fail = format!("{call}:1");
        fails(
            "time",
            0,
            &[("DOUBLE_FAIL", &fail)],
            &[&format!("{call}: unspecified launch failure (CUDA error 719)")],
        );
    }
}

#[test]
fn trace_shows_overlap_of_reductions_with_backward() {
    succeeds("traced", 2, &[]);
}

#[test]
fn ranks_exit_together_on_request() {
    let outcome = run_on(double(), "leave", 2, &[]);
    assert_eq!(outcome.code, Some(drnas_dist::process::signals::STOPPED), "{}", outcome.output);
    assert_eq!(outcome.output.matches("to resume, add --resume").count(), 1, "{}", outcome.output);
    assert!(!outcome.output.contains("rank 1 on"), "{}", outcome.output);
}

#[test]
fn abort_on_one_rank_ends_all_ranks() {
    fails("abort", 2, &[], &["rank 0 on ", "injected error"]);
}

#[test]
fn search_equals_that_over_mpi_bit_for_bit() {
    let bench = Bench::get();
    let by_mpi = bench.run_search(2, "by-mpi", &[]);
    let path = |name: &str| bench.path(name).display().to_string();
    let words = format!(
        "drnas-dist search-imagenet --config {} --train {} --valid {} --out {}",
        path("search.toml"),
        path("train"),
        path("valid"),
        path("by-nccl")
    );
    succeeds("search", 2, &[("TEST_WORDS", &words), ("DOUBLE_LEGACY", "host"), ("DOUBLE_LATE_US", "300")]);
    assert_same_result(&bench.run("by-nccl"), &by_mpi);
    // GPU 0 of the double has 80 GiB, of which three quarters are in use.
    let log = std::fs::read_to_string(bench.path("by-nccl").join("metrics.jsonl")).unwrap();
    assert!(log.contains(r#""card_memory_mib":61440.0"#), "{log}");
}

/// Runs the real program without a driver, and with that of the double. (Without libtorch's CUDA libraries it gets no
/// further; messages about NCCL are tested below.)
#[test]
fn unusable_gpus_are_reported_with_advice() {
    // SAFETY: opening libcuda runs only its own initialisers.
    if unsafe { libloading::Library::new("libcuda.so.1") }.is_ok() {
        println!("skipped: this machine has a driver");
        return;
    }
    let bench = Bench::get();
    let cuda = ["--set", "device=cuda"];
    let failure_text = |command: Command| {
        let output = bench::finish(command, PATIENCE);
        assert!(!output.status.success());
        bench::output_text(&output)
    };
    let text = failure_text(bench.search(2, "none", &cuda));
    let start = "device = \"cuda\": no usable GPU on ";
    assert!(text.contains(start) && text.contains("no NVIDIA driver (libcuda.so.1: cannot open"), "{text}");
    assert!(
        text.contains("; install the NVIDIA driver, or compute on the CPU with --set device=cpu"),
        "{text}"
    );
    let torch = drnas_dist::cuda::mapped_library("libtorch_cpu.so").expect("this program is linked with it");
    let complete = torch.ancestors().nth(3).is_some_and(|packages| packages.join("nvidia/cudnn").exists());
    if !torch.with_file_name("libtorch_cuda.so").exists() || complete {
        println!("skipped: needs a CUDA build of libtorch without its CUDA libraries");
        return;
    }
    let mut command = bench.search(2, "none", &cuda);
    command.env("LD_LIBRARY_PATH", double());
    let text = failure_text(command);
    assert!(text.contains(start) && text.contains("libtorch cannot use CUDA (lib"), "{text}");
    assert!(text.contains("run launch/setup.sh on this machine"), "{text}");
    // With device = "auto": no silent run on the CPU of a machine that has GPUs.
    let mut command = bench.search(2, "none", &["--set", "device=auto"]);
    command.env("LD_LIBRARY_PATH", double());
    let text = failure_text(command);
    assert!(text.contains(" has GPUs that cannot be used: libtorch cannot use CUDA (lib"), "{text}");
    assert!(text.contains("or compute on the CPU with --set device=cpu"), "{text}");
}

#[test]
fn each_rank_has_its_own_gpu() {
    let output = succeeds("gpu", 2, &[]).output;
    assert!(output.contains("rank 0 has 0000:10:00.0 on Cpu, 80 GiB"), "{output}");
    assert!(output.contains("rank 1 has 0000:11:00.0 on Cpu, 81 GiB"), "{output}");
    let output = succeeds("gpu", 0, &[("CUDA_VISIBLE_DEVICES", "5")]).output;
    assert!(output.contains("rank 0 has 0000:15:00.0 on Cpu, 85 GiB"), "{output}");
}

#[test]
fn doctor_lists_gpus_and_libraries_with_their_paths() {
    let outcome = run_on(double(), "doctor", 2, &[("DOUBLE_CARDS", "2")]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    let folder = double().display();
    for line in [
        format!("CUDA driver    CUDA 13.0  {folder}/libcuda.so.1"),
        format!("NCCL           2.30.0  {folder}/libnccl.so.2"),
        "GPU 0 Double 0 (80 GiB) at 0000:10:00.0, GPU 1 Double 1 (81 GiB) at 0000:11:00.0".into(),
    ] {
        assert!(outcome.output.contains(&line), "no {line:?} in: {}", outcome.output);
    }
}

#[test]
fn too_few_or_shared_gpus_are_reported() {
    let few = "3 ranks but 2 GPUs; start at most one rank per GPU, or let ranks share GPUs with --share-gpu";
    fails("gpu", 3, &[("DOUBLE_CARDS", "2")], &[few]);
    fails("gpu", 3, &[("DOUBLE_CARDS", "2"), ("TEST_AUTO", "1")], &[few]);
    // Two ranks that enumerate the same GPUs in different order.
    let two = ("DOUBLE_CARDS", "2");
    fails("gpu", 2, &[two, ("TEST_CROSSED", "1")], &["ranks 0 and 1 use the same GPU at 0000:10:00.0"]);
    let one = ("DOUBLE_CARDS", "1");
    let (share, allow) = (("TEST_SHARE", "1"), ("NCCL_MULTI_RANK_GPU_ENABLE", "1"));
    let cannot = "sharing the GPU at 0000:10:00.0 (--share-gpu) requires NCCL 2.30.0 or newer and NCCL_MULTI_RANK_GPU_ENABLE=1";
    fails("gpu", 2, &[one, share], &[cannot, "found NCCL 2.30.0"]);
    let old = ("DOUBLE_NCCL_VERSION", "22809");
    fails("gpu", 2, &[one, share, allow, old], &[cannot, "found NCCL 2.28.9"]);
    succeeds("means", 2, &[one, share, allow]);
}

#[test]
fn missing_gpu_is_reported_and_auto_selects_the_cpu() {
    let none = ("DOUBLE_CARDS", "0");
    fails(
        "gpu",
        2,
        &[none],
        &["device = \"cuda\": no usable GPU on ", "shows no GPU; see nvidia-smi, or compute"],
    );
    let hidden = ("CUDA_VISIBLE_DEVICES", "");
    fails("gpu", 0, &[hidden], &["shows no GPU with CUDA_VISIBLE_DEVICES=; change or unset it"]);
    let auto = ("TEST_AUTO", "1");
    let outcome = succeeds("gpu", 2, &[none, auto]);
    assert_eq!(
        outcome.output.matches("note: no GPU found, using the CPU: the NVIDIA driver shows").count(),
        1
    );
    assert!(outcome.output.contains("rank 1 has nothing on Cpu"), "{}", outcome.output);
    let bf16 = "run.reduce = \"bf16\" requires GPUs";
    fails("bf16", 0, &[none, auto], &[bf16]);
    // No driver: the folder of the double does not exist.
    let nowhere = Path::new("/nonexistent");
    fails_on(
        nowhere,
        "gpu",
        0,
        &[],
        &["no NVIDIA driver (libcuda.so.1: cannot open", "; install the NVIDIA driver, or"],
    );
}

#[test]
fn missing_wrong_or_old_nccl_is_reported() {
    let advice = "run launch/setup.sh on a machine with an NVIDIA driver, or name a file in DRNAS_NCCL";
    fails(
        "gpu",
        2,
        &[("DRNAS_NCCL", "/nonexistent/libnccl.so.2")],
        &["NCCL not found", "/nonexistent/", advice],
    );
    // A single rank sends nothing and needs no NCCL.
    succeeds("gpu", 0, &[("DRNAS_NCCL", "/nonexistent/libnccl.so.2")]);
    // A name without a folder is found by the system's library search.
    succeeds("gpu", 2, &[("DRNAS_NCCL", "libnccl.so.2")]);
    let other = double().join("libcuda.so.1");
    let other = other.to_str().unwrap();
    fails(
        "gpu",
        2,
        &[("DRNAS_NCCL", other)],
        &[other, "no ncclGetVersion: NCCL is too old, or this is another library", advice],
    );
    fails(
        "gpu",
        2,
        &[("DOUBLE_NCCL_VERSION", "21005")],
        &["expected NCCL 2.18.0 or newer, found 2.10.5", advice],
    );
    fails("gpu", 2, &[("DOUBLE_NCCL_VERSION", "21799")], &["expected NCCL 2.18.0 or newer, found 2.17.99"]);
    succeeds("gpu", 2, &[("DOUBLE_NCCL_VERSION", "21800")]);
    fails(
        "gpu",
        3,
        &[("DOUBLE_NCCL_VERSION_2", "22809")],
        &["rank 2 has NCCL 2.28.9, rank 0 has 2.30.0; install the same version on all hosts"],
    );
}

#[test]
fn libraries_without_a_required_function_are_reported() {
    for (symbol, ranks) in
        [("ncclBroadcast", 2), ("ncclGetLastError", 2), ("cuStreamWaitEvent", 0), ("cuGetErrorString", 0)]
    {
        let folder = compiled(&[&format!("-D{symbol}=another_{symbol}")]);
        fails_on(&folder, "gpu", ranks, &[], &[&format!("no {symbol}")]);
    }
}

/// The first failing call of each kind ends the run with the name of the call and the driver's error string.
#[test]
fn error_of_any_driver_call_is_reported() {
    for call in [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetPCIBusId",
        "cuDeviceTotalMem",
        "cuDeviceGetUuid",
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuMemGetInfo",
    ] {
        let fail = format!("{call}:1");
        let expected = format!("{call}: unspecified launch failure (CUDA error 719)");
        fails("gpu", 0, &[("DOUBLE_FAIL", &fail)], &[&expected]);
    }
    // An error for which the driver has no error string.
    let wordless = [("DOUBLE_FAIL", "cuInit:1"), ("DOUBLE_WORDLESS", "1")];
    fails("gpu", 0, &wordless, &["cuInit: unknown error (CUDA error 719)"]);
    // A broadcast creates 3 events, records 3 times and waits twice.
    for (call, numbers) in [
        ("cuStreamCreate", 1..=1),
        ("cuEventCreate", 1..=3),
        ("cuEventRecord", 1..=3),
        ("cuStreamWaitEvent", 1..=2),
        ("cuEventQuery", 1..=1),
    ] {
        for number in numbers {
            let fail = format!("{call}:{number}");
            let expected = format!("{call}: unspecified launch failure (CUDA error 719)");
            fails("steps", 2, &[("DOUBLE_FAIL", &fail), ("DOUBLE_RANK", "1")], &["rank 1 on ", &expected]);
        }
    }
}

#[test]
fn error_of_any_nccl_call_is_reported() {
    for call in ["ncclGetVersion", "ncclGetUniqueId", "ncclCommInitRank"] {
        let fail = format!("{call}:1");
        let expected =
            format!("{call}: unhandled system error (NCCL error 2); set NCCL_DEBUG=INFO for details");
        fails("gpu", 2, &[("DOUBLE_FAIL", &fail), ("DOUBLE_RANK", "0")], &["rank 0 on ", &expected]);
    }
    for (call, at) in [
        ("ncclBroadcast", "step 0, start-up: broadcast of 10 Float from rank 0"),
        ("ncclGroupStart", "step 1, backward: all-reduce of 1 tensor, 1000 elements (1000 Float)"),
        ("ncclAllReduce", "step 1, backward: all-reduce of 1 tensor, 1000 elements (1000 Float)"),
        ("ncclGroupEnd", "step 1, backward: all-reduce of 1 tensor, 1000 elements (1000 Float)"),
        ("ncclCommGetAsyncError", "step "),
    ] {
        let fail = format!("{call}:1");
        let expected =
            format!(": {call}: unhandled system error (NCCL error 2); check the GPUs and network links");
        fails("steps", 2, &[("DOUBLE_FAIL", &fail), ("DOUBLE_RANK", "1")], &["rank 1 on ", at, &expected]);
    }
    // Errors during the shutdown of a successful run are ignored.
    for call in ["ncclCommDestroy", "cuStreamDestroy", "cuEventDestroy"] {
        succeeds("steps", 2, &[("DOUBLE_FAIL", &format!("{call}:1"))]);
    }
}

#[test]
fn asynchronous_error_is_reported_with_its_step() {
    fails(
        "steps",
        2,
        &[("DOUBLE_LOST", "4"), ("DOUBLE_RANK", "1")],
        &[
            "rank 1 on ",
            ", step 3, backward: all-reduce of 1 tensor, 1000 elements (1000 Float): ncclCommGetAsyncError: remote process",
            "(NCCL error 6): the double lost its link; check the GPUs and network links of the hosts, then resume with",
        ],
    );
}

#[test]
fn hanging_calls_are_reported_within_the_time_limit() {
    let impatient = ("TEST_IMPATIENT", "1");
    // A missing rank, while the hosts of the others wait for their GPUs.
    fails(
        "steps",
        3,
        &[impatient, ("TEST_ABSENT", "5")],
        &[
            "rank 0 on ",
            ", step 5, backward: timed out after ",
            " s in all-reduce of 1 tensor, 1000 elements (1000 Float), furthest behind: rank 2 on ",
        ],
    );
    // Calls that never return on rank 1: of NCCL, of the driver, of the watchdog itself, and at shutdown. Where rank 0
    // waits as well, either rank may report first and end the other.
    for (call, who, text) in [
        ("ncclCommInitRank:1", "rank ", ", step 0, start-up: timed out after "),
        ("ncclGroupEnd:6", "rank ", ", step 6, backward: timed out after "),
        ("cuEventQuery:9", "rank 1 on ", "s in all-reduce of 1 tensor, 1000 elements"),
        ("ncclCommGetAsyncError:3", "rank 1 on ", "s in "),
        ("ncclCommDestroy:1", "rank ", "s in ncclCommDestroy"),
    ] {
        fails("steps", 2, &[impatient, ("DOUBLE_HANG", call), ("DOUBLE_RANK", "1")], &[who, text]);
    }
}

#[test]
fn mismatched_lengths_are_reported() {
    let outcome = fails(
        "lengths",
        2,
        &[],
        &[
            "rank 0: mean of 1 tensor, 1000 elements (1000 Float); rank 1: mean of 1 tensor, 999 elements (999 Float)",
        ],
    );
    assert!(outcome.wall < PATIENCE / 2, "{:?}", outcome.wall);
}

#[test]
fn mismatched_lengths_of_a_later_step_are_reported() {
    let expected =
        "rank 0: mean of 1 tensor, 999 elements (999 Float); rank 1: mean of 1 tensor, 1000 elements";
    let outcome = fails("later-lengths", 2, &[], &["not detected yet", expected]);
    assert!(outcome.wall < PATIENCE / 2, "{:?}", outcome.wall);
}

#[test]
fn all_ranks_stop_after_the_same_step() {
    for size in [2, 3] {
        let outcome = run_on(double(), "stop", size, &[]);
        assert_eq!(outcome.code, Some(drnas_dist::process::signals::STOPPED), "{}", outcome.output);
        let stopped = |step: u32| outcome.output.matches(&format!("stopped after step {step}\n")).count();
        assert!([3, 4].iter().any(|&step| stopped(step) == size), "{}", outcome.output);
    }
}

#[test]
fn dropping_the_world_during_a_reduction_ends_all_ranks() {
    fails("dropped", 2, &[], &["rank 1 on ", "operations in progress"]);
}

// -- uploads of images ----------------------------------------------------------------------------

#[test]
fn uploaded_batches_equal_those_on_the_cpu() {
    succeeds("uploads", 0, &[("DOUBLE_LEGACY", "host")]);
}

/// Late copies, late readers, and both: no slot is overwritten before it is read or read before it is written.
#[test]
fn staging_slots_alternate() {
    for late in [("DOUBLE_LATE_US", "15000"), ("DOUBLE_LATE_LEGACY_US", "15000")] {
        succeeds("slots", 0, &[late]);
    }
    succeeds("slots", 0, &[]);
}

#[test]
fn failed_copy_is_an_error() {
    fails_on(
        double(),
        "uploads",
        0,
        &[("DOUBLE_LEGACY", "host"), ("DOUBLE_FAIL", "cuMemcpyHtoDAsync:5")],
        &["cuMemcpyHtoDAsync"],
    );
    // The second of two copies fails while the first is in progress.
    let fail = [("DOUBLE_LATE_US", "50000"), ("DOUBLE_FAIL", "cuMemcpyHtoDAsync:2")];
    fails("failed-copy", 0, &fail, &["cuMemcpyHtoDAsync: unspecified launch"]);
}
