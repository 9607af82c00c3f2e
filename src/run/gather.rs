//! All-gather of text lines.

use crate::comm::Communicator;
use crate::error::Result;

/// Returns the lines of all ranks, in rank order, on every rank. Collective.
pub(super) fn gather_lines(mine: &[String], comm: &dyn Communicator) -> Result<Vec<String>> {
    let mut text = mine.join("\n").into_bytes();
    let lengths = comm.all_gather(&(text.len() as u64).to_le_bytes())?;
    let length =
        |bytes: &Vec<u8>| bytes.as_slice().try_into().map_or(0, |bytes| u64::from_le_bytes(bytes) as usize);
    let lengths: Vec<usize> = lengths.iter().map(length).collect();
    text.resize(lengths.iter().copied().max().unwrap_or(0), 0);
    let all = comm.all_gather(&text)?;
    let texts = all.iter().zip(lengths).map(|(text, length)| String::from_utf8_lossy(&text[..length]));
    Ok(texts.flat_map(|text| text.lines().map(String::from).collect::<Vec<_>>()).collect())
}
