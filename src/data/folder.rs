//! An ImageFolder (`ROOT/<class>/<image>`) as a compact list of names: all images, or those of a split list.

use crate::data::error::{Error, Result};
use crate::files;
use std::fs;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Names and labels of images, sorted by class and name. About 40 bytes per ImageNet image.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The root folder.
    pub root: PathBuf,
    /// Class folders, sorted; the label is the index, as in torchvision.
    pub classes: Vec<String>,
    /// All names concatenated, relative to their class folder.
    names: String,
    /// End of each name in `names`.
    ends: Vec<u32>,
    labels: Vec<u32>,
    /// Number of files ignored because their extension is not .jpg, .jpeg or .png.
    pub num_ignored: usize,
}

impl Folder {
    /// Lists `root`. Errors: no class folder, an unreadable folder, an invalid name.
    pub fn scan(root: &Path) -> Result<Folder> {
        let mut folder = Folder::empty(root)?;
        for label in 0..folder.classes.len() {
            let class_dir = root.join(&folder.classes[label]);
            let mut names = Vec::new();
            folder.num_ignored += walk(&class_dir, "", &mut names)?;
            names.sort_unstable();
            for name in &names {
                folder.push(label as u32, name)?;
            }
        }
        Ok(folder)
    }

    /// Reads the split list `list`: lines `class/file`, `#` starts a comment. The classes are still all class folders
    /// of `root`, so that labels agree between the lists of a split.
    /// Errors: a line without a class of `root`, a duplicate line.
    pub fn from_list(root: &Path, list: &Path) -> Result<Folder> {
        let mut folder = Folder::empty(root)?;
        let text = fs::read_to_string(list).map_err(files::io("read", list))?;
        let mut entries = Vec::new();
        for (number, line) in names_in(&text) {
            let wrong = |what| Error::ListLine { path: list.into(), line: number, what };
            let (class, name) = line
                .split_once('/')
                .filter(|(_, name)| !name.is_empty())
                .ok_or_else(|| wrong(format!("expected \"class/file\", found \"{line}\"")))?;
            // A downloaded list must not reach files outside ROOT.
            if name.split('/').any(|part| part == "..") {
                return Err(wrong(format!("\"{line}\" is outside the class folders")));
            }
            let label = folder
                .classes
                .binary_search_by(|known| known.as_str().cmp(class))
                .map_err(|_| wrong(format!("no class folder \"{class}\" in {}", root.display())))?;
            entries.push((label as u32, name, number));
        }
        entries.sort_unstable();
        for pair in entries.windows(2) {
            if (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1) {
                return Err(Error::ListLine {
                    path: list.into(),
                    line: pair[1].2,
                    what: format!("\"{}\" is a duplicate of line {}", pair[1].1, pair[0].2),
                });
            }
        }
        for (label, name, _) in entries {
            folder.push(label, name)?;
        }
        Ok(folder)
    }

    fn empty(root: &Path) -> Result<Folder> {
        let mut classes = Vec::new();
        for (name, path, is_dir) in entries(root)? {
            if is_dir && !name.starts_with('.') {
                classes.push(utf8(&name, &path)?);
            }
        }
        classes.sort_unstable();
        if classes.is_empty() {
            return Err(Error::NoClasses { root: root.into() });
        }
        Ok(Folder {
            root: root.into(),
            classes,
            names: String::new(),
            ends: Vec::new(),
            labels: Vec::new(),
            num_ignored: 0,
        })
    }

    fn push(&mut self, label: u32, name: &str) -> Result<()> {
        self.names.push_str(name);
        let end = u32::try_from(self.names.len())
            .map_err(|_| Error::FileName { path: self.root.join("more than 4 GiB of file names") })?;
        self.ends.push(end);
        self.labels.push(label);
        Ok(())
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the label of image `index`.
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// Returns `class/file` of image `index`.
    pub fn name(&self, index: usize) -> String {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let file = &self.names[start as usize..self.ends[index] as usize];
        format!("{}/{file}", self.classes[self.labels[index] as usize])
    }

    /// Hashes classes, names and labels (not the image contents).
    pub fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        for class in &self.classes {
            hash.update(class.as_bytes());
            hash.update(b"\n");
        }
        hash.update(self.names.as_bytes());
        hash.update(bytemuck::cast_slice(&self.ends));
        hash.update(bytemuck::cast_slice(&self.labels));
        hash.digest()
    }
}

/// Returns the names in the text of a split list with their line numbers, from 1; `#` starts a comment.
pub(super) fn names_in(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(text.lines().map(str::trim));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Lists `dir`: name, path, and whether the entry is a folder (following links).
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf, bool)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(files::io("list folder", dir))? {
        let entry = entry.map_err(files::io("list folder", dir))?;
        let kind = entry.file_type().map_err(files::io("read", entry.path()))?;
        let is_dir = if kind.is_symlink() {
            let target = fs::metadata(entry.path()).map_err(files::io("follow link", entry.path()))?;
            target.is_dir()
        } else {
            kind.is_dir()
        };
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path(), is_dir));
    }
    Ok(found)
}

fn utf8(name: &str, path: &Path) -> Result<String> {
    let real = path.file_name().and_then(|n| n.to_str());
    if real != Some(name) || name.contains(['\n', '\r']) || name.trim() != name || name.starts_with('#') {
        return Err(Error::FileName { path: path.into() });
    }
    Ok(name.into())
}

/// Adds the images below `dir` as `prefix` + name; returns the number of other files.
fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<usize> {
    let mut num_ignored = 0;
    for (name, path, is_dir) in entries(dir)? {
        if name.starts_with('.') {
            continue;
        }
        if is_dir {
            num_ignored += walk(&path, &format!("{prefix}{}/", utf8(&name, &path)?), names)?;
            continue;
        }
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        if matches!(ending.as_deref(), Some("jpg" | "jpeg" | "png")) {
            names.push(format!("{prefix}{}", utf8(&name, &path)?));
        } else {
            num_ignored += 1;
        }
    }
    Ok(num_ignored)
}
