//! Comparison of tensors by their largest relative error.

use crate::net::params::Named;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::fmt;
use tch::{Device, Kind, Tensor};

/// Largest error of one kind of tensor.
#[derive(Debug, Clone)]
pub struct Finding {
    /// "logits", "gradients" ...
    pub kind: &'static str,
    /// Number of tensors compared.
    pub count: usize,
    /// Largest relative error and the name of its tensor.
    pub worst: (f64, String),
    /// Largest error that passes.
    pub tolerance: f64,
}

impl Finding {
    /// Returns whether the error is within the tolerance (NaN is not) and at least one tensor was compared.
    pub fn passes(&self) -> bool {
        self.worst.0 <= self.tolerance && self.count > 0
    }
}

impl Serialize for Finding {
    /// `error` is written as null if it is not finite.
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
        write!(out, " (tolerance {tolerance:.0e}) {name}")
    }
}

/// Collects the errors of one kind of tensor.
pub struct Comparison {
    finding: Finding,
    /// Lower bound of denominators.
    floor: f64,
    /// Whether all tensors are compared as one.
    together: bool,
}

impl Comparison {
    /// Creates an empty comparison. `tolerance`: largest relative error that passes; `floor`: lower bound of
    /// denominators.
    pub fn new(kind: &'static str, tolerance: f64, floor: f64) -> Comparison {
        let finding = Finding { kind, count: 0, worst: (0.0, String::new()), tolerance };
        Comparison { finding, floor, together: false }
    }

    /// Compares all tensors as one if `together`.
    pub fn together(self, together: bool) -> Comparison {
        Comparison { together, ..self }
    }

    /// Adds the error |ours - theirs| / |theirs|: Frobenius norms in float64; infinite if the shapes differ.
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
        self.record(name, error);
    }

    /// Records an error computed elsewhere.
    pub fn record(&mut self, name: &str, error: f64) {
        self.finding.count += 1;
        // A NaN counts as the largest error.
        if error.is_nan() || error > self.finding.worst.0 {
            self.finding.worst = (error, name.to_string());
        }
    }

    /// Records an exact comparison.
    pub fn equal(&mut self, name: &str, equal: bool) {
        self.record(name, if equal { 0.0 } else { f64::INFINITY });
    }

    /// Compares all tensors of `ours`, except names that match `skip`, with those of the same name.
    pub fn all(mut self, ours: &Named, theirs: &Named, skip: impl Fn(&str) -> bool) -> Finding {
        if self.together {
            return self.whole(ours, theirs, skip);
        }
        for (name, ours) in ours.iter().filter(|(name, _)| !skip(name)) {
            match theirs.get(name) {
                Some(theirs) => self.add(name, ours, theirs),
                None => self.record(&format!("{name} (missing)"), f64::INFINITY),
            }
        }
        self.finding
    }

    /// Compares all tensors as one, see [`Comparison::all`].
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
        self.record("all as one tensor", (distance / size).sqrt());
        self.finding.count = count;
        self.finding
    }

    /// Returns the finding.
    pub fn finding(self) -> Finding {
        self.finding
    }

    /// Compares a single tensor.
    pub fn one(mut self, ours: &Tensor, theirs: &Tensor) -> Finding {
        self.add("", ours, theirs);
        self.finding
    }
}
