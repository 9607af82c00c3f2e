//! Configurations: parsing, validation, and error messages.

#[path = "common/packing.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod packing;

use clap::ValueEnum;
use drnas_dist::cli::DemoArgs;
use drnas_dist::commands::demo_data;
use drnas_dist::config::{Method, Precision, Regulariser, StageSection, Theta};
use drnas_dist::data;
use drnas_dist::data::pack::pack;
use drnas_dist::data::{DecodePool, Loader, LoaderSpec, ShardSet};
use drnas_dist::space::SearchSpace;
use drnas_dist::{Config, EvaluateConfig, Settings};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn parse(text: &str, sets: &[&str]) -> Result<Config, String> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Config::parse(text, "run.toml", &sets).map_err(|error| error.to_string())
}

fn refusal(text: &str, sets: &[&str]) -> String {
    parse(text, sets).expect_err("this configuration must be refused")
}

#[test]
fn empty_file_is_the_published_run() {
    let config = parse("", &[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.num_epochs(), 50);
    assert_eq!(config.replica_batch(), 64);
}

#[test]
fn values_override_defaults() {
    let config = parse(
        "seed = 7\nprecision = \"fp64\"\n\
         [model]\nspace = \"darts-cifar\"\ninit_channels = 36\nlayers = 20\nnum_classes = 10\n\
         [data]\npx = 32\n\
         [search]\ntheta = \"shared\"\n\
         [[search.stage]]\nk = 6\nops_kept = 7\nepochs = 25\n[[search.stage]]\nk = 4\nops_kept = 4\nepochs = 25\n\
         [weights]\nlr = 1\n",
        &[],
    )
    .unwrap();
    assert_eq!((config.seed, config.precision), (7, Precision::Fp64));
    assert_eq!(config.model.space, SearchSpace::DartsCifar);
    assert_eq!(config.search.theta, Theta::Shared);
    // The published CIFAR-10 run: 36 channels, k = 6 and then 4. An odd number of channels per edge is valid.
    let second = StageSection { k: 4, ops_kept: 4, epochs: 25 };
    assert_eq!(config.search.stages[1], second);
    assert_eq!(config.weights.lr, 1.0);
    assert_eq!(config.weights.momentum, 0.9);
}

#[test]
fn resolved_configuration_parses_to_the_same_one() {
    let config = parse("seed = 3", &["eta.lr=0.1", "search.stage.1.epochs=30"]).unwrap();
    let again = parse(&config.to_toml(), &[]).unwrap();
    assert_eq!(config, again);
    assert_eq!(config.hash(), again.hash());
    assert_ne!(config.hash(), Config::default().hash());
}

#[test]
fn unknown_keys_suggest_the_nearest_key() {
    assert_eq!(
        refusal("seed = 1\n\n[search]\nglobal_bach = 5\n", &[]),
        "unknown key \"search.global_bach\" in run.toml line 4; did you mean \"search.global_batch\"?"
    );
    assert_eq!(
        refusal("[model]\npx = 64\n", &[]),
        "unknown key \"model.px\" in run.toml line 2; did you mean \"data.px\"?"
    );
    assert_eq!(
        refusal("[[search.stage]]\nk = 6\nops = 7\nepochs = 1\n", &[]),
        "unknown key \"search.stage.ops\" in run.toml line 3; did you mean \"search.stage.ops_kept\"?"
    );
    assert_eq!(refusal("zzzzzzzz = 1", &[]), "unknown key \"zzzzzzzz\" in run.toml line 1");
    assert_eq!(
        refusal("", &["search.replica=4"]),
        "unknown key \"search.replica\" in --set search.replica=4; did you mean \"search.replicas\"?"
    );
    assert_eq!(
        refusal("", &["search.stage.3.k=2"]),
        "unknown key \"search.stage.3.k\" in --set search.stage.3.k=2; did you mean \"search.stage.2.k\"?"
    );
}

#[test]
fn errors_in_the_file_have_a_line_number() {
    let error = refusal("seed = 1\n[search\n", &[]);
    assert!(error.starts_with("run.toml line 2: "), "{error}");
    let error = refusal("seed = 1\n[search]\nreplicas = \"eight\"\n", &[]);
    assert!(error.starts_with("run.toml line 3: "), "{error}");
    assert!(error.contains("eight"), "{error}");
    let error = refusal("\n[model]\nspace = \"darts-imagenett\"\n", &[]);
    assert!(error.starts_with("run.toml line 3: "), "{error}");
    assert!(error.contains("darts-imagenet"), "{error}");
    let error = refusal("[[search.stage]]\nk = 6\nops_kept = 7\n", &[]);
    assert!(error.contains("epochs"), "{error}");
}

#[test]
fn set_overrides_the_file() {
    let sets = [
        "search.global_batch=64",
        "search.theta=shared",
        "eta.betas=[0.9, 0.99]",
        "data.skip_bad = true",
        "search.stage.2.epochs=11",
    ];
    let config = parse("[search]\nglobal_batch = 128\n", &sets).unwrap();
    assert_eq!(config.search.global_batch, 64);
    assert_eq!(config.search.theta, Theta::Shared);
    assert_eq!(config.architecture.betas, [0.9, 0.99]);
    assert!(config.data.skip_bad);
    assert_eq!(config.search.stages[1].epochs, 11);

    let sets = ["search.stage=[{k=2, ops_kept=7, epochs=12}]"];
    assert_eq!(parse("", &sets).unwrap().search.stages.len(), 1);
}

#[test]
fn invalid_sets_are_named() {
    assert_eq!(refusal("", &["seed"]), "--set seed: expected key=value, for example search.global_batch=256");
    assert_eq!(refusal("", &["search=1"]), "--set search=1: this key is a table; set its keys one by one");
    let error = refusal("", &["seed=5", "search.replicas=eight"]);
    assert!(error.starts_with("--set search.replicas=eight: "), "{error}");
}

#[test]
fn kl_replaces_weight_decay() {
    let config = parse("[eta]\nregulariser = \"kl\"", &[]).unwrap();
    assert_eq!(config.architecture.regulariser, Regulariser::Kl);
    assert_eq!(config.architecture.weight_decay, 0.0);
    assert_eq!(parse(&config.to_toml(), &[]).unwrap(), config);
    let error = refusal("[eta]\nregulariser = \"kl\"", &["eta.weight_decay=1e-3"]);
    assert!(error.contains("architecture.weight_decay = 0.001"), "{error}");
}

#[test]
fn former_names_are_accepted() {
    let old = parse("[eta]\nlr = 0.5\ngrad_clip = 1.0", &["eta.betas=[0.9, 0.99]", "eta.lr=0.25"]).unwrap();
    let new = ["architecture.betas.1=0.9", "architecture.betas.2=0.99"];
    assert_eq!(parse("[architecture]\nlr = 0.25\ngrad_clip = 1.0", &new).unwrap(), old);
    assert_eq!((old.architecture.lr, old.architecture.betas), (0.25, [0.9, 0.99]));
    // Errors in such a section name its line too.
    let error = refusal("seed = 1\n[eta]\nlr = \"high\"", &[]);
    assert!(error.starts_with("run.toml line 3: "), "{error}");
    assert_eq!(
        refusal("seed = 1\n[eta]\nbeta = [0.5, 0.9]", &[]),
        "unknown key \"architecture.beta\" in run.toml line 3; did you mean \"architecture.betas\"?"
    );
    let both = refusal("[eta]\nlr = 1\n[architecture]\ngrad_clip = 1", &[]);
    assert_eq!(both, "run.toml line 1: [eta] is the former name of [architecture]; use one of them");
}

#[test]
fn keys_without_effect_are_refused_and_not_written() {
    let config = parse("", &[]).unwrap();
    assert!(!config.to_toml().contains("temperature") && !config.to_toml().contains("epsilon"));
    for (text, sets) in [
        ("[architecture]\ntemperature = [5, 1]", &[][..]),
        ("", &["architecture.temperature=[5, 1]"]),
        ("", &["architecture.temperature.1=5"]),
    ] {
        let error = refusal(text, sets);
        let expected =
            "architecture.temperature has no effect with method = \"drnas\"; remove it, or use snas";
        assert!(error.contains(expected), "{error}");
    }
    let stages = "search.stage=[{k=1, ops_kept=8, epochs=12}]";
    let snas = parse("method = \"snas\"\n", &["architecture.temperature.1=5", stages]).unwrap();
    assert_eq!(snas.architecture.temperature, [5.0, 1.0]);
    assert_eq!(snas.model.operations.len(), 8);
    let text = snas.to_toml();
    assert!(text.contains("temperature = [5.0, 1.0]") && !text.contains("regulariser"), "{text}");
    assert_eq!(parse(&text, &[]).unwrap(), snas);
    let operations =
        ["model.operations=[\"noise\", \"sep_conv_3x3\"]", "search.stage=[{k=1, ops_kept=2, epochs=12}]"];
    let small = parse("method = \"darts\"", &operations).unwrap();
    assert_eq!(parse(&small.to_toml(), &[]).unwrap(), small);
}

#[test]
fn each_check_has_its_own_message() {
    let stage = |k: i64, ops: usize, epochs: u64| format!("{{k={k},ops_kept={ops},epochs={epochs}}}");
    let stages = |list: &[String]| format!("search.stage=[{}]", list.join(","));
    for (set, expected) in [
        (
            "search.replicas=5".to_owned(),
            "search.replicas = 5 does not divide search.global_batch = 512; the next multiple is 515",
        ),
        ("search.replicas=0".into(), "must be 1 or more"),
        ("search.stage.1.k=5".into(), "k = 5 does not divide model.init_channels = 48"),
        ("search.stage.2.k=8".into(), "stage 2: k = 8 is above k = 6"),
        ("search.stage.2.ops_kept=0".into(), "stage 2: ops_kept = 0"),
        ("search.stage.1.ops_kept=8".into(), "stage 1: ops_kept = 8"),
        ("search.stage.1.ops_kept=6".into(), "stage 1: ops_kept = 6 must be 7"),
        (stages(&[stage(6, 7, 20), stage(3, 4, 20), stage(2, 5, 20)]), "stage 3: ops_kept = 5 is above 4"),
        ("search.stage.2.epochs=0".into(), "stage 2: epochs = 0"),
        ("search.stage.2.epochs=10".into(), "must be above search.architecture_from_epoch = 10"),
        ("search.stage=[]".into(), "no search stage"),
        ("model.layers=2".into(), "model.layers must be 3 or more"),
        ("model.num_classes=1".into(), "model.num_classes must be 2 or more"),
        ("model.init_channels=0".into(), "model.init_channels must be in 1..=65536"),
        ("data.px=100".into(), "data.px = 100 must be a multiple of 32"),
        ("data.px=0".into(), "data.px = 0 must be a multiple of 32"),
        ("data.crop_area_min=0".into(), "data.crop_area_min must be above 0"),
        ("data.cutout=15".into(), "data.cutout must be even"),
        ("data.jitter=[0.4,0.4,-0.1,0.2]".into(), "data.jitter must be 0 or more"),
        ("data.jitter=[0.4,0.4,0.4,0.6]".into(), "with the hue at most 0.5"),
        ("data.pad=5000".into(), "data.pad must be at most 4096"),
        ("data.test_crop=-1".into(), "data.test_crop = -1 must be in"),
        ("data.test_resize=223".into(), "data.test_resize = 223 is below the 224 pixels of data.test_crop"),
        ("data.std=[0.1,0.0,0.1]".into(), "data.std must be above 0"),
        ("data.prefetch=0".into(), "data.prefetch must be 1 or more"),
        ("weights.lr=0".into(), "weights.lr must be above 0"),
        ("weights.lr=nan".into(), "weights.lr must be above 0"),
        ("weights.lr_min=0.6".into(), "weights.lr_min = 0.6 is above weights.lr = 0.5"),
        ("weights.momentum=1.0".into(), "weights.momentum must be in [0, 1)"),
        ("weights.weight_decay=-1".into(), "weights.weight_decay must be 0 or more"),
        ("weights.warmup_epochs=51".into(), "weights.warmup_epochs = 51 is above the 50 epochs"),
        ("architecture.betas=[0.5,1.0]".into(), "architecture.betas must be in [0, 1)"),
        ("eta.betas=[0.5,1.0]".into(), "architecture.betas must be in [0, 1)"),
        ("architecture.initial=[0.0,-1.0]".into(), "must be a mean"),
        ("method=sdarts".into(), "sdarts-adv"),
        ("model.operations=[\"nor_conv_1x1\"]".into(), "space has no "),
        ("model.operations=[\"noise\",\"noise\"]".into(), "model.operations: noise appears twice"),
        ("model.operations=[\"none\",\"noise\"]".into(), "architecture can contain"),
        ("model.operations=[\"sep_conv\"]".into(), "unknown operation 'sep_conv'"),
        ("model.edges=[\"normal 9<-0: skip_connect\"]".into(), "model.edges: \"normal 9<-0: skip_connect\""),
        ("model.edges=[\"normal 2<-0: none\"]".into(), "none is not in model.operations"),
        ("run.log_every=0".into(), "run.log_every must be 1 or more"),
        ("run.time_limit_s=0".into(), "run.time_limit_s must be above 0"),
        ("run.heartbeat_s=0.5".into(), "run.heartbeat_s must be 0 (off) or in 1..=3600"),
    ] {
        let error = refusal("", &[&set]);
        assert!(error.contains(expected), "{set}: {error}");
        assert!(!error.contains('\n'), "{set}: {error}");
    }
    let none = ["model.space=nas-bench-201", "model.layers=0"];
    assert!(refusal("", &none).contains("model.layers must be 1 or more"));
    // A TOML file cannot contain this value, but the field can.
    let seed = Config { seed: 1 << 63, ..Config::default() };
    assert!(seed.check().unwrap_err().to_string().contains("the largest integer of TOML"));
    let odd = ["model.init_channels=3", "search.stage=[{k=1,ops_kept=7,epochs=20}]"];
    assert!(refusal("", &odd).contains("must be even"));
    let single = ["data.px=32", "search.global_batch=8"];
    assert!(refusal("", &single).contains("batch norm"));
}

#[test]
fn ranks_and_classes_are_checked_when_known() {
    let config = Config::default();
    for size in [1, 2, 4, 8] {
        config.check_ranks(size).unwrap();
    }
    assert_eq!(
        config.check_ranks(3).unwrap_err().to_string(),
        "configuration: search.replicas = 8 is not divisible by 3 ranks; use one of 1, 2, 4, 8 ranks"
    );
    assert!(config.check_ranks(16).is_err());
    config.check_classes(1000).unwrap();
    let error = config.check_classes(10).unwrap_err().to_string();
    assert!(error.contains("--set model.num_classes=10"), "{error}");
}

#[test]
fn shipped_search_configurations_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let load = |name: &str| Config::load(&folder.join(name), &[]).unwrap();
    assert_eq!(load("search-imagenet.toml"), Config::default());
    for name in ["search-imagenet-small.toml", "search-cifar-small.toml", "quickstart.toml"] {
        let config = load(name);
        assert!(config.search.stages.len() >= 2, "{name}");
        config.check_ranks(2).unwrap();
        config.check_classes(10).unwrap();
    }
    let small = load("search-nb201-small.toml");
    assert_eq!(small.search.stages.iter().map(|stage| stage.k).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn published_runs_are_built_in() {
    use drnas_dist::config::published::{CIFAR, NB201, NB201_PROGRESSIVE, dataset_overrides};
    use drnas_dist::space::SearchSpace;
    use drnas_dist::space::nb201::Dataset;
    use drnas_dist::train::schedule::Schedule;
    let golden: std::collections::BTreeMap<String, Vec<f64>> =
        serde_json::from_str(include_str!("golden/schedules.json")).unwrap();
    let load = |(name, text): (&str, &str), dataset: Option<Dataset>| {
        let sets = dataset.map(dataset_overrides).unwrap_or_default();
        let config = Config::parse(text, name, &sets).unwrap();
        // As published: one process, no clipping of eta, first order.
        assert_eq!(
            (config.search.replicas, config.architecture.grad_clip, u8::from(config.search.order)),
            (1, 0.0, 1)
        );
        let schedule = Schedule::of_search(&config);
        (config, schedule)
    };
    let (cifar, schedule) = load(CIFAR, None);
    cifar.check_space(SearchSpace::DartsCifar).unwrap();
    let run = golden.iter().find(|(name, _)| name.starts_with("cifar_search")).unwrap();
    for (epoch, lr) in (0..).zip(run.1) {
        assert!((schedule.lr(epoch) - lr).abs() < 1e-12, "{epoch}");
    }
    for dataset in Dataset::ALL {
        let (plain, schedule) = load(NB201, Some(dataset));
        let (progressive, _) = load(NB201_PROGRESSIVE, Some(dataset));
        assert_eq!(plain.model, progressive.model);
        assert_eq!(
            (plain.search.architecture_from_epoch, progressive.search.architecture_from_epoch),
            (0, 10)
        );
        assert_eq!(plain.data.px, if dataset == Dataset::ImageNet16 { 16 } else { 32 });
        let run = golden.iter().find(|(name, _)| name.starts_with("nb201")).unwrap();
        for (epoch, lr) in (0..).zip(run.1) {
            assert!((schedule.lr(epoch) - lr).abs() < 1e-12, "{epoch}");
        }
        let error = plain.check_space(SearchSpace::DartsCifar).unwrap_err().to_string();
        assert!(error.contains("this is search-cifar, but the configuration is for search-nb201"), "{error}");
    }
}

#[test]
fn shipped_evaluation_configurations_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let load = |name: &str| EvaluateConfig::load(&folder.join(name), &[]).unwrap();
    assert_eq!(load("evaluate-imagenet.toml"), EvaluateConfig::default());
    let cifar = load("evaluate-cifar10.toml");
    assert_eq!((cifar.model.init_channels, cifar.model.layers, cifar.evaluate.epochs), (36, 20, 600));
    assert_eq!((cifar.lr(), cifar.evaluate.drop_path, cifar.data.cutout), (0.025, 0.3, 16));
    for name in ["evaluate-cifar10-small.toml", "evaluate-imagenet-small.toml"] {
        let config = load(name);
        config.check_ranks(2).unwrap();
        config.check_classes(10).unwrap();
    }
}

#[test]
fn evaluations_are_checked() {
    let parse = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        EvaluateConfig::parse("", "run.toml", &sets).map_err(|error| error.to_string())
    };
    let refused = |sets: &[&str], word: &str| {
        let message = parse(sets).expect_err("this configuration must be refused");
        assert!(message.contains(word), "{message}");
    };
    // Linear scaling of the learning rate, on request.
    assert_eq!(parse(&["evaluate.global_batch=1536"]).unwrap().lr(), 0.5);
    assert_eq!(parse(&["evaluate.global_batch=1536", "evaluate.lr_batch=768"]).unwrap().lr(), 1.0);
    refused(
        &["evaluate.global_batch=100"],
        "evaluate.replicas = 8 does not divide evaluate.global_batch = 100",
    );
    refused(&["evaluate.drop_path=1.0"], "evaluate.drop_path must be in [0, 1)");
    refused(&["evaluate.label_smoothing=-0.1"], "evaluate.label_smoothing must be in [0, 1)");
    refused(&["evaluate.epochs=0"], "evaluate.epochs = 0 must be in 1..=1000000");
    refused(&["evaluate.epochs=3"], "weights.warmup_epochs = 5 is above the 3 epochs");
    refused(&["evaluate.test_every=0"], "evaluate.test_every must be 1 or more");
    refused(&["evaluate.test_batch=0"], "evaluate.test_batch = 0 must be in 1..=1048576");
    refused(&["evaluate.lr_batch=-1"], "evaluate.lr_batch = -1 must be 0 (no scaling)");
    refused(&["data.px=64"], "the auxiliary head gets a 2 x 2 map and requires 7 x 7; use --set data.px=224");
    assert!(parse(&["data.px=64", "evaluate.auxiliary_weight=0"]).is_ok());
    refused(&["evaluate.global_batch=8"], "raise evaluate.global_batch");
    refused(&["model.init_channels=5"], "model.init_channels = 5 must be even");
    refused(&["data.test_crop=200", "data.test_resize=220"], "data.test_crop = 200 must be a multiple of 32");
    refused(&["evaluate.stage=3"], "unknown key");
}

