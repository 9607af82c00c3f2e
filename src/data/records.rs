//! Fixed-size images concatenated in a few files: CIFAR's binary layout and the downsampled ImageNet.
//!
//! The order of the files is the canonical order, to which published split lists refer. Images are returned as binary
//! PPM, a short header followed by the pixels.

use super::pickle;
use super::stamps::stamp;
use crate::cli::{SourceArgs, SourceFormat};
use crate::data::error::{Error, Result};
use crate::files;
use memmap2::Mmap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// The images of a training or test set, all or a selection, in canonical order.
pub struct Records {
    /// The folder of the files.
    pub root: PathBuf,
    /// "train" or "test".
    part: &'static str,
    /// Class names; the label is the index.
    pub classes: Vec<String>,
    files: Vec<Mmap>,
    /// Stamp of each file.
    stamps: Vec<u64>,
    /// Image width and height.
    px: usize,
    images: Vec<Image>,
}

struct Image {
    /// Canonical number.
    number: u32,
    label: u32,
    file: u32,
    /// Offset of the pixels: red, green, blue plane, each row by row.
    offset: usize,
}

impl Records {
    /// Maps the files of `format` in `root`. Only the labels of pickled batches are copied into memory.
    /// Errors: a file is missing, truncated or corrupt; a label without a class.
    pub fn open(root: &Path, format: SourceFormat, args: &SourceArgs) -> Result<Records> {
        let part = if args.test { "test" } else { "train" };
        let mut records = Records {
            root: root.into(),
            part,
            classes: Vec::new(),
            files: Vec::new(),
            stamps: Vec::new(),
            px: 32,
            images: Vec::new(),
        };
        let numbered =
            |name: &str, count: u32| (1..=count).map(|n| name.replace('#', &n.to_string())).collect();
        let train_or_test =
            |train: Vec<String>, test: &str| if args.test { vec![test.to_owned()] } else { train };
        match format {
            SourceFormat::Cifar10 => {
                records.classes = class_names(&root.join("batches.meta.txt"))?;
                let names = train_or_test(numbered("data_batch_#.bin", 5), "test_batch.bin");
                names.iter().try_for_each(|name| records.add_binary(name, 1))?;
            }
            SourceFormat::Cifar100 => {
                records.classes = class_names(&root.join("fine_label_names.txt"))?;
                let names = train_or_test(vec!["train.bin".into()], "test.bin");
                names.iter().try_for_each(|name| records.add_binary(name, 2))?;
            }
            SourceFormat::Imagenet16 => {
                records.px = 16;
                let names = train_or_test(numbered("train_data_batch_#", 10), "val_data");
                names.iter().try_for_each(|name| records.add_pickled(name))?;
                let num_classes = records.images.iter().map(|image| image.label + 1).max().unwrap_or(0);
                records.classes = (1..=num_classes).map(|label| format!("{label:04}")).collect();
            }
            SourceFormat::Folder => unreachable!("a folder of images has no records"),
        }
        if let Some(num_classes) = args.classes {
            let found = records.classes.len();
            if num_classes as usize > found {
                return Err(Error::SourceArgs(format!(
                    "--classes {num_classes}: the data set has {found} classes"
                )));
            }
            records.classes.truncate(num_classes as usize);
            records.images.retain(|image| image.label < num_classes);
        }
        for (number, image) in records.images.iter_mut().enumerate() {
            image.number = number as u32;
        }
        if let Some(image) = records.images.iter().find(|image| image.label as usize >= records.classes.len())
        {
            let what = format!(
                "image {} has label {}, but there are {} classes",
                image.number,
                image.label,
                records.classes.len()
            );
            return Err(Error::Source { path: root.into(), what });
        }
        Ok(records)
    }

    /// Adds records of `num_labels` label bytes, of which the last is used, and the pixels.
    fn add_binary(&mut self, name: &str, num_labels: usize) -> Result<()> {
        let (file, map) = self.map(name)?;
        let record_bytes = num_labels + 3 * self.px * self.px;
        if map.is_empty() || map.len() % record_bytes != 0 {
            let what = format!(
                "{} bytes is not a multiple of the record size {record_bytes}; truncated?",
                map.len()
            );
            return Err(Error::Source { path: self.root.join(name), what });
        }
        for (record, bytes) in map.chunks_exact(record_bytes).enumerate() {
            let offset = record * record_bytes + num_labels;
            self.images.push(Image { number: 0, label: bytes[num_labels - 1].into(), file, offset });
        }
        self.files.push(map);
        Ok(())
    }

