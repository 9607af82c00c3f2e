//! Texts that people write or paste: configuration, `--set`, split lists, genotypes.

use crate::{Target, bombard};
use drnas_dist::config::{Config, Settings};
use drnas_dist::data::folder::Folder;
use drnas_dist::space::genotype::Genotype;
use std::fs;
use std::path::Path;

/// A configuration that was accepted must say the same when it is written and read again.
fn consistent(config: &Config) {
    let text = config.to_toml();
    let again = Config::parse(&text, "its own text", &[]).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    assert_eq!(again.to_toml(), text);
    for size in [1, 2, 3, usize::MAX] {
        let _ = config.check_ranks(size);
        let _ = config.check_classes(size);
    }
    let _ = (config.num_epochs(), config.replica_batch());
}

#[test]
fn configuration() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut seeds = vec![Config::default().to_toml().into_bytes()];
    for name in ["quickstart.toml", "search-imagenet-small.toml", "search-imagenet.toml"] {
        seeds.push(fs::read(folder.join(name)).unwrap());
    }
    let words = [
        "[",
        "]",
        "[[",
        "{",
        "}",
        "a.",
        "\"\"\"",
        "'''",
        "'",
        "\"",
        "\\u",
        "\\",
        "=",
        "\n",
        "# ",
        "[search]\n",
        "[[search.stage]]\n",
        "stage = []\n",
        "k = 6\n",
        "seed = ",
        "1979-05-27T07:32:00Z",
        "0x",
        "true",
        "{a=",
        "\u{feff}",
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let target = Target { name: "configuration", seeds, words: &words, spare_bytes: 4 << 20 };
    bombard(&target, |file| {
        fs::write(&path, file).unwrap();
        Config::load(&path, &[]).map(|config| consistent(&config))
    });
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
    let words = [
        "=",
        ".",
        "[",
        "{",
        "\"",
        "'",
        "\n",
        "a.",
        "search.",
        "stage.",
        "[[",
        "0",
        "18446744073709551616",
        "#",
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).into();
    let target = Target { name: "set", seeds, words: &words, spare_bytes: 4 << 20 };
    bombard(&target, |file| {
        // Arguments are text.
        let set = String::from_utf8_lossy(file).into_owned();
        Config::parse("", "no file", &[set]).map(|config| consistent(&config))
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
    let words = ["../", "/", "\n", "apple/", "pear", "..", "#", "\0", "\u{feff}", "\r", "apple/1.jpg\n", "."];
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).into();
    let list = dir.path().join("list.txt");
    let target = Target { name: "split-list", seeds, words: &words, spare_bytes: 1 << 20 };
    bombard(&target, |file| {
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

#[test]
fn genotype() {
    let seed = r#"{"normal":[["sep_conv_3x3",0],["sep_conv_5x5",1],["skip_connect",0],["max_pool_3x3",2],
        ["avg_pool_3x3",1],["dil_conv_3x3",3],["dil_conv_5x5",4],["sep_conv_3x3",0]],"normal_concat":[2,3,4,5],
        "reduce":[["sep_conv_3x3",0],["sep_conv_5x5",1],["skip_connect",0],["max_pool_3x3",2],
        ["avg_pool_3x3",1],["dil_conv_3x3",3],["dil_conv_5x5",4],["sep_conv_3x3",0]],"reduce_concat":[2,3,4,5]}"#;
    let words = [
        "[",
        "{",
        "\"",
        "[\"skip_connect\",0],",
        "2,",
        "\"normal\":",
        "null",
        "-",
        "1e5",
        "\\u0000",
        ",",
        "none",
    ];
    let target = Target { name: "genotype", seeds: vec![seed.into()], words: &words, spare_bytes: 1 << 20 };
    bombard(&target, |file| {
        let text = String::from_utf8_lossy(file);
        Genotype::from_json(&text).map(|genotype| {
            genotype.to_line();
            for concat in [&genotype.normal_concat, &genotype.reduce_concat] {
                assert!(
                    concat.iter().all(|&state| (2..6).contains(&state)),
                    "{concat:?} are not nodes of the cell"
                );
            }
        })
    });
}