#[test]
fn every_key_is_documented() {
    let documentation = include_str!("../configs/README.md");
    let text = Config::default().to_toml() + &EvaluateConfig::default().to_toml();
    let keys = text.lines().filter_map(|line| line.split_once(" = "));
    for (key, _) in keys {
        assert!(documentation.contains(&format!("`{key}`")), "{key} is not in configs/README.md");
    }
}

/// Collects every number of the defaults: the dotted key, as for `--set`, and whether it is an integer.
fn numbers(value: &toml::Value, key: &str, found: &mut Vec<(String, bool)>) {
    let below = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(name, value)| numbers(value, &below(name), found));
        }
        toml::Value::Array(items) => {
            (1..).zip(items).for_each(|(n, value)| numbers(value, &below(&n.to_string()), found));
        }
        toml::Value::Integer(_) => found.push((key.to_owned(), true)),
        toml::Value::Float(_) => found.push((key.to_owned(), false)),
        _ => {}
    }
}

/// Uses the numbers of a configuration as a run does; panics if one of them would make a run panic.
fn exercise<S: Settings>(settings: &S, set: &Arc<ShardSet>) {
    let run = settings.run();
    for seconds in [run.start_limit_s, run.time_limit_s, run.heartbeat_s] {
        assert!(Instant::now().checked_add(Duration::from_secs_f64(seconds)).is_some());
    }
    assert!(i32::try_from(run.threads).is_ok() && run.bucket_mib * 1024.0 * 1024.0 < u64::MAX as f64);
    let _ = settings.check_ranks(7);
    // One replica with one image per step, since the data set is small. An image that does not fit is an error.
    let spec = LoaderSpec { num_replicas: 1, batch: 1, ..LoaderSpec::of(settings, 0..1) };
    let pool = DecodePool::new(settings.data().threads(1));
    if let Err(why @ data::Error::DecodePanic { .. }) =
        Loader::open(Arc::clone(set), spec, &pool, 0).unwrap().next()
    {
        panic!("{why}");
    }
}

