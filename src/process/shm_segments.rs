//! Cleans up shared memory after killed ranks: Open MPI removes its segments only when ranks exit normally.

use std::fs;
use std::path::{Path, PathBuf};

/// Prefixes of the segment files of Open MPI 5 and 4: `sm_segment.HOST.UID.JOB.RANK`.
const SEGMENTS: [&str; 2] = ["sm_segment.", "vader_segment."];

/// Removes the segments of this job on this machine: those mapped by this process and those of the other local ranks,
/// which may have been killed. Called when all ranks are terminated; a process that still has a segment mapped keeps
/// it.
pub(crate) fn remove() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (folder, job) in maps.lines().filter_map(segment_of) {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&job) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Returns the folder of the segment in a line of /proc/self/maps, and the common prefix of the segments of its job.
fn segment_of(line: &str) -> Option<(PathBuf, String)> {
    // Address, permissions, offset, device, inode, path; the path may contain spaces.
    let path = Path::new(line.get(line.find('/')?..)?);
    let name = path.file_name()?.to_str()?;
    let (job, rank) = name.rsplit_once('.')?;
    let ours = SEGMENTS.iter().any(|begin| job.starts_with(begin)) && rank.parse::<u32>().is_ok();
    ours.then(|| (path.parent().unwrap_or(Path::new("/")).into(), format!("{job}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_of_this_job_are_found() {
        let line = |path: &str| format!("7f10a0000000-7f10a1000000 rw-s 00000000 00:1a 77      {path}");
        let found = segment_of(&line("/dev/shm/sm_segment.node1.0.9d490001.12"));
        assert_eq!(found, Some(("/dev/shm".into(), "sm_segment.node1.0.9d490001.".into())));
        for other in ["/dev/shm/sm_segment.node1.0.9d490001.1 (deleted)", "/dev/shm/mine.1", "/lib/libc.so.6"]
        {
            assert_eq!(segment_of(&line(other)), None, "{other}");
        }
        assert_eq!(segment_of("7f10a0000000-7f10a1000000 rw-p 00000000 00:00 0"), None);
    }
}
