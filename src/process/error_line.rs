//! How an error or a panic reads: one line, whatever it quotes.

use std::any::Any;

/// The error and what caused it, in one line; a cause that is quoted already is not said twice. Control characters, which
/// come from names and contents of files, are escaped: they would break the line or move the terminal's cursor.
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

/// What a panic says, without the stack of C++ frames that libtorch adds.
pub fn panic_line(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    // tch unwraps: the text of the error is quoted.
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
    fn causes_are_said_once_in_one_line() {
        let inner = std::io::Error::other("the disk\nis full");
        let error = files::io("write", "a/b")(inner);
        assert_eq!(chain(&error), "write a/b: the disk is full");
        assert_eq!(chain(&Outer(error)), "outer: write a/b: the disk is full");
        assert_eq!(chain(&std::io::Error::other("demo-data: \u{1b}[2Jä\r")), "demo-data: \\u{1b}[2Jä\\r");
    }

    #[test]
    fn a_panic_is_said_without_frames() {
        let line = |text: &str| panic_line(&text.to_owned());
        assert_eq!(line("index 5\nis too large"), "index 5 is too large");
        let tch = "called `Result::unwrap()` on an `Err` value: Torch(\"Target 9 is out of bounds.\\nException raised from nll";
        assert_eq!(line(tch), "Target 9 is out of bounds.");
        assert_eq!(line("Torch(\"can't allocate memory\\nframe #0: c10"), "can't allocate memory");
        assert_eq!(panic_line(&"a word"), "a word");
    }
}
