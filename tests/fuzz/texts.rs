//! Text that users write or paste: configurations, `--set`, split lists, genotypes.

use crate::{Target, fuzz};
use drnas_dist::config::{Config, EvaluateConfig, Settings};
use drnas_dist::data::folder::Folder;
use drnas_dist::space::genotype::Genotype;
use drnas_dist::space::nb201::Architecture;
use std::fs;
use std::path::Path;

/// Asserts that an accepted configuration stays the same when it is written and parsed again.
fn assert_round_trip<S: Settings>(config: &S) {
    let text = config.to_toml();
    let again = S::parse(&text, "its own text", &[]).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    assert_eq!(again.to_toml(), text);
    for size in [1, 2, 3, usize::MAX] {
        let _ = config.check_ranks(size);
        let _ = config.check_classes(size);
    }
    let _ = (config.replica_batch(), config.hash());
}

fn fuzz_configuration<S: Settings>(name: &str, files: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut seeds = vec![S::default().to_toml().into_bytes()];
    seeds.extend(files.iter().map(|file| fs::read(folder.join(file)).unwrap()));
    let words = r#"[ ] [[ { } a. """ ''' ' " \u \ = # [search] [[search.stage]] stage=[] k=6 seed=
        1979-05-27T07:32:00Z 0x true {a="#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let target = Target { name, seeds, words, spare_bytes: 4 << 20, every: 1 };
    fuzz(&target, |file| {
        fs::write(&path, file).unwrap();
        S::load(&path, &[]).map(|config| assert_round_trip(&config))
    });
}

#[test]
fn configuration_of_a_search() {
    let files =
        ["quickstart.toml", "search-imagenet-small.toml", "search-imagenet.toml", "search-nb201.toml"];
    fuzz_configuration::<Config>("configuration-search", &files);
}

#[test]
fn configuration_of_an_evaluation() {
    let files = ["evaluate-imagenet.toml", "evaluate-cifar10.toml"];
    fuzz_configuration::<EvaluateConfig>("configuration-evaluate", &files);
}

#[test]
fn set() {
    let seeds = [
        "seed=1",
        "search.theta=shared",
        "search.stage.2.epochs=30",
        "eta.betas=[0.9, 0.999]",
        "data.mean=[0.1, 0.2, 0.3]",
        "run.time_limit_s=1e3",
        "weights.lr=0.25",
    ];
    let words = "= . [ { \" ' \n a. search. stage. [[ 0 18446744073709551616 #";
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).into();
    let target = Target { name: "set", seeds, words, spare_bytes: 4 << 20, every: 1 };
    fuzz(&target, |file| {
        // Arguments are text.
        let set = String::from_utf8_lossy(file).into_owned();
        Config::parse("", "no file", &[set]).map(|config| assert_round_trip(&config))
    });
}

#[test]
fn split_list() {
    let dir = tempfile::tempdir().unwrap();
    for class in ["apple", "pear", "ünder"] {
        fs::create_dir(dir.path().join(class)).unwrap();
    }
    let seeds = [
        "# drnas-dist split: 3 of 9 images\napple/1.jpg\napple/2.jpg\npear/a b.png\n",
        "pear/x.jpg\r\nünder/deep/er/y.jpg\r\n\r\n  apple/z.JPEG  ",
    ];
    let words = "../ / \n apple/ pear .. # \0 \u{feff} \r apple/1.jpg\n .";
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).into();
    let list = dir.path().join("list.txt");
    let target = Target { name: "split-list", seeds, words, spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |file| {
        fs::write(&list, file).unwrap();
        Folder::from_list(dir.path(), &list).map(|folder| {
            for index in 0..folder.len() {
                let name = folder.name(index);
                assert!(!name.split('/').any(|part| part == ".."), "{name:?} leaves the folder");
                assert!(dir.path().join(&name).starts_with(dir.path()), "{name:?} leaves the folder");
            }
            (0..folder.len())
                .for_each(|index| assert!((folder.label(index) as usize) < folder.classes.len()));
            folder.hash();
        })
    });
}

fn check_genotype(genotype: Genotype) {
    for concat in [&genotype.normal_concat, &genotype.reduce_concat] {
        assert!(concat.iter().all(|&state| (2..6).contains(&state)), "{concat:?} are not nodes of the cell");
    }
    let line = genotype.to_line();
    assert_eq!(Genotype::parse(&line).unwrap(), genotype, "{line}");
}

#[test]
fn genotype() {
    let mut seeds = Vec::new();
    for name in ["DrNAS_imagenet", "DrNAS_cifar10", "DARTS_V2", "PC_DARTS_image"] {
        let genotype = Genotype::read(name).unwrap();
        seeds.push(genotype.to_line().into_bytes());
        seeds.push(serde_json::to_vec(&genotype).unwrap());
    }
    let words = r#"[ { " ' ( ) ["skip_connect",0], ('none',0), 2, "normal": normal= Genotype( range( range(0,100) null -
        1e5 \u0000 , none"#;
    let target = Target { name: "genotype", seeds, words, spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |file| Genotype::parse(&String::from_utf8_lossy(file)).map(check_genotype));
}

#[test]
fn architecture_of_nas_bench_201() {
    let seeds = [0, 77, 15_624].map(|code| Architecture::from_code(code).unwrap().to_string().into_bytes());
    let words = "| + ~ ~0| ~1| none~0 +| skip_connect nor_conv_3x3 ||";
    let target = Target { name: "nb201-text", seeds: seeds.into(), words, spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |file| {
        String::from_utf8_lossy(file).parse::<Architecture>().map(|architecture| {
            assert_eq!(Architecture::from_code(architecture.code()), Some(architecture));
        })
    });
}
