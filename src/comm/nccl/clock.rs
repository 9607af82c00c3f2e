//! Traces GPU time: when reductions run, and when the gradients of a step are complete.

use crate::comm::communicator::{Reduction, Trace};
use crate::comm::error::Result;
use crate::cuda::{Context, Event, Stream};

/// Timed events of a trace.
pub(super) struct Clock {
    context: Context,
    origin: Event,
    /// Description, start and step of each reduction.
    begins: Vec<(String, Event, usize)>,
    ends: Vec<Event>,
    /// Ends of backward passes.
    steps: Vec<Event>,
}

/// A point in time.
pub(super) enum Mark<'a> {
    /// A reduction starts on the communication stream.
    Begin(&'a str),
    /// The reduction ends.
    End,
    /// All gradients of a step have been computed on libtorch's stream.
    Step,
}

impl Clock {
    /// Starts the trace at the current end of the stream `torch`.
    pub(super) fn start(context: Context, torch: &Stream) -> Result<Clock> {
        let origin = Event::timed(context)?;
        origin.record(torch)?;
        Ok(Clock { context, origin, begins: Vec::new(), ends: Vec::new(), steps: Vec::new() })
    }

    /// Records the current end of one of the two streams.
    pub(super) fn record(&mut self, mark: Mark, communication: &Stream, torch: &Stream) -> Result<()> {
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

    /// Returns all times; the host waits for events that have not completed.
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
