//! What a run tells, and where: the names of images that were replaced.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, finish, said};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Packs the training images anew as the set `name`, with one that cannot be decoded; its name.
fn with_a_cut_image(name: &str) -> String {
    let bench = Bench::get();
    let images = format!("{name}-images");
    let copied = Command::new("cp").arg("-r").args([bench.path("images"), bench.path(&images)]).status();
    assert!(copied.unwrap().success());
    let list = text(&bench.path("lists/train.txt"));
    let cut = list.lines().filter(|line| !line.starts_with('#')).nth(30).unwrap().to_owned();
    let path = bench.path(&images).join(&cut);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let output = bench
        .program()
        .args(["pack", &images, name, "--list", "lists/train.txt", "--shard-images", "40", "--no-decode"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    cut
}

#[test]
fn replaced_images_are_counted_and_named_and_damage_is_not_passed_over() {
    let bench = Bench::get();
    let cut = with_a_cut_image("cut");
    // Two epochs that see nearly all of the 168 images, on one rank and on two.
    let sets = ["data.skip_bad=true", "search.stage=[{k=6,ops_kept=7,epochs=2}]", "run.checkpoint_every=3"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let search = |ranks: usize, run: &str, more: &[&str]| {
        let mut command = if ranks == 0 { bench.program() } else { bench.mpirun() };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_drnas-dist")]);
        }
        command.args(["search-imagenet", "--config", "search.toml", "--train", "cut", "--valid", "valid"]);
        command.args(["--out", run]).args(&sets).args(more);
        finish(command, LIMIT)
    };
    let mut reports = Vec::new();
    for (ranks, run) in [(0, "replaced-1"), (2, "replaced-2")] {
        let output = search(ranks, run, &[]);
        assert!(output.status.success(), "{}", said(&output));
        let folder = bench.path(run);
        let log: Vec<serde_json::Value> = text(&folder.join("metrics.jsonl"))
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |event: &str| log.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
        let epochs: u64 = of("epoch").iter().map(|epoch| epoch["skipped_images"].as_u64().unwrap()).sum();
        assert!(epochs >= 1, "{}", said(&output));
        assert_eq!(of("finish")[0]["replaced_images"], epochs);
        // Named once, with the reason, in every place.
        let named = of("replaced");
        assert_eq!(named.len(), 1, "{named:?}");
        let image = named[0]["images"][0].as_str().unwrap();
        assert!(
            image.contains(&cut) && image.contains("shard shard-0000") && image.contains("cut short"),
            "{image}"
        );
        for (place, times) in [(said(&output), 2), (text(&folder.join("report.txt")), 1)] {
            assert_eq!(place.matches(image).count(), times, "{place}");
        }
        assert_eq!(text(&folder.join("messages.log")).matches(image).count(), 1);
        let report = text(&folder.join("report.txt"));
        let counted = format!("{epochs} time{}", if epochs == 1 { "" } else { "s" });
        assert!(report.contains(&counted), "{counted} is not in {report}");
        reports.push((epochs, image.to_owned()));
    }
    assert_eq!(reports[0], reports[1]);

    // A damaged shard ends the run all the same.
    for shard in fs::read_dir(bench.path("cut")).unwrap().flatten().map(|entry| entry.path()) {
        if shard.extension().is_some_and(|extension| extension == "bin") {
            let mut bytes = fs::read(&shard).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&shard, bytes).unwrap();
        }
    }
    let output = search(0, "damaged", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("is damaged (checksum "), "{}", said(&output));
}
