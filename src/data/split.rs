//! `split`: disjoint, class-balanced subsets of a data set, written as lists that can be published and packed.

use super::source::Source;
use crate::cli::SplitArgs;
use crate::data::error::{Error, Result};
use crate::files;
use crate::process::console;
use crate::random::{Purpose, stream};
use rand::seq::SliceRandom;
use std::fmt::Write;

/// One list.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// As given.
    pub name: String,
    /// Part of each class.
    pub fraction: f64,
    /// Positions in the `Source`, rising.
    pub images: Vec<usize>,
}

/// Does `drnas-dist split`.
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

/// Draws the subsets. Each class is shuffled by (seed, its name) and cut into pieces of `fraction` times its size,
/// rounded; so other classes do not change a class's draw.
/// Errors: fractions that are not in 0..1 or exceed 1 together, a name that is empty or twice, a class that gets none.
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
            // Rounding up twice may ask for one more than there is.
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
        return wrong(format!("{} fractions for {} names; one each", fractions.len(), names.len()));
    }
    if let Some(bad) = fractions.iter().find(|f| !(**f > 0.0 && **f <= 1.0)) {
        return wrong(format!("fraction {bad}; more than 0 and at most 1 expected"));
    }
    if fractions.iter().sum::<f64>() > 1.0 + 1e-9 {
        return wrong(format!("fractions {fractions:?} are more than 1 together"));
    }
    for (at, name) in names.iter().enumerate() {
        if name.is_empty() || name.contains(['/', '\\']) || names[..at].contains(name) {
            return wrong(format!("name \"{name}\" is empty, twice, or holds a slash"));
        }
    }
    Ok(())
}

/// The list as a file: comment lines, then `class/file`, sorted.
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
