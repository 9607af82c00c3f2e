//! OpenMP settings, which libtorch's CPU threads follow.

/// Largest number of threads of a kind.
pub const MAX_THREADS: usize = 1024;

/// Returns the number of threads that the environment variable OMP_NUM_THREADS requests; `None` if it is not set.
pub fn num_threads() -> Option<usize> {
    parse_num_threads(&std::env::var("OMP_NUM_THREADS").ok()?)
}

/// Returns the first number of a list with one number per nesting level, as OpenMP does; `None` outside
/// 1..=[`MAX_THREADS`].
fn parse_num_threads(list: &str) -> Option<usize> {
    list.split(',').next()?.trim().parse().ok().filter(|&threads| (1..=MAX_THREADS).contains(&threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn num_threads_is_parsed_as_by_openmp() {
        for (list, threads) in
            [("3", Some(3)), (" 4,2 ", Some(4)), ("0", None), ("-1", None), ("", None), ("two", None)]
        {
            assert_eq!(parse_num_threads(list), threads, "{list:?}");
        }
        assert_eq!(parse_num_threads("3000000000"), None);
    }
}
