//! Comparison: the largest error of one kind of tensor, and whether it is allowed.

use crate::net::params::Named;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::fmt;
use tch::{Device, Kind, Tensor};

/// The largest error of one kind of tensor.
#[derive(Debug, Clone)]
pub struct Finding {
    /// "logits", "gradients" ...
    pub kind: &'static str,
    /// Tensors compared.
    pub count: usize,
    /// Largest relative error, and the tensor that has it.
    pub worst: (f64, String),
    /// What is allowed.
    pub tolerance: f64,
}

impl Finding {
    /// Whether the error is within the tolerance (a NaN is not).
    pub fn passes(&self) -> bool {
        self.worst.0 <= self.tolerance && self.count > 0
    }
}

impl Serialize for Finding {
    /// `error` is null when it is not finite.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Finding", 6)?;
        out.serialize_field("kind", self.kind)?;
        out.serialize_field("count", &self.count)?;
        out.serialize_field("error", &self.worst.0)?;
        out.serialize_field("tensor", &self.worst.1)?;
        out.serialize_field("allowed", &self.tolerance)?;
        out.serialize_field("pass", &self.passes())?;
        out.end()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let Finding { kind, count, worst: (error, name), tolerance } = self;
        let verdict = if self.passes() { "ok" } else { "FAILED" };
        write!(out, "{verdict:6} {kind:24} {count:5} compared, largest relative error {error:9.2e}")?;
        write!(out, " (allowed {tolerance:.0e}) {name}")
    }
}

/// Collects errors of one kind.
pub struct Comparison {
    finding: Finding,
    /// Denominators are at least this.
    floor: f64,
    /// Whether tensors of many names are compared as one.
    together: bool,
}

impl Comparison {
    /// Nothing compared. `tolerance`: the relative error allowed; `floor`: denominators are at least this.
    pub fn new(kind: &'static str, tolerance: f64, floor: f64) -> Comparison {
        let finding = Finding { kind, count: 0, worst: (0.0, String::new()), tolerance };
        Comparison { finding, floor, together: false }
    }

    /// The same, with all tensors compared as one if `together`.
    pub fn together(self, together: bool) -> Comparison {
        Comparison { together, ..self }
    }

    /// |ours - theirs| / |theirs|, Frobenius norms in float64.
    pub fn add(&mut self, name: &str, ours: &Tensor, theirs: &Tensor) {
        let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
        let ours = &ours.to_device(Device::Cpu);
        let error = if ours.size() == theirs.size() {
            let (distance, size) =
                (norm(&(ours.to_kind(Kind::Double) - theirs)), norm(theirs).max(self.floor));
            if distance == 0.0 { 0.0 } else { distance / size }
        } else {
            f64::INFINITY
        };
        self.note(name, error);
    }

    /// Takes in an error found elsewhere.
    pub fn note(&mut self, name: &str, error: f64) {
        self.finding.count += 1;
        // NaN has to win.
        if error.is_nan() || error > self.finding.worst.0 {
            self.finding.worst = (error, name.to_string());
        }
    }

    /// Takes in what has to be equal.
    pub fn equal(&mut self, name: &str, equal: bool) {
        self.note(name, if equal { 0.0 } else { f64::INFINITY });
    }

    /// Compares all of `ours` with their namesakes, but for the names that `skip` picks.
    pub fn all(mut self, ours: &Named, theirs: &Named, skip: impl Fn(&str) -> bool) -> Finding {
        if self.together {
            return self.whole(ours, theirs, skip);
        }
        for (name, ours) in ours.iter().filter(|(name, _)| !skip(name)) {
            match theirs.get(name) {
                Some(theirs) => self.add(name, ours, theirs),
                None => self.note(&format!("{name} (missing)"), f64::INFINITY),
            }
        }
        self.finding
    }

    /// The same, all tensors as one.
    fn whole(mut self, ours: &Named, theirs: &Named, skip: impl Fn(&str) -> bool) -> Finding {
        let (mut distance, mut size, mut count) = (0.0, 0.0, 0);
        let square = |x: &Tensor| x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
        for (name, ours) in ours.iter().filter(|(name, _)| !skip(name)) {
            count += 1;
            match theirs.get(name).filter(|theirs| theirs.size() == ours.size()) {
                Some(theirs) => {
                    let ours = ours.to_device(Device::Cpu).to_kind(Kind::Double);
                    distance += square(&(ours - theirs));
                    size += square(theirs);
                }
                None => distance = f64::INFINITY,
            }
        }
        self.note("as one", (distance / size).sqrt());
        self.finding.count = count;
        self.finding
    }

    /// What was found.
    pub fn finding(self) -> Finding {
        self.finding
    }

    /// Compares one tensor, and that is all.
    pub fn one(mut self, ours: &Tensor, theirs: &Tensor) -> Finding {
        self.add("", ours, theirs);
        self.finding
    }
}