/// Tries extreme values for every number of the configuration: none may panic or abort, an error is one line with the
/// name of the key, and every number has bounds.
fn check_bounds<S: Settings>(set: &Arc<ShardSet>) {
    let mut found = Vec::new();
    numbers(&toml::Value::try_from(S::default()).unwrap(), "", &mut found);
    assert!(found.len() > 30, "{found:?}");
    for (key, is_integer) in found {
        let parse = |value: &str| {
            let mut sets = vec![format!("{key}={value}")];
            sets.extend((key == "data.pad").then(|| "data.crop=pad".to_owned()));
            S::parse("", "run.toml", &sets).map_err(|error| error.to_string())
        };
        let name = key.split('.').rfind(|part| part.parse::<usize>().is_err()).unwrap();
        let out_of_bounds: &[&str] = match (is_integer, key.as_str()) {
            // The seed takes every non-negative integer of TOML.
            (_, "seed") => &["-9223372036854775808", "-1", "1e20"],
            (true, _) => &["-9223372036854775808", "9223372036854775807", "1e20"],
            (false, _) => &["-1e308", "1e308", "inf", "-inf", "nan"],
        };
        for value in out_of_bounds {
            let refusal = parse(value).err().unwrap_or_else(|| panic!("{key} = {value} is accepted"));
            assert!(refusal.contains(name) && !refusal.contains('\n'), "{key} = {value}: {refusal}");
        }
        let mut values: Vec<String> = (0..63).map(|bit| (1u64 << bit).to_string()).collect();
        values.extend(["-1", "0"].map(String::from));
        if !is_integer {
            values.extend((-30..31).map(|power| format!("1e{}", 10 * power)));
        }
        for value in values {
            match parse(&value) {
                Ok(settings) if key.starts_with("data.") || key.starts_with("run.") => {
                    exercise(&settings, set);
                }
                Ok(_) => {}
                Err(refusal) => {
                    assert!(refusal.contains(name) && !refusal.contains('\n'), "{key} = {value}: {refusal}");
                }
            }
        }
    }
}

