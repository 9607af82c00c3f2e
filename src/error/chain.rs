//! How an error reads: one line, whatever it quotes.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Error);

    #[test]
    fn causes_are_said_once_in_one_line() {
        let inner = std::io::Error::other("the disk\nis full");
        let error = Error::io("write", "a/b")(inner);
        assert_eq!(chain(&error), "write a/b: the disk is full");
        assert_eq!(chain(&Outer(error)), "outer: write a/b: the disk is full");
        assert_eq!(chain(&Error::Demo("\u{1b}[2Jä\r".into())), "demo-data: \\u{1b}[2Jä\\r");
    }
}
