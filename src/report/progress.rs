//! Progress of a run: a bar on a terminal, otherwise a plain line every few steps.

use super::human_time;
use crate::process::console;
use crate::process::messages::print_stdout;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// State of a run after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    /// Stage, from 1.
    pub stage: u64,
    /// Number of stages in the run.
    pub num_stages: u64,
    /// Epoch of the run, from 1.
    pub epoch: u64,
    /// Number of epochs in the run.
    pub num_epochs: u64,
    /// Steps done, this one included.
    pub step: u64,
    /// Mean cross entropy.
    pub loss: f64,
    /// Top-1 accuracy, in 0..1.
    pub top1: f64,
    /// Images per second on all ranks.
    pub images_per_s: f64,
}

/// Progress display of a run. Rank 0 only.
///
/// `DRNAS_PROGRESS=bar` or `lines` overrides the detection of a terminal: under mpirun, stderr is never one, so
/// `launch/env.sh` sets the variable according to the terminal of mpirun.
pub struct Progress {
    bar: Option<ProgressBar>,
    num_steps: u64,
    log_every: u64,
    pace: Pace,
}

impl Progress {
    /// Starts after `step` of `num_steps` steps; plain lines are printed every `log_every` steps.
    pub fn start(step: u64, num_steps: u64, log_every: u64) -> Progress {
        let wish = std::env::var("DRNAS_PROGRESS").ok();
        let shown = match wish.as_deref() {
            Some("bar") => true,
            Some("lines") => false,
            _ => io::stderr().is_terminal(),
        };
        let bar = shown.then(|| {
            let target = match io::stderr().is_terminal() {
                true => ProgressDrawTarget::stderr_with_hz(10),
                false => ProgressDrawTarget::term_like_with_hz(Box::new(Forwarded::new()), 5),
            };
            let bar = ProgressBar::with_draw_target(Some(num_steps), target);
            let style = ProgressStyle::with_template("{bar:16} {wide_msg}").expect("a valid template");
            bar.set_style(style);
            bar.set_position(step);
            bar
        });
        Progress { bar, num_steps, log_every, pace: Pace::default() }
    }

    /// Updates the bar or prints a line.
    pub fn step(&mut self, status: &Status) {
        let left = self.pace.left(status, self.num_steps, Instant::now());
        let line = line(status, self.num_steps, left);
        let due = status.step.is_multiple_of(self.log_every) || status.step == self.num_steps;
        match &self.bar {
            Some(bar) => {
                if due {
                    console::log(&line);
                }
                bar.set_message(line);
                bar.set_position(status.step);
            }
            None if due => print_stdout(&line),
            None => {}
        }
    }

    /// Prints a separate line (the end of an epoch, a new stage, a warning) that the bar does not overwrite.
    pub fn note(&self, line: &str) {
        match &self.bar {
            // Through the stream of the bar: mpirun interleaves two streams arbitrarily.
            Some(bar) => {
                console::log(line);
                bar.println(line);
            }
            None => print_stdout(line),
        }
    }

    /// Removes the bar before the final report or an error.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `stage 1/2  epoch 3/10  step 120/500  loss 2.104  top-1 24.1 %  85.3 images/s  1 min 20 s left`
fn line(status: &Status, num_steps: u64, left: Option<Duration>) -> String {
    let left = left.map_or(String::new(), |left| format!("  {} left", human_time(left)));
    format!(
        "stage {}/{}  epoch {}/{}  step {}/{num_steps}  loss {:.3}  top-1 {:.1} %  {:.1} images/s{left}",
        status.stage,
        status.num_stages,
        status.epoch,
        status.num_epochs,
        status.step,
        status.loss,
        100.0 * status.top1,
        status.images_per_s,
    )
}

/// Smoothed time per step, seconds; restarted when the stage changes.
#[derive(Default)]
struct Pace {
    stage: u64,
    last: Option<(u64, Instant)>,
    step_s: Option<f64>,
}

impl Pace {
    fn left(&mut self, status: &Status, num_steps: u64, now: Instant) -> Option<Duration> {
        if self.stage != status.stage {
            *self = Pace { stage: status.stage, ..Pace::default() };
        }
        if let Some((step, then)) = self.last
            && status.step > step
        {
            let steps = (status.step - step) as f64;
            let step_s = (now - then).as_secs_f64() / steps;
            let old_part = 0.95f64.powf(steps);
            self.step_s = Some(self.step_s.map_or(step_s, |old| old_part * old + (1.0 - old_part) * step_s));
        }
        self.last = Some((status.step, now));
        let steps = num_steps.saturating_sub(status.step) as f64;
        self.step_s.and_then(|step_s| Duration::try_from_secs_f64(step_s * steps).ok())
    }
}

/// A terminal at the other end of mpirun's pipe; assumes that it understands ANSI escape codes.
#[derive(Debug)]
struct Forwarded {
    columns: u16,
}

impl Forwarded {
    fn new() -> Self {
        let columns = std::env::var("COLUMNS").ok();
        let columns = columns.and_then(|text| text.parse().ok());
        let columns = columns.filter(|columns| *columns > 0).unwrap_or(80);
        Forwarded { columns }
    }

    fn send(&self, text: &str) -> io::Result<()> {
        io::stderr().write_all(text.as_bytes())
    }

    fn shift(&self, by: usize, code: char) -> io::Result<()> {
        match by {
            0 => Ok(()),
            by => self.send(&format!("\x1b[{by}{code}")),
        }
    }
}

impl TermLike for Forwarded {
    fn width(&self) -> u16 {
        self.columns
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.shift(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.shift(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.shift(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.shift(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.send(&format!("{s}\n"))
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.send(s)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.send("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(stage: u64, step: u64) -> Status {
        Status {
            stage,
            num_stages: 2,
            epoch: 3,
            num_epochs: 10,
            step,
            loss: 2.1036,
            top1: 0.2414,
            images_per_s: 85.31,
        }
    }

    #[test]
    fn a_line_shows_the_state_of_the_run() {
        assert_eq!(
            line(&status(1, 120), 500, Some(Duration::from_secs(80))),
            "stage 1/2  epoch 3/10  step 120/500  loss 2.104  top-1 24.1 %  85.3 images/s  1 min 20 s left"
        );
        assert!(line(&status(1, 1), 500, None).ends_with("85.3 images/s"));
    }

    #[test]
    fn time_left_follows_the_stage() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        assert_eq!(pace.left(&status(1, 1), 11, at(0)), None);
        let left = pace.left(&status(1, 2), 11, at(2)).unwrap();
        assert_eq!(left.as_secs(), 18);
        // The next stage is slower: the time of the first one no longer counts.
        assert_eq!(pace.left(&status(2, 3), 11, at(4)), None);
        let left = pace.left(&status(2, 4), 11, at(14)).unwrap();
        assert_eq!(left.as_secs(), 70);
    }
}
