//! `split`: disjoint, class-balanced subsets of a data set, written as lists that can be published and packed.

use super::source::Source;
use crate::cli::SplitArgs;
use crate::data::error::{Error, Result};
use crate::files;
use crate::process::console;
use crate::random::{Purpose, stream};
use rand::seq::SliceRandom;
use std::fmt::Write;

/// A subset of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Name of the list.
    pub name: String,
    /// Fraction of each class.
    pub fraction: f64,
    /// Indices in the `Source`, ascending.
    pub images: Vec<usize>,
}

/// Runs `drnas-dist split`.
pub fn run(args: &SplitArgs) -> Result<()> {
    let source = Source::open(&args.root, &args.source, None)?;
    let subsets = split(&source, &args.fractions, &args.names, args.seed)?;
    std::fs::create_dir_all(&args.out).map_err(files::io("create folder", &args.out))?;
    for subset in &subsets {
        let path = args.out.join(format!("{}.txt", subset.name));
        files::write_new(&path, text(&source, subset, args.seed).as_bytes(), args.overwrite)?;
        console::print_diagnostic(&format!(
            "{}: {} of {} images, {} classes",
            path.display(),
            subset.images.len(),
            source.len(),
            source.classes().len()
        ));
    }
    Ok(())
}

/// Draws the subsets. Each class is shuffled by the seed and its name and cut into pieces of `fraction` times its size,
/// rounded; the draw of a class does not depend on the other classes.
/// Errors: fractions outside (0, 1] or with a sum above 1, an empty or duplicate name, a class without images in a
/// subset.
pub fn split(source: &Source, fractions: &[f64], names: &[String], seed: u64) -> Result<Vec<Subset>> {
    check(fractions, names)?;
    let mut subsets: Vec<Subset> = names
        .iter()
        .zip(fractions)
        .map(|(name, fraction)| Subset { name: name.clone(), fraction: *fraction, images: Vec::new() })
        .collect();
    let mut images_of = vec![Vec::new(); source.classes().len()];
    (0..source.len()).for_each(|image| images_of[source.label(image) as usize].push(image));
    for (class, mut images) in source.classes().iter().zip(images_of) {
        let num_images = images.len();
        if num_images == 0 {
            return Err(Error::EmptyClass { class: class.clone(), root: source.root().into() });
        }
        let place = xxhash_rust::xxh3::xxh3_64(class.as_bytes());
        images.shuffle(&mut stream(seed, Purpose::Split, &[place]));
        let mut rest = images.as_slice();
        for subset in &mut subsets {
            // Rounding up twice may exceed the number of images by one.
            let count = ((subset.fraction * num_images as f64).round() as usize).min(rest.len());
            if count == 0 {
                return Err(Error::SplitEmpty {
                    name: subset.name.clone(),
                    class: class.clone(),
                    images: num_images,
                    fraction: subset.fraction,
                });
            }
            let (taken, left) = rest.split_at(count);
            subset.images.extend(taken);
            rest = left;
        }
    }
    subsets.iter_mut().for_each(|subset| subset.images.sort_unstable());
    Ok(subsets)
}

fn check(fractions: &[f64], names: &[String]) -> Result<()> {
    let wrong = |what: String| Err(Error::SplitArgs(what));
    if fractions.len() != names.len() {
        return wrong(format!(
            "expected one name per fraction, found {} and {}",
            names.len(),
            fractions.len()
        ));
    }
    if let Some(bad) = fractions.iter().find(|f| !(**f > 0.0 && **f <= 1.0)) {
        return wrong(format!("expected fractions above 0 and at most 1, found {bad}"));
    }
    if fractions.iter().sum::<f64>() > 1.0 + 1e-9 {
        return wrong(format!("expected fractions with a sum of at most 1, found {fractions:?}"));
    }
    for (at, name) in names.iter().enumerate() {
        if name.is_empty() || name.contains(['/', '\\']) || names[..at].contains(name) {
            return wrong(format!("name \"{name}\" is empty, a duplicate, or contains a slash"));
        }
    }
    Ok(())
}

/// Formats the list: comment lines, then `class/file`, sorted.
pub fn text(source: &Source, subset: &Subset, seed: u64) -> String {
    let mut text = format!(
        "# drnas-dist split: {} of {} images, {} classes\n# fraction {} of each class, seed {seed}\n",
        subset.images.len(),
        source.len(),
        source.classes().len(),
        subset.fraction
    );
    for image in &subset.images {
        let _ = writeln!(text, "{}", source.name(*image));
    }
    text
}
