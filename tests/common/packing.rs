//! The arguments of `split` and `pack` with every option at its default.

use clap::{Args, Parser};
use drnas_dist::cli::{PackArgs, SplitArgs};
use std::ffi::OsStr;
use std::path::Path;

#[derive(Parser)]
struct Line<A: Args> {
    #[command(flatten)]
    args: A,
}

/// `drnas-dist pack ROOT OUT`.
pub fn pack_args(root: &Path, out: &Path) -> PackArgs {
    Line::parse_from([OsStr::new("pack"), root.as_os_str(), out.as_os_str()]).args
}

/// `drnas-dist split ROOT --out OUT`: 10 % of each class into `train`, 2.5 % into `valid`.
pub fn split_args(root: &Path, out: &Path) -> SplitArgs {
    Line::parse_from([OsStr::new("split"), root.as_os_str(), OsStr::new("--out"), out.as_os_str()]).args
}
