//! A trace by the clock of the GPU: when reductions run, and when the gradients of a step are complete.

use crate::comm::communicator::{Reduction, Trace};
use crate::comm::error::Result;
use crate::cuda::{Context, Event, Stream};

/// Timed events of a trace.
pub(super) struct Clock {
    context: Context,
    origin: Event,
    /// What begins, and in which step.
    begins: Vec<(String, Event, usize)>,
    ends: Vec<Event>,
    /// Ends of backward passes.
    steps: Vec<Event>,
}

/// A point in time.
pub(super) enum Mark<'a> {
    /// The communication stream begins what is named.
    Begin(&'a str),
    /// It ends it.
    End,
    /// libtorch's stream has computed all gradients of a step.
    Step,
}

impl Clock {
    /// Begins now, by the work of `torch`.
    pub(super) fn start(context: Context, torch: &Stream) -> Result<Clock> {
        let origin = Event::timed(context)?;
        origin.record(torch)?;
        Ok(Clock { context, origin, begins: Vec::new(), ends: Vec::new(), steps: Vec::new() })
    }

    /// Times a point of one of the two streams.
    pub(super) fn note(&mut self, mark: Mark, communication: &Stream, torch: &Stream) -> Result<()> {
        let event = Event::timed(self.context)?;
        match mark {
            Mark::Begin(what) => {
                event.record(communication)?;
                self.begins.push((what.to_owned(), event, self.steps.len()));
            }
            Mark::End => {
                event.record(communication)?;
                self.ends.push(event);
            }
            Mark::Step => {
                event.record(torch)?;
                self.steps.push(event);
            }
        }
        Ok(())
    }

    /// The times of all points; the host waits for those that have not come.
    pub(super) fn read(self) -> Result<Trace> {
        for event in self.ends.iter().chain(&self.steps) {
            event.synchronize()?;
        }
        let at = |event: &Event| Ok(event.ms_since(&self.origin)?);
        let reductions = self.begins.iter().zip(&self.ends).map(|((what, begin, step), end)| {
            Ok(Reduction { what: what.clone(), from_ms: at(begin)?, to_ms: at(end)?, step: *step })
        });
        Ok(Trace {
            reductions: reductions.collect::<Result<_>>()?,
            backward_ends_ms: self.steps.iter().map(at).collect::<Result<_>>()?,
        })
    }
}
