//! Downloaded files: CIFAR's binary files, pickles of downsampled ImageNet, split files and tables of NAS-Bench-201.

use crate::{Target, fuzz};
use drnas_dist::Result;
use drnas_dist::cli::{SourceArgs, SourceFormat};
use drnas_dist::data::source::Source;
use drnas_dist::nb201::{Table, import};
use drnas_dist::space::nb201::Architecture;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Opens a data set and reads every image of it.
fn read_all(root: &Path, args: &SourceArgs) -> Result<()> {
    let source = Source::open(root, args, None)?;
    let mut bytes = Vec::new();
    for index in 0..source.len() {
        assert!((source.label(index) as usize) < source.classes().len());
        source.name(index);
        source.read(index, &mut bytes)?;
    }
    Ok(())
}

fn test_part(format: SourceFormat) -> SourceArgs {
    SourceArgs { format: Some(format), test: true, ..SourceArgs::default() }
}

/// A folder with 2 test images of CIFAR-10.
fn cifar() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let names: String = (0..10).map(|class| format!("class{class}\n")).collect();
    fs::write(dir.path().join("batches.meta.txt"), names).unwrap();
    let record = |label: u8| std::iter::once(label).chain((0..3072).map(|at| at as u8));
    let bytes: Vec<u8> = record(3).chain(record(9)).collect();
    fs::write(dir.path().join("test_batch.bin"), bytes).unwrap();
    dir
}

#[test]
fn cifar_records() {
    let dir = cifar();
    for (name, file) in [("cifar-batch", "test_batch.bin"), ("cifar-classes", "batches.meta.txt")] {
        let path = dir.path().join(file);
        let good = fs::read(&path).unwrap();
        let seeds = vec![good.clone()];
        let target = Target { name, seeds, words: "/ .. # class1", spare_bytes: 1 << 20, every: 1 };
        fuzz(&target, |file| {
            fs::write(&path, file).unwrap();
            read_all(dir.path(), &test_part(SourceFormat::Cifar10))
        });
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn split_file() {
    let dir = cifar();
    let path = dir.path().join("split.json");
    let seeds = vec![br#"{"train": ["int", ["0", "1"]], "valid": ["int", ["1"]]}"#.to_vec()];
    let words = r#"[ { " "train": "int", "0", null , -1"#;
    let (split_file, part) = (Some(path.clone()), Some("train".into()));
    let args = SourceArgs { split_file, part, ..test_part(SourceFormat::Cifar10) };
    let target = Target { name: "split-file", seeds, words, spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |file| {
        fs::write(&path, file).unwrap();
        read_all(dir.path(), &args)
    });
}

#[test]
fn pickle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("val_data");
    // {"data": a numpy array of 2 x 768 bytes, "labels": [1, 2]}, written by hand in protocol 2.
    let mut seed = b"\x80\x02}q\x00(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R\
        (K\x01K\x02M\x00\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89T\x00\x06\x00\x00"
        .to_vec();
    seed.extend((0..1536).map(|at| at as u8));
    seed.extend(b"tbU\x06labels](K\x01K\x02eu.");
    let words = "( } ] ) N K\x01 U\x04data q\0 h\0 t l e u s a b R . cx J\x7f\x7f\x7f\x7f";
    let target = Target { name: "pickle", seeds: vec![seed], words, spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |file| {
        fs::write(&path, file).unwrap();
        read_all(dir.path(), &test_part(SourceFormat::Imagenet16))
    });
}

/// A short pickle that refers to two long strings many times.
#[test]
fn repetitive_pickle_takes_little_memory() {
    let mut bytes = b"\x80\x04".to_vec();
    for place in 0..2 {
        bytes.extend([b'X', 0x50, 0xc3, 0, 0]); // 50,000 bytes of text
        bytes.extend([b'x'; 50_000]);
        bytes.extend([b'q', place]);
    }
    bytes.extend(b"h\0h\x01\x93".repeat(10_000));
    bytes.push(b'.');
    let (read, held) = crate::memory::measured(|| drnas_dist::data::pickle::read(&bytes).is_ok());
    assert!(!read && held < 16 << 20, "{held} bytes held");
}

#[test]
fn huge_range_takes_little_memory() {
    let dir = cifar();
    let args = SourceArgs { range: Some(0..1 << 26), ..test_part(SourceFormat::Cifar10) };
    let (read, held) = crate::memory::measured(|| read_all(dir.path(), &args));
    assert!(read.unwrap_err().to_string().contains("image 2 is not in 0..2"));
    assert!(held < 1 << 20, "{held} bytes held");
}

/// The source of a table with one column.
fn csv() -> String {
    let mut text = String::from("arch,c10_test_200\n");
    for (number, architecture) in Architecture::all().enumerate() {
        let _ = writeln!(text, "{architecture},{}.{}", number % 100, number % 7);
    }
    text
}

/// Opens a table and reads everything from it.
fn read_table(path: &Path) -> Result<()> {
    let table = Table::open(path)?;
    for column in 0..table.columns().len() {
        table.values(column);
        table.optimum(column);
        table.median(column);
    }
    for code in [0, 1, 15_624] {
        let row = table.row(&Architecture::from_code(code).unwrap());
        (0..table.columns().len()).for_each(|column| drop(row.text(column)));
    }
    Ok(())
}

/// Corrects magic number, version, size and checksums of a mutated table.
fn reseal(table: &mut [u8]) {
    if table.len() < 64 {
        return;
    }
    table[..8].copy_from_slice(b"DRNAS201");
    table[8..12].copy_from_slice(&1u32.to_le_bytes());
    let (file_bytes, body) = (table.len() as u64, xxh3_64(&table[64..]));
    table[32..40].copy_from_slice(&file_bytes.to_le_bytes());
    table[40..48].copy_from_slice(&body.to_le_bytes());
    let head = xxh3_64(&table[..56]);
    table[56..64].copy_from_slice(&head.to_le_bytes());
}

#[test]
fn nb201_table() {
    let dir = tempfile::tempdir().unwrap();
    let (source, path) = (dir.path().join("source.csv"), dir.path().join("table"));
    fs::write(&source, csv()).unwrap();
    import(&source, &path, &[], true).unwrap();
    let good = fs::read(&path).unwrap();
    // Most of the file is values, so the header in front of them is also mutated separately.
    for (name, num_mutated, sealed, every) in [
        ("nb201-table", good.len(), false, 4),
        ("nb201-table-resealed", good.len(), true, 4),
        ("nb201-table-front", 192, true, 1),
    ] {
        let (front, rest) = good.split_at(num_mutated);
        let target = Target { name, seeds: vec![front.to_vec()], words: "", spare_bytes: 1 << 20, every };
        fuzz(&target, |file| {
            let mut file = [file, rest].concat();
            if sealed {
                reseal(&mut file);
            }
            fs::write(&path, &file).unwrap();
            let result = read_table(&path);
            assert!(sealed || result.is_err() || file == good, "the checksum is not verified");
            result
        });
    }
}

#[test]
fn nb201_import() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("table"));
    let words = r#", " "" | ~0| arch, index, nan 1e999 {"columns":[] -"#;
    let seeds = vec![csv().into_bytes()];
    let target = Target { name: "nb201-import", seeds, words, spare_bytes: 8 << 20, every: 30 };
    fuzz(&target, |file| {
        fs::write(&source, file).unwrap();
        import(&source, &out, &[], true)?;
        read_table(&out)
    });
}
