//! Every parser of a file, given damaged files: an error in one line, never a panic, never memory without bound.
//!
//! The files are good ones, mutated by a generator that is seeded with parser and case: a case that fails once fails
//! always. `DRNAS_FUZZ_CASES=200000 cargo test --release --test fuzz` tries more of them, one thread a parser.

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

/// What a parser is given and what it may cost.
pub struct Target<'a> {
    /// Its name.
    pub name: &'a str,
    /// Good files: each is accepted.
    pub seeds: Vec<Vec<u8>>,
    /// What the format is made of, apart by spaces.
    pub words: &'a str,
    /// Bytes that it may hold beyond 256 times the file: a parsed `[` takes about 100.
    pub spare_bytes: u64,
    /// A parser that takes long is given one case in so many.
    pub every: u64,
}

/// Mutated files per parser.
fn num_cases() -> u64 {
    std::env::var("DRNAS_FUZZ_CASES").map_or(1500, |text| text.parse().expect("DRNAS_FUZZ_CASES is a number"))
}

/// Gives `parse` every seed, then mutated ones. What the parser refuses has to be told in
/// one line, without characters that move a terminal's cursor.
pub fn bombard<E: Into<Box<dyn std::error::Error>>>(
    target: &Target,
    mut parse: impl FnMut(&[u8]) -> Result<(), E>,
) {
    let mut parse = |file: &[u8]| parse(file).map_err(|error| chain(error.into().as_ref()));
    for (number, seed) in target.seeds.iter().enumerate() {
        if let Err(line) = parse(seed) {
            panic!("{}: good file {number} is refused: {line}", target.name);
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
            panic!("{address}: {fault}; the file ({} bytes) is kept as {}", file.len(), kept.display());
        }
        accepted += u64::from(matches!(outcome, Ok(Ok(()))));
        most_bytes = most_bytes.max(bytes);
    }
    println!(
        "{}: {cases} mutated files, {accepted} still good, at most {most_bytes} bytes held",
        target.name,
    );
    assert!(accepted < cases, "{}: nothing was ever refused", target.name);
}