#[test]
fn every_number_has_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let (images, shards) = (folder.path().join("images"), folder.path().join("shards"));
    let px = "240..240".to_owned();
    demo_data::run(&DemoArgs { out: images.clone(), classes: 2, per_class: 1, seed: 0, px }).unwrap();
    pack(&packing::pack_args(&images, &shards), &|_| true).unwrap();
    let set = Arc::new(ShardSet::open(&shards).unwrap());
    check_bounds::<Config>(&set);
    check_bounds::<EvaluateConfig>(&set);
}

// -- methods -------------------------------------------------------------------------------------------------------

#[test]
fn every_method_has_a_configuration_in_every_space() {
    use drnas_dist::config::published::of_method;
    use drnas_dist::space::SearchSpace;
    for space in [SearchSpace::DartsImagenet, SearchSpace::DartsCifar, SearchSpace::NasBench201] {
        for &method in Method::value_variants() {
            let (name, text) = of_method(method, space);
            let config = Config::parse(text, name, &[]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((config.method, config.model.space), (method, space), "{name}");
            assert_eq!(config.model.operations, method.operations(space), "{name}");
            assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name).exists());
            let again = Config::parse(&config.to_toml(), "config.toml", &[]).unwrap();
            assert_eq!(again, config, "{name}");
        }
    }
}

