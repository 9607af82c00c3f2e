//! Reads pickled batches of the downsampled ImageNet without executing the pickle.
//!
//! A pickle is a program for a stack machine that can call any Python function. This interpreter only records names and
//! calls, and then extracts one array of bytes and one list of integers.

use super::decode::Fault;
use std::ops::Range;

/// The contents of a batch: `{"data": uint8 [rows, columns], "labels": [int; rows]}`; other entries are ignored.
#[derive(Debug, PartialEq, Eq)]
pub struct PickledBatch {
    /// Byte range of the array in the file, row-major.
    pub data: Range<usize>,
    /// Number of images.
    pub rows: usize,
    /// Bytes per image.
    pub columns: usize,
    /// One label per image.
    pub labels: Vec<i64>,
}

/// Reads pickles written by Python 3 with protocols 3 to 5 or by Python 2 with protocol 2, and by numpy before or since
/// 2.0. (Python 3 writes bytes as text in protocol 2, which is not supported.)
/// Errors: not such a pickle, truncated, or without the expected entries.
pub fn read(bytes: &[u8]) -> Result<PickledBatch, Fault> {
    let mut machine =
        Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
    let top = machine.run()?;
    machine.batch(top)
}

/// Index in `Machine::values`: lists are filled after other values refer to them.
type Id = usize;

#[derive(Clone, Debug)]
enum Value {
    /// None, floats and other values that are not needed.
    Other,
    Bool(bool),
    Int(i64),
    /// Bytes or text: a range of the file.
    Bytes(Range<usize>),
    /// Tuples and lists.
    List(Vec<Id>),
    /// Keys and values alternating.
    Dict(Vec<Id>),
    /// "module name".
    Global(String),
    /// A call that was recorded instead of made, and the state that would have been set on the object.
    Call {
        function: Id,
        arguments: Id,
        state: Option<Id>,
    },
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Stack heights at the marks.
    marks: Vec<usize>,
    memo: Vec<Id>,
}

const CORRUPT: &str = "the pickle is truncated or corrupt";

