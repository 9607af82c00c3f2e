//! Reads a genotype from a file, a published name, or the one-line notation of the DARTS code.

use super::genotype::Genotype;
use crate::files;
use crate::space::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Published architectures, by the names in their code.
const PUBLISHED: [(&str, &str); 6] = [
    (
        "DARTS_V1",
        "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', \
         1), ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], \
         normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', \
         2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), \
         ('avg_pool_3x3', 0)], reduce_concat=range(2, 6))",
    ),
    (
        "DARTS_V2",
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', \
         1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], \
         normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', \
         2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), \
         ('max_pool_3x3', 1)], reduce_concat=range(2, 6))",
    ),
    (
        "PC_DARTS_cifar",
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', \
         1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], \
         normal_concat=range(2, 6), reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', \
         1), ('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), \
         ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))",
    ),
    (
        "PC_DARTS_image",
        "Genotype(normal=[('skip_connect', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('skip_connect', \
         1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('dil_conv_5x5', 4)], \
         normal_concat=range(2, 6), reduce=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', \
         2), ('max_pool_3x3', 1), ('sep_conv_3x3', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), \
         ('sep_conv_3x3', 3)], reduce_concat=range(2, 6))",
    ),
    (
        "DrNAS_cifar10",
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', \
         2), ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2), ('dil_conv_5x5', 3)], \
         normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('dil_conv_5x5', \
         2), ('sep_conv_5x5', 1), ('sep_conv_5x5', 1), ('dil_conv_5x5', 3), ('skip_connect', 4), \
         ('sep_conv_5x5', 1)], reduce_concat=range(2, 6))",
    ),
    (
        "DrNAS_imagenet",
        "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('sep_conv_3x3', \
         1), ('sep_conv_3x3', 0), ('dil_conv_3x3', 3), ('skip_connect', 0), ('sep_conv_3x3', 1)], \
         normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', \
         0), ('skip_connect', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 2), ('sep_conv_3x3', 3), \
         ('sep_conv_3x3', 1)], reduce_concat=range(2, 6))",
    ),
];

/// Maximum length of a genotype; avoids parsing a wrong file for minutes.
const MAX_BYTES: usize = 1 << 14;

impl Genotype {
    /// Reads an architecture from a published name, the text of a genotype (JSON or DARTS notation), or a file that
    /// contains such a text, for example `genotype.json` of a search.
    pub fn read(text: &str) -> Result<Genotype> {
        if let Some((_, line)) = PUBLISHED.iter().find(|(name, _)| *name == text) {
            return Genotype::parse(line);
        }
        let path = Path::new(text);
        if path.is_file() {
            let mut content = String::new();
            let file = File::open(path).map_err(files::io("open", path))?;
            // One byte more than allowed, to detect longer files.
            let read = file.take(MAX_BYTES as u64 + 1).read_to_string(&mut content);
            read.map_err(files::io("read", path))?;
            return Genotype::parse(&content).map_err(|error| match error {
                Error::Genotype(what) => Error::Genotype(format!("{}: {what}", path.display())),
                error => error,
            });
        }
        if text.contains(['(', '{', '|']) {
            return Genotype::parse(text);
        }
        let names: Vec<&str> = PUBLISHED.iter().map(|(name, _)| *name).collect();
        Err(Error::Genotype(format!(
            "'{text}' is neither a file nor a published name ({})",
            names.join(", ")
        )))
    }

    /// Parses either notation and checks that the architecture exists in the space.
    pub fn parse(text: &str) -> Result<Genotype> {
        let text = text.trim();
        if text.len() > MAX_BYTES {
            return Err(Error::Genotype(format!(
                "expected a genotype of at most {MAX_BYTES} bytes, found a longer text"
            )));
        }
        if text.starts_with('{') {
            return Genotype::from_json(text);
        }
        let wrong = |why: &str| {
            Error::Genotype(format!(
                "{why}; expected Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=[...], \
                 reduce_concat=range(2, 6)), or JSON"
            ))
        };
        if text.starts_with('|') {
            return Err(wrong("found an architecture of NAS-Bench-201"));
        }
        let json = line_to_json(text).ok_or_else(|| wrong("not a genotype"))?;
        let genotype: serde_json::Result<Genotype> = serde_json::from_str(&json);
        genotype.map_err(|error| wrong(&error.to_string()))?;
        Genotype::from_json(&json)
    }
}

