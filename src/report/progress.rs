//! Progress of a run: on a terminal, a line that is updated in place; otherwise, a plain line every `log_every` steps.

use super::human_time;
use crate::process::console;
use crate::process::messages::print_stdout;
use crate::process::terminal::{BACK, CLEAR, Terminal};
use std::cell::RefCell;
use std::io::Write;
use std::time::{Duration, Instant};

/// State of a run after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    /// Stage, from 1.
    pub stage: u64,
    /// Number of stages of the run.
    pub num_stages: u64,
    /// Epoch of the run, from 1.
    pub epoch: u64,
    /// Number of epochs of the run.
    pub num_epochs: u64,
    /// Steps done, this one included.
    pub step: u64,
}

/// Means over the steps since the losses were last read back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMeans {
    /// Cross entropy.
    pub loss: f64,
    /// Top-1 accuracy, in 0..1.
    pub top1: f64,
    /// Images per second on all ranks.
    pub images_per_s: f64,
}

/// Progress display of a run. Rank 0 only.
pub struct Progress {
    /// The terminal of the updated line; `None`: plain lines are printed.
    terminal: Option<Terminal>,
    num_steps: u64,
    log_every: u64,
    pace: Pace,
    means: Option<StepMeans>,
    /// The line currently on the terminal; "" if there is none.
    drawn: RefCell<String>,
    redrawn: Option<Instant>,
}

/// Minimum interval between updates of the line.
const REDRAW: Duration = Duration::from_millis(100);

/// Width of the bar, in characters.
const BAR: usize = 16;

impl Progress {
    /// Starts the display of a run of `num_steps` steps; plain lines are printed every `log_every` steps.
    pub fn start(num_steps: u64, log_every: u64) -> Progress {
        Progress {
            terminal: Terminal::behind(libc::STDOUT_FILENO),
            num_steps,
            log_every,
            pace: Pace::default(),
            means: None,
            drawn: RefCell::default(),
            redrawn: None,
        }
    }

    /// On a terminal, updates the line after a step, at most every 100 ms.
    pub fn step(&mut self, status: &Status) {
        if self.terminal.is_some() {
            let left = self.pace.left(status, self.num_steps, Instant::now());
            if self.redrawn.is_none_or(|since| since.elapsed() >= REDRAW) {
                self.draw(status, &line(status, self.means, self.num_steps, left));
            }
        }
    }

    /// Shows new means on the terminal, or prints them as a plain line.
    pub fn update_means(&mut self, status: &Status, means: StepMeans) {
        self.means = Some(means);
        let left = self.pace.left(status, self.num_steps, Instant::now());
        let line = line(status, self.means, self.num_steps, left);
        let due = status.step.is_multiple_of(self.log_every) || status.step == self.num_steps;
        if self.terminal.is_some() {
            if due {
                console::log(&line);
            }
            self.draw(status, &line);
        } else if due {
            print_stdout(&line);
        }
    }

    fn draw(&mut self, status: &Status, line: &str) {
        if let Some(terminal) = &self.terminal {
            // Some terminals wrap a line that fills the whole width.
            let text = fitted(line, status.step as f64 / self.num_steps as f64, terminal.columns() - 1);
            send(&format!("{CLEAR}{text}{BACK}"));
            (self.drawn, self.redrawn) = (text.into(), Some(Instant::now()));
        }
    }

    /// Prints a separate line (end of an epoch, new stage) above the updated line.
    pub fn note(&self, line: &str) {
        match self.drawn.borrow().as_str() {
            "" => print_stdout(line),
            drawn => {
                console::log(line);
                send(&format!("{CLEAR}{line}\n{drawn}{BACK}"));
            }
        }
    }

    /// Removes the updated line, before the final report or an error.
    pub fn end(&self) {
        if !self.drawn.take().is_empty() {
            send(&format!("{CLEAR}{BACK}"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes to the terminal; errors are ignored.
fn send(lines: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

/// Returns a bar and `line` if both fit, otherwise `line`; truncated to `columns` characters.
fn fitted(line: &str, done: f64, columns: usize) -> String {
    let text = match line.chars().count() + BAR < columns {
        true => {
            let full = (done * BAR as f64).round().min(BAR as f64) as usize;
            format!("{}{} {line}", "█".repeat(full), "░".repeat(BAR - full))
        }
        false => line.to_owned(),
    };
    text.chars().take(columns).collect()
}

/// Formats a line: `stage 1/2  epoch 3/10  step 120/500  loss 2.104  top-1 24.1 %  85.3 images/s  1 min 20 s left`
fn line(status: &Status, means: Option<StepMeans>, num_steps: u64, left: Option<Duration>) -> String {
    let means = means.map_or(String::new(), |means| {
        let StepMeans { loss, top1, images_per_s } = means;
        format!("  loss {loss:.3}  top-1 {:.1} %  {images_per_s:.1} images/s", 100.0 * top1)
    });
    let left = left.map_or(String::new(), |left| format!("  {} left", human_time(left)));
    let Status { stage, num_stages, epoch, num_epochs, step } = status;
    format!("stage {stage}/{num_stages}  epoch {epoch}/{num_epochs}  step {step}/{num_steps}{means}{left}")
}

/// Exponentially smoothed time per step; reset when the stage changes.
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
        if self.last.is_none_or(|(step, _)| step < status.step)
            && let Some((step, then)) = self.last.replace((status.step, now))
        {
            let steps = (status.step - step) as f64;
            let step_s = (now - then).as_secs_f64() / steps;
            let old_part = 0.95f64.powf(steps);
            self.step_s = Some(self.step_s.map_or(step_s, |old| old_part * old + (1.0 - old_part) * step_s));
        }
        let steps = num_steps.saturating_sub(status.step) as f64;
        self.step_s.and_then(|step_s| Duration::try_from_secs_f64(step_s * steps).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(stage: u64, step: u64) -> Status {
        Status { stage, num_stages: 2, epoch: 3, num_epochs: 10, step }
    }

    #[test]
    fn a_line_shows_the_state_of_the_run() {
        let means = StepMeans { loss: 2.1036, top1: 0.2414, images_per_s: 85.31 };
        let whole = line(&status(1, 120), Some(means), 500, Some(Duration::from_secs(80)));
        assert_eq!(
            whole,
            "stage 1/2  epoch 3/10  step 120/500  loss 2.104  top-1 24.1 %  85.3 images/s  1 min 20 s left"
        );
        assert!(line(&status(1, 1), Some(means), 500, None).ends_with("85.3 images/s"));
        assert!(line(&status(1, 1), None, 500, None).ends_with("step 1/500"));
        assert_eq!(fitted(&whole, 0.25, 120), format!("{}{} {whole}", "█".repeat(4), "░".repeat(12)));
        assert_eq!(fitted(&whole, 0.25, 100), whole);
        assert_eq!(fitted(&whole, 0.25, 9), "stage 1/2");
    }

    #[test]
    fn time_left_follows_the_stage() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        assert_eq!(pace.left(&status(1, 1), 11, at(0)), None);
        let left = pace.left(&status(1, 2), 11, at(2)).unwrap();
        assert_eq!(left.as_secs(), 18);
        // No step since the last call.
        assert_eq!(pace.left(&status(1, 2), 11, at(3)).unwrap().as_secs(), 18);
        // A new stage is slower: the step time of the previous stage is ignored.
        assert_eq!(pace.left(&status(2, 3), 11, at(4)), None);
        let left = pace.left(&status(2, 4), 11, at(14)).unwrap();
        assert_eq!(left.as_secs(), 70);
    }
}
