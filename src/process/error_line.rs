//! Formats an error or a panic as one line.

use std::any::Any;

/// Returns the error and its causes in one line, leaving out a cause that the text already contains. Control
/// characters, which can come from file names and contents, are escaped: they would break the line or move the
/// terminal's cursor.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' => line.push(' '),
            char if char.is_control() => line.extend(char.escape_default()),
            char => line.push(char),
        }
    }
    line
}

/// Returns the message of a panic without the C++ stack frames that libtorch adds.
pub fn panic_line(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    // tch unwraps its results: the panic message quotes the error.
    let text = text.split_once("Torch(\"").map_or(text, |(_, quoted)| quoted);
    let frames = ["\\nException raised", "\\nframe #"].iter().filter_map(|begin| text.find(begin)).min();
    text[..frames.unwrap_or(text.len())].replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{self, IoError};

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] IoError);

    #[test]
    fn each_cause_appears_once_in_one_line() {
        let inner = std::io::Error::other("the disk\nis full");
        let error = files::io("write", "a/b")(inner);
        assert_eq!(chain(&error), "write a/b: the disk is full");
        assert_eq!(chain(&Outer(error)), "outer: write a/b: the disk is full");
        assert_eq!(chain(&std::io::Error::other("demo-data: \u{1b}[2Jä\r")), "demo-data: \\u{1b}[2Jä\\r");
    }

    #[test]
    fn a_panic_line_has_no_stack_frames() {
        let line = |text: &str| panic_line(&text.to_owned());
        assert_eq!(line("index 5\nis too large"), "index 5 is too large");
        let tch = "called `Result::unwrap()` on an `Err` value: Torch(\"Target 9 is out of bounds.\\nException raised from nll";
        assert_eq!(line(tch), "Target 9 is out of bounds.");
        assert_eq!(line("Torch(\"can't allocate memory\\nframe #0: c10"), "can't allocate memory");
        assert_eq!(panic_line(&"a word"), "a word");
    }
}
