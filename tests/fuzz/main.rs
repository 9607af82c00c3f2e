//! Fuzz tests of every file parser: corrupt files give an error in one line, never a panic or unbounded memory use.
//!
//! The inputs are valid files, mutated by a generator seeded with parser and case, so failures are reproducible.
//! `DRNAS_FUZZ_CASES=200000 cargo test --release --test fuzz` tries more cases, with one thread per parser.

mod datasets;
mod files;
mod memory;
mod mutate;
#[path = "../common/packing.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod packing;
mod texts;

use drnas_dist::error::chain;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use xxhash_rust::xxh3::xxh3_64;

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

/// The inputs and limits of a parser.
pub struct Target<'a> {
    /// Name of the parser.
    pub name: &'a str,
    /// Valid files, which the parser must accept.
    pub seeds: Vec<Vec<u8>>,
    /// Tokens of the format, separated by spaces.
    pub words: &'a str,
    /// Memory that the parser may hold in addition to 256 times the file size (a parsed `[` takes about 100 bytes).
    pub spare_bytes: u64,
    /// Divides the number of cases, for slow parsers.
    pub every: u64,
}

/// Number of mutated files per parser.
fn num_cases() -> u64 {
    std::env::var("DRNAS_FUZZ_CASES").map_or(1500, |text| text.parse().expect("DRNAS_FUZZ_CASES is a number"))
}

/// Runs `parse` on every seed and then on mutated files. An error must be a single line without control characters.
pub fn fuzz<E: Into<Box<dyn std::error::Error>>>(
    target: &Target,
    mut parse: impl FnMut(&[u8]) -> Result<(), E>,
) {
    let mut parse = |file: &[u8]| parse(file).map_err(|error| chain(error.into().as_ref()));
    for (number, seed) in target.seeds.iter().enumerate() {
        if let Err(line) = parse(seed) {
            panic!("{}: valid file {number} is refused: {line}", target.name);
        }
    }
    let (mut accepted, mut most_bytes) = (0, 0);
    let cases = num_cases().div_ceil(target.every);
    for case in 0..cases {
        let address = format!("{} {case}", target.name);
        let mut random = ChaCha8Rng::seed_from_u64(xxh3_64(address.as_bytes()));
        let file = mutate::mutate(&mut random, &target.seeds, target.words);
        let (outcome, bytes) = memory::measured(|| catch_unwind(AssertUnwindSafe(|| parse(&file))));
        let fault = match &outcome {
            Err(_) => Some("a panic".to_owned()),
            Ok(_) if bytes > 256 * file.len() as u64 + target.spare_bytes => {
                Some(format!("{bytes} bytes held"))
            }
            Ok(Err(line)) if line.is_empty() || line.contains(char::is_control) => {
                Some(format!("not one line: {line:?}"))
            }
            Ok(_) => None,
        };
        if let Some(fault) = fault {
            let kept = std::env::temp_dir().join(format!("drnas-fuzz-{}-{case}", target.name));
            std::fs::write(&kept, &file).unwrap();
            panic!("{address}: {fault}; the file ({} bytes) is saved as {}", file.len(), kept.display());
        }
        accepted += u64::from(matches!(outcome, Ok(Ok(()))));
        most_bytes = most_bytes.max(bytes);
    }
    println!(
        "{}: {cases} mutated files, {accepted} still valid, at most {most_bytes} bytes held",
        target.name,
    );
    assert!(accepted < cases, "{}: no file was refused", target.name);
}