impl Machine<'_> {
    /// Runs to the end and returns the final value.
    fn run(&mut self) -> Result<Id, Fault> {
        if self.bytes.first() != Some(&0x80) {
            return Err("not a pickle of protocol 2 to 5 (the first byte is not 0x80)".into());
        }
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                code => self.step(code)?,
            }
        }
    }

    fn step(&mut self, code: u8) -> Result<(), Fault> {
        match code {
            // The protocol number, and the length of a frame, which is only a read-ahead hint.
            0x80 | 0x95 => {
                self.take(if code == 0x80 { 1 } else { 8 })?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::Other),
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.push(Value::Int(number.into()));
            }
            0x8A => self.long()?,
            b'C' | b'U' | 0x8C => self.string(1)?,
            b'B' | b'T' | b'X' => self.string(4)?,
            0x8D | 0x8E | 0x96 => self.string(8)?,
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' | b')' => self.push(Value::List(Vec::new())),
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let first = self.stack.len().checked_sub(count).ok_or(CORRUPT)?;
                let items = self.stack.split_off(first);
                self.push(Value::List(items));
            }
            b't' | b'l' => {
                let items = self.since_mark()?;
                self.push(Value::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend(vec![key, value])?;
            }
            b'e' | b'u' => {
                let items = self.since_mark()?;
                self.extend(items)?;
            }
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            0x94 => {
                let top = *self.stack.last().ok_or(CORRUPT)?;
                self.memo.push(top);
            }
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module} {name}")));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                // Longer names are not needed, and repeating them could use unlimited memory.
                let text = |id| self.text(id).filter(|text| text.len() < 100).ok_or(CORRUPT);
                let global = format!("{} {}", text(module)?, text(name)?);
                self.push(Value::Global(global));
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push(Value::Call { function, arguments, state: None });
            }
            b'b' => {
                let given = self.pop()?;
                let object = *self.stack.last().ok_or(CORRUPT)?;
                match &mut self.values[object] {
                    Value::Call { state, .. } => *state = Some(given),
                    _ => return Err(CORRUPT.into()),
                }
            }
            code => {
                return Err(format!("unsupported pickle opcode 0x{code:02x} at byte {}", self.at - 1));
            }
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<Range<usize>, Fault> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or(CORRUPT)?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.bytes[self.take(1)?.start])
    }

    /// Reads an unsigned little-endian number.
    fn number(&mut self, num_bytes: usize) -> Result<u64, Fault> {
        let range = self.take(num_bytes)?;
        Ok(self.bytes[range].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn integer(&mut self, num_bytes: usize) -> Result<(), Fault> {
        let number = self.number(num_bytes)?;
        self.push(Value::Int(number as i64));
        Ok(())
    }

    /// Reads a two's complement number of any length; one longer than 8 bytes is not needed.
    fn long(&mut self) -> Result<(), Fault> {
        let num_bytes = usize::from(self.byte()?);
        if num_bytes == 0 || num_bytes > 8 {
            self.take(num_bytes)?;
            self.push(if num_bytes == 0 { Value::Int(0) } else { Value::Other });
            return Ok(());
        }
        let unused = 64 - 8 * num_bytes;
        let number = ((self.number(num_bytes)? << unused) as i64) >> unused;
        self.push(Value::Int(number));
        Ok(())
    }

    fn string(&mut self, length_bytes: usize) -> Result<(), Fault> {
        let length = usize::try_from(self.number(length_bytes)?).map_err(|_| CORRUPT)?;
        let range = self.take(length)?;
        self.push(Value::Bytes(range));
        Ok(())
    }

    fn line(&mut self) -> Result<String, Fault> {
        let length = self.bytes[self.at..].iter().position(|byte| *byte == b'\n').ok_or(CORRUPT)?;
        let range = self.take(length + 1)?;
        Ok(String::from_utf8_lossy(&self.bytes[range.start..range.end - 1]).into_owned())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        Ok(self.stack.pop().ok_or(CORRUPT)?)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or(CORRUPT)?;
        Ok(self.stack.split_off(mark))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let target = *self.stack.last().ok_or(CORRUPT)?;
        match &mut self.values[target] {
            Value::List(list) | Value::Dict(list) => list.extend(items),
            _ => return Err(CORRUPT.into()),
        }
        Ok(())
    }

    fn put(&mut self, num_bytes: usize) -> Result<(), Fault> {
        let (place, top) = (self.number(num_bytes)? as usize, *self.stack.last().ok_or(CORRUPT)?);
        // Python numbers memo entries consecutively; a gap could use unlimited memory.
        match place.cmp(&self.memo.len()) {
            std::cmp::Ordering::Less => self.memo[place] = top,
            std::cmp::Ordering::Equal => self.memo.push(top),
            std::cmp::Ordering::Greater => return Err(CORRUPT.into()),
        }
        Ok(())
    }

    fn get(&mut self, num_bytes: usize) -> Result<(), Fault> {
        let place = self.number(num_bytes)? as usize;
        self.stack.push(*self.memo.get(place).ok_or(CORRUPT)?);
        Ok(())
    }

    fn text(&self, id: Id) -> Option<&str> {
        match &self.values[id] {
            Value::Bytes(range) => std::str::from_utf8(&self.bytes[range.clone()]).ok(),
            _ => None,
        }
    }

    fn list(&self, id: Id) -> Option<&[Id]> {
        match &self.values[id] {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    fn int(&self, id: Id) -> Option<i64> {
        match self.values[id] {
            Value::Int(number) => Some(number),
            _ => None,
        }
    }

    fn batch(&self, top: Id) -> Result<PickledBatch, Fault> {
        let Value::Dict(entries) = &self.values[top] else {
            return Err("the pickle is not a dictionary".into());
        };
        let entry = |name: &str| {
            let found = entries.chunks_exact(2).find(|pair| self.text(pair[0]) == Some(name));
            found.map(|pair| pair[1]).ok_or_else(|| format!("the pickle has no entry \"{name}\""))
        };
        let (data, rows, columns) = self
            .bytes_array(entry("data")?)
            .ok_or("\"data\" is not a two-dimensional, row-major array of uint8 pickled by numpy")?;
        let labels: Option<Vec<i64>> = self
            .list(entry("labels")?)
            .and_then(|labels| labels.iter().map(|label| self.int(*label)).collect());
        let labels = labels.ok_or("\"labels\" is not a list of integers")?;
        if labels.len() != rows {
            return Err(format!(
                "expected one label per image, found {rows} images and {} labels",
                labels.len()
            ));
        }
        Ok(PickledBatch { data, rows, columns, labels })
    }

    /// Returns byte range, rows and columns of an array pickled by numpy: in protocol 5 the call `_frombuffer(bytes,
    /// dtype, shape, order)`, otherwise `_reconstruct(...)` with the state (version, shape, dtype, is_fortran, bytes).
    fn bytes_array(&self, id: Id) -> Option<(Range<usize>, usize, usize)> {
        let (function, arguments, state) = self.call(id)?;
        let (data, dtype, shape, row_by_row) = match function {
            "numpy.core.numeric _frombuffer" | "numpy._core.numeric _frombuffer" => {
                let &[data, dtype, shape, order] = self.list(arguments)? else {
                    return None;
                };
                (data, dtype, shape, self.text(order) == Some("C"))
            }
            "numpy.core.multiarray _reconstruct" | "numpy._core.multiarray _reconstruct" => {
                let &[_, shape, dtype, is_fortran, data] = self.list(state?)? else {
                    return None;
                };
                (data, dtype, shape, matches!(self.values[is_fortran], Value::Bool(false) | Value::Int(0)))
            }
            _ => return None,
        };
        let ("numpy dtype", arguments, _) = self.call(dtype)? else {
            return None;
        };
        let kind = self.text(*self.list(arguments)?.first()?)?;
        let &[rows, columns] = self.list(shape)? else {
            return None;
        };
        let [rows, columns] = [rows, columns].map(|side| usize::try_from(self.int(side)?).ok());
        let (rows, columns) = (rows?, columns?);
        let Value::Bytes(data) = self.values[data].clone() else {
            return None;
        };
        let good = ["u1", "|u1", "uint8"].contains(&kind)
            && row_by_row
            && rows.checked_mul(columns) == Some(data.len());
        good.then_some((data, rows, columns))
    }

    /// Returns function name, arguments and state of a call.
    fn call(&self, id: Id) -> Option<(&str, Id, Option<Id>)> {
        let Value::Call { function, arguments, state } = self.values[id] else {
            return None;
        };
        match &self.values[function] {
            Value::Global(name) => Some((name, arguments, state)),
            _ => None,
        }
    }
}