    /// Adds a pickled batch; its labels start at 1.
    fn add_pickled(&mut self, name: &str) -> Result<()> {
        let (file, map) = self.map(name)?;
        let wrong = |what| Error::Source { path: self.root.join(name), what };
        let batch = pickle::read(&map).map_err(wrong)?;
        let image_bytes = 3 * self.px * self.px;
        if batch.columns != image_bytes {
            return Err(wrong(format!("expected images of {image_bytes} bytes, found {}", batch.columns)));
        }
        for (row, label) in batch.labels.into_iter().enumerate() {
            let from_0 = label.checked_sub(1).and_then(|label| u16::try_from(label).ok());
            let Some(from_0) = from_0 else {
                return Err(wrong(format!("image {row} has label {label}, expected 1 or more")));
            };
            let offset = batch.data.start + row * image_bytes;
            self.images.push(Image { number: 0, label: from_0.into(), file, offset });
        }
        self.files.push(map);
        Ok(())
    }

    fn map(&mut self, name: &str) -> Result<(u32, Mmap)> {
        let path = self.root.join(name);
        let file = File::open(&path).map_err(files::io("open", &path))?;
        let about = file.metadata().map_err(files::io("read", &path))?;
        self.stamps.push(stamp(&about));
        // SAFETY: the map is read-only and private to this process; a data set must not be modified while it is packed.
        // If a file is truncated meanwhile, SIGBUS kills `pack`, which leaves no complete set.
        let map = unsafe { Mmap::map(&file) }.map_err(files::io("map", &path))?;
        Ok((self.files.len() as u32, map))
    }

    /// Keeps only the images with these canonical numbers. Errors: a number out of range, or a duplicate.
    pub fn keep(&mut self, mut numbers: Vec<u32>) -> Result<(), String> {
        numbers.sort_unstable();
        if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("image {} is listed twice", pair[0]));
        }
        if let Some(last) = numbers.last().filter(|last| **last as usize >= self.images.len()) {
            return Err(format!("image {last} is not in 0..{}", self.images.len()));
        }
        // Canonical numbers are indices until images are removed, which happens once.
        let mut kept = numbers.into_iter().peekable();
        self.images.retain(|image| kept.next_if_eq(&image.number).is_some());
        Ok(())
    }

    /// Returns the canonical number of the image with this name in a list.
    pub fn number_of(&self, name: &str) -> Option<u32> {
        let digits = name.strip_suffix(".ppm")?.rsplit_once('-')?.1;
        let number: u32 = digits.parse().ok()?;
        let image = self.images.get(number as usize)?;
        (self.name_of(image) == name).then_some(number)
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Returns the label of image `index`.
    pub fn label(&self, index: usize) -> u32 {
        self.images[index].label
    }

    /// Returns `class/part-number.ppm` of image `index`.
    pub fn name(&self, index: usize) -> String {
        self.name_of(&self.images[index])
    }

    fn name_of(&self, image: &Image) -> String {
        format!("{}/{}-{:06}.ppm", self.classes[image.label as usize], self.part, image.number)
    }

    /// Reads image `index` as a binary PPM.
    pub fn read(&self, index: usize, bytes: &mut Vec<u8>) {
        let Image { file, offset, .. } = self.images[index];
        let (px, size) = (self.px, self.px * self.px);
        let planar = &self.files[file as usize][offset..offset + 3 * size];
        bytes.clear();
        write!(bytes, "P6\n{px} {px}\n255\n").expect("writing to memory does not fail");
        bytes.extend((0..size).flat_map(|at| [planar[at], planar[size + at], planar[2 * size + at]]));
    }

    /// Returns the stamp of the file of image `index`.
    pub fn stamp(&self, index: usize) -> u64 {
        self.stamps[self.images[index].file as usize]
    }

    /// Hashes classes, names and labels (not the pixels).
    pub fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        for class in &self.classes {
            hash.update(class.as_bytes());
            hash.update(b"\n");
        }
        hash.update(self.part.as_bytes());
        for image in &self.images {
            hash.update(&image.number.to_le_bytes());
            hash.update(&image.label.to_le_bytes());
        }
        hash.digest()
    }
}

/// Reads class names, one per line.
fn class_names(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(files::io("read the class names", path))?;
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect();
    match names.iter().find(|name| name.contains('/')) {
        Some(name) => {
            Err(Error::Source { path: path.into(), what: format!("class name \"{name}\" contains a slash") })
        }
        None => Ok(names),
    }
}