/// RobustDARTS, table 1 and section 4: 2 operations per edge in S1, S2 and S4, 3 in S3.
#[test]
fn reduced_spaces_are_configurations() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/methods");
    for (name, columns, kept) in [("s1", 6, 2), ("s2", 2, 2), ("s3", 3, 3), ("s4", 2, 2)] {
        let config = Config::load(&folder.join(format!("darts-{name}.toml")), &[]).unwrap();
        assert_eq!(config.operations().len(), columns, "{name}");
        let masks = config.masks().unwrap();
        assert_eq!(masks.len(), 2);
        let rows = masks.iter().flat_map(|mask| &mask.0);
        assert!(rows.clone().all(|row| row.iter().filter(|kept| **kept).count() == kept), "{name}");
        assert_eq!(rows.count(), 28);
        let again = Config::parse(&config.to_toml(), "config.toml", &[]).unwrap();
        assert_eq!(again, config, "{name}");
        // Another method in the same space.
        let other =
            Config::load(&folder.join(format!("darts-{name}.toml")), &["method=snas".into()]).unwrap();
        assert_eq!(other.masks().unwrap(), masks);
    }
}

#[test]
fn keys_of_other_methods_are_refused() {
    let refused = |sets: &[&str], expected: &str| {
        let found = refusal("[[search.stage]]\nk = 1\nops_kept = 8\nepochs = 20\n", sets);
        assert!(found.contains(expected), "{found}");
    };
    refused(
        &["method=darts", "architecture.temperature=[5.0, 1.0]"],
        "architecture.temperature has no effect with method = \"darts\"; remove it, or use snas",
    );
    refused(
        &["method=darts", "eta.regulariser=kl"],
        "architecture.regulariser has no effect with method = \"darts\"; remove it, or use drnas",
    );
    // The default of a key is what happens anyway.
    assert!(parse("", &["method=snas", "search.stage.1.ops_kept=8", "search.order=1"]).is_ok());
    refused(&["method=snas", "search.order=2"], "search.order has no effect with method = \"snas\"");
    refused(
        &["method=pc-darts", "search.theta=shared"],
        "search.theta has no effect with method = \"pc-darts\"",
    );
    refused(&["method=snas", "architecture.attack=per-replica"], "or use sdarts-adv");
    refused(
        &["method=darts", "search.scheme=single-level", "search.order=2"],
        "search.order = 2 requires search.scheme = \"bilevel\"",
    );
    refused(
        &["method=darts", "search.scheme=single-level", "search.first=weights"],
        "search.first has no effect with search.scheme = \"single-level\"",
    );
    refused(
        &["method=darts", "search.order=2", "search.first=weights"],
        "search.order = 2 requires search.first = \"architecture\"",
    );
    refused(&["method=enas"], "unknown variant `enas`");
    // The number of operations of the method.
    refused(&["search.stage.1.ops_kept=8"], "stage 1: ops_kept = 8 must be in 1..=7");
    // Keys without effect are not written, and the text can be read again.
    let darts =
        parse("", &["method=darts", "search.stage.1.ops_kept=8", "search.stage.2.ops_kept=4"]).unwrap();
    let text = darts.to_toml();
    assert!(
        text.contains("method = \"darts\"\n") && !text.contains("temperature") && !text.contains("kl_scale")
    );
    assert_eq!(Config::parse(&text, "config.toml", &[]).unwrap(), darts);
}