/// Converts the Python text `Genotype(key=value, ...)` to JSON, ignoring a prefix such as `NAME = `. This is not a
/// parser: text of another form gives invalid JSON.
fn line_to_json(text: &str) -> Option<String> {
    let (_, inner) = text.split_once("Genotype(")?;
    let inner = inner.trim_end().strip_suffix(')')?;
    let mut json: String = inner.split_whitespace().collect();
    while let Some(start) = json.find("range(") {
        let end = start + json[start..].find(')')?;
        let (from, to) = json[start + "range(".len()..end].split_once(',')?;
        let states: Vec<usize> = (from.parse().ok()?..to.parse::<usize>().ok()?.min(100)).collect();
        json.replace_range(start..=end, &format!("{states:?}"));
    }
    for key in ["normal", "normal_concat", "reduce", "reduce_concat"] {
        let (at_start, inside) = (format!("{key}="), format!(",{key}="));
        if json.starts_with(&at_start) {
            json.replace_range(..at_start.len(), &format!("\"{key}\":"));
        }
        json = json.replacen(&inside, &format!(",\"{key}\":"), 1);
    }
    let json = json.replace('(', "[").replace(')', "]").replace('\'', "\"");
    // Python allows trailing commas.
    Some(format!("{{{}}}", json.replace(",]", "]").trim_end_matches(',')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_genotypes_are_read_back() {
        for (name, line) in PUBLISHED {
            let genotype = Genotype::read(name).unwrap();
            assert_eq!(genotype.to_line(), line, "{name}");
            assert_eq!(Genotype::read(line).unwrap(), genotype);
            assert_eq!(Genotype::read(&serde_json::to_string(&genotype).unwrap()).unwrap(), genotype);
        }
    }

    #[test]
    fn pasted_python_is_accepted() {
        let genotype = Genotype::read("DARTS_V2").unwrap();
        let pasted = format!("DARTS_V2 = {}\n", genotype.to_line().replace(", ", ",\n    "));
        assert_eq!(Genotype::read(&pasted).unwrap(), genotype);
        let double = pasted.replace('\'', "\"").replace("range(2,\n    6)", "[2, 3, 4, 5,]");
        assert!(double.contains("[2, 3, 4, 5,]"));
        assert_eq!(Genotype::read(&double).unwrap(), genotype);
        let json = serde_json::to_string(&genotype).unwrap();
        assert_eq!(Genotype::read(&format!("\n  {json}\n")).unwrap(), genotype);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("genotype.txt");
        std::fs::write(&file, &pasted).unwrap();
        assert_eq!(Genotype::read(file.to_str().unwrap()).unwrap(), genotype);
    }

    #[test]
    fn invalid_genotypes_are_refused() {
        let line = Genotype::read("DrNAS_imagenet").unwrap().to_line();
        let refused = |text: &str, word: &str| {
            let error = Genotype::read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused("DrNAS_imagnet", "neither a file nor a published name (DARTS_V1, ");
        refused(&line.replacen("sep_conv_3x3", "sep_conv_7x7", 1), "unknown operation 'sep_conv_7x7'");
        refused(&line.replacen("range(2, 6)", "range(2, 7)", 1), "in ascending order, found [2, 3, 4, 5, 6]");
        refused(
            &line.replace("range(2, 6)", "range(1, 6)"),
            "normal_concat: expected some of the nodes 2, 3, 4, 5",
        );
        refused(&line.replacen("reduce_concat", "reduction_concat", 1), "expected Genotype(normal=");
        refused(&line.replacen(", normal_concat=range(2, 6)", "", 1), "missing field `normal_concat`");
        refused("Genotype(", "not a genotype");
        refused("|nor_conv_3x3~0|+|skip_connect~0|", "an architecture of NAS-Bench-201");
    }
}
