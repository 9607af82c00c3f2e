//! Mutations that turn valid files into ones that are likely to break parsers, by a seeded generator.

use rand::{Rng, RngExt};

/// Numbers at which arithmetic overflows or changes sign.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    31,
    0x7f,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 53,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Such numbers as text, and other replacements for a number.
const NUMBERS: [&str; 22] = [
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "255",
    "65536",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "-1e-999",
    "nan",
    "inf",
    "0.5",
    "1e18",
    "null",
];

/// Applies one to four mutations to one of `seeds`. `words`: tokens of the format, separated by spaces.
pub fn mutate(random: &mut impl Rng, seeds: &[Vec<u8>], words: &str) -> Vec<u8> {
    let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
    let mut bytes = pick(random, seeds).clone();
    for _ in 0..random.random_range(1..=4) {
        apply_mutation(random, &mut bytes, seeds, &words);
    }
    bytes
}

fn pick<'a, T>(random: &mut impl Rng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

/// A random range in `bytes` of length at most `longest`.
fn range(random: &mut impl Rng, bytes: &[u8], longest: usize) -> std::ops::Range<usize> {
    let start = random.random_range(0..=bytes.len());
    let length = random.random_range(0..=longest.min(bytes.len() - start));
    start..start + length
}

fn insert(random: &mut impl Rng, bytes: &mut Vec<u8>, piece: &[u8]) {
    let at = random.random_range(0..=bytes.len());
    bytes.splice(at..at, piece.iter().copied());
}

fn apply_mutation(random: &mut impl Rng, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str]) {
    match random.random_range(0..13) {
        0 if !bytes.is_empty() => {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        1 if !bytes.is_empty() => {
            let at = random.random_range(0..bytes.len());
            bytes[at] = *pick(random, b"\0\x01\x7f\x80\xff\n\r\t \"'[]{}=.,-#/\\");
        }
        // A number in a binary file, at a multiple of 2 bytes.
        2 | 3 if bytes.len() >= 8 => {
            let width = *pick(random, &[2, 4, 8]);
            let at = random.random_range(0..=bytes.len() - width) / 2 * 2;
            let edge = (*pick(random, &EDGES)).wrapping_add(random.random_range(0..3)).wrapping_sub(1);
            bytes[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
        }
        4 => bytes.truncate(random.random_range(0..=bytes.len())),
        5 => drop(bytes.drain(range(random, bytes, 64))),
        6 => {
            let piece = bytes[range(random, bytes, 64)].to_vec();
            insert(random, bytes, &piece);
        }
        7 => {
            let piece: Vec<u8> = (0..random.random_range(1..16)).map(|_| random.random()).collect();
            insert(random, bytes, &piece);
        }
        8 if !words.is_empty() => {
            let word = pick(random, words).as_bytes().to_vec();
            insert(random, bytes, &word);
        }
        // A number in a text.
        9 | 10 => {
            let digits: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at].is_ascii_digit()).collect();
            if digits.is_empty() {
                return;
            }
            let (mut start, mut end) = (*pick(random, &digits), 0);
            while start > 0 && bytes[start - 1].is_ascii_digit() {
                start -= 1;
            }
            end += start;
            while end < bytes.len() && bytes[end].is_ascii_digit() {
                end += 1;
            }
            bytes.splice(start..end, pick(random, &NUMBERS).bytes());
        }
        // Depth and length: repeats a piece many times.
        11 => {
            let piece = match words.is_empty() || random.random() {
                true => bytes[range(random, bytes, 8)].to_vec(),
                false => pick(random, words).as_bytes().to_vec(),
            };
            let times = *pick(random, &[3, 40, 200, 20_000]);
            insert(random, bytes, &piece.repeat(times));
        }
        // The beginning of one file and the end of another.
        _ => {
            let other = pick(random, seeds);
            bytes.truncate(random.random_range(0..=bytes.len()));
            bytes.extend(&other[random.random_range(0..=other.len())..]);
        }
    }
}
