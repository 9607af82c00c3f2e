//! Loads settings from a TOML file and `--set key=value`, and reports the place of every error.

use super::Settings;
use crate::config::error::{Error, Result};
use crate::files;
use serde::Deserialize;
use std::{fs, ops::Range, path::Path};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// [`Settings::load`].
pub fn load<S: Settings>(path: &Path, overrides: &[String]) -> Result<S> {
    let text = fs::read_to_string(path).map_err(files::io("read", path))?;
    parse(&text, &path.display().to_string(), overrides)
}

/// [`Settings::parse`].
pub fn parse<S: Settings>(text: &str, name: &str, overrides: &[String]) -> Result<S> {
    let place = |span: Option<Range<usize>>| match span.and_then(|span| text.get(..span.start)) {
        Some(before) => format!("{name} line {}", before.matches('\n').count() + 1),
        None => name.to_owned(),
    };
    let syntax = |error: toml::de::Error| syntax_error(place(error.span()), &error);
    let mut all = Value::try_from(S::default()).expect("the defaults are valid TOML");

    let known = keys(&all, false);
    let mut spanned = DeTable::parse(text).map_err(syntax)?;
    rename_eta(spanned.get_mut(), &place)?;
    refuse_unknown(spanned.get_ref(), "", &known, &|span| place(Some(span)))?;
    // Values of the wrong type, with their line.
    S::deserialize(toml::de::Deserializer::from(spanned.clone())).map_err(syntax)?;
    let written = Table::deserialize(toml::de::Deserializer::from(spanned)).map_err(syntax)?;
    let mut given = keys(&Value::Table(written.clone()), false);
    merge(&mut all, Value::Table(written));

    for set in overrides {
        given.push(apply(&mut all, set)?);
        // One at a time, so that a value of the wrong type is attributed to the right override.
        let read: Result<S, _> = all.clone().try_into();
        read.map_err(|error| syntax_error(format!("--set {set}"), &error))?;
    }

    let mut settings: S = all.try_into().map_err(syntax)?;
    // `key` itself, or an entry of its list.
    let is_given = |key: &str| {
        given
            .iter()
            .any(|given| given.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    settings.derive(&is_given)?;
    settings.check()?;
    Ok(settings)
}

fn syntax_error(place: String, error: &toml::de::Error) -> Error {
    let message = error.message().replace('\n', "; ");
    Error::Syntax { place, message }
}

/// Lists every dotted key below `value`, tables included. `indexed`: keys number the entries of a list from 1;
/// otherwise the entries share one key.
fn keys(value: &Value, indexed: bool) -> Vec<String> {
    fn walk(value: &Value, at: &str, indexed: bool, keys: &mut Vec<String>) {
        let below: Vec<(String, &Value)> = match value {
            Value::Table(table) => table.iter().map(|(name, v)| (join(at, name), v)).collect(),
            Value::Array(items) if indexed => {
                let numbered = items.iter().zip(1..);
                numbered.map(|(v, n)| (join(at, &n.to_string()), v)).collect()
            }
            Value::Array(items) => items.iter().map(|v| (at.to_owned(), v)).collect(),
            _ => Vec::new(),
        };
        for (key, value) in below {
            walk(value, &key, indexed, keys);
            keys.push(key);
        }
    }
    let mut found = Vec::new();
    walk(value, "", indexed, &mut found);
    found
}

/// The former name of the section `architecture`.
const OLD_SECTION: &str = "eta";
const NEW_SECTION: &str = "architecture";

/// Gives the section of the architecture parameters its new name.
fn rename_eta(table: &mut DeTable<'_>, place: &dyn Fn(Option<Range<usize>>) -> String) -> Result<()> {
    let Some((old, section)) = table.remove_entry(OLD_SECTION) else { return Ok(()) };
    if table.contains_key(NEW_SECTION) {
        let message = format!("[{OLD_SECTION}] is the former name of [{NEW_SECTION}]; use one of them");
        return Err(Error::Syntax { place: place(Some(old.span())), message });
    }
    table.insert(Spanned::new(old.span(), NEW_SECTION.into()), section);
    Ok(())
}

fn join(at: &str, part: &str) -> String {
    match at {
        "" => part.to_owned(),
        at => format!("{at}.{part}"),
    }
}

fn refuse_unknown(
    table: &DeTable<'_>,
    at: &str,
    known: &[String],
    place: &dyn Fn(Range<usize>) -> String,
) -> Result<()> {
    for (name, value) in table {
        let key = join(at, name.get_ref());
        if !known.contains(&key) {
            return Err(unknown(key, place(name.span()), known));
        }
        let one = std::slice::from_ref(value);
        let items = value.get_ref().as_array().map_or(one, |items| items);
        for item in items {
            if let DeValue::Table(inner) = item.get_ref() {
                refuse_unknown(inner, &key, known, place)?;
            }
        }
    }
    Ok(())
}

/// Returns the error for `key` with the most similar known key. The last part counts most, because a key is often
/// written in the wrong table; the whole dotted name breaks ties.
fn unknown(key: String, place: String, known: &[String]) -> Error {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |other: &String| {
        strsim::jaro_winkler(&last(&key), &last(other)) + 0.2 * strsim::normalized_levenshtein(&key, other)
    };
    let nearest = (known.iter())
        .filter(|_| key.len() < 100) // too long for a misspelling, and the cost of a comparison grows with the key
        .map(|other| (likeness(other), other))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.8)
        .map(|(_, other)| other.clone());
    Error::UnknownKey { key, place, nearest }
}

/// Merges `over` into `under` table by table; lists are replaced as a whole.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Table(under), Value::Table(over)) => {
            for (key, value) in over {
                match under.get_mut(&key) {
                    Some(old) => merge(old, value),
                    None => drop(under.insert(key, value)),
                }
            }
        }
        (under, over) => *under = over,
    }
}

/// Applies one `key=value` to `all` and returns the key.
fn apply(all: &mut Value, set: &str) -> Result<String> {
    let place = format!("--set {set}");
    let refuse = |message: &str| Error::Syntax { place: place.clone(), message: message.to_owned() };
    let (key, text) = set
        .split_once('=')
        .ok_or_else(|| refuse("expected key=value, for example search.global_batch=256"))?;
    let (key, text) = (key.trim(), text.trim());
    let key = match key.split_once('.') {
        Some((OLD_SECTION, rest)) => join(NEW_SECTION, rest),
        _ => key.to_owned(),
    };
    let value = match toml::from_str::<Table>(&format!("value = {text}")) {
        Ok(mut table) if table.len() == 1 => table.remove("value"),
        _ => None,
    };
    let known = keys(all, true);
    let target = key.split('.').try_fold(&mut *all, |at, part| match at {
        Value::Table(table) => table.get_mut(part),
        Value::Array(items) => items.get_mut(part.parse::<usize>().ok()?.checked_sub(1)?),
        _ => None,
    });
    match target {
        None => Err(unknown(key, place, &known)),
        Some(Value::Table(_)) => Err(refuse("this key is a table; set its keys one by one")),
        Some(target) => {
            *target = value.unwrap_or_else(|| Value::String(text.to_owned()));
            Ok(key)
        }
    }
}
