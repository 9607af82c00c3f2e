//! Writes checkpoints on a separate thread, so that training waits only for a copy in memory.

use super::{Checkpoint, write};
use crate::error::Result;
use crate::files;
use crate::train::error::Error as TrainError;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Writes the checkpoints of one run, one at a time. Used by one rank.
pub struct Writer {
    dir: PathBuf,
    keep: usize,
    pending: Option<(u64, JoinHandle<Result<()>>)>,
}

impl Writer {
    /// Creates a writer to `dir` that keeps the `keep` newest checkpoints.
    pub fn new(dir: PathBuf, keep: usize) -> Writer {
        Writer { dir, keep, pending: None }
    }

    /// Starts to write the state after `step` steps; `first` runs before it on the same thread. The tensors are copied
    /// before this returns, so training may change them. Waits for the previous checkpoint if necessary. Errors: those
    /// of the previous checkpoint.
    pub fn start(
        &mut self,
        step: u64,
        state: Checkpoint,
        first: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.wait()?;
        let copies = state.tensors.into_iter().map(|(name, tensor)| Ok((name, copy_of(&tensor)?)));
        let state = Checkpoint { tensors: copies.collect::<Result<_>>()?, meta: state.meta };
        let (dir, keep) = (self.dir.clone(), self.keep);
        let work = move || {
            first()?;
            write(&dir, step, &state, keep)
        };
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(work)
            .map_err(files::io("start the thread that writes to", &self.dir))?;
        self.pending = Some((step, thread));
        Ok(())
    }

    /// Returns the step of a checkpoint that was completed since the last call, `None` if there is none or it is still
    /// being written. Does not wait. Errors: it could not be written; earlier checkpoints are unchanged.
    pub fn poll(&mut self) -> Result<Option<u64>> {
        match &self.pending {
            Some((_, thread)) if thread.is_finished() => self.wait(),
            _ => Ok(None),
        }
    }

    /// Waits for the checkpoint being written, if any, and returns its step.
    pub fn wait(&mut self) -> Result<Option<u64>> {
        let Some((step, thread)) = self.pending.take() else { return Ok(None) };
        match thread.join() {
            Ok(outcome) => outcome.map(|()| Some(step)),
            Err(_) => {
                let panicked = std::io::Error::other("the writer thread panicked, see above");
                let source = Box::new(files::io("write", &self.dir)(panicked));
                Err(TrainError::CheckpointNotWritten { step, source }.into())
            }
        }
    }
}

fn copy_of(tensor: &tch::Tensor) -> Result<tch::Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor.f_detach()?)?;
    Ok(copy)
}

impl Drop for Writer {
    /// Waits until the checkpoint being written is complete.
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;
    use crate::train::checkpoint::{list, read};
    use serde_json::json;
    use std::path::Path;
    use std::sync::mpsc;
    use tch::Tensor;

    fn state(weights: &Tensor) -> Checkpoint {
        Checkpoint { tensors: vec![("w".into(), weights.shallow_clone())], meta: json!(null) }
    }

    fn first_weight(dir: &Path, step: u64) -> f64 {
        read(dir, step).unwrap().tensor("w").unwrap().double_value(&[0])
    }

    #[test]
    fn the_state_at_the_start_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().into(), 2);
        let weights = Tensor::from_slice(&[1.0, 2.0]);
        let (go, going) = mpsc::channel();
        let first = move || {
            going.recv().unwrap();
            Ok(())
        };
        writer.start(1, state(&weights), first).unwrap();
        // Training continues before the thread has started to write.
        let _ = weights.shallow_clone().g_add_scalar_(5.0);
        assert_eq!(writer.poll().unwrap(), None);
        assert!(list(dir.path()).unwrap().is_empty());
        go.send(()).unwrap();
        assert_eq!(writer.wait().unwrap(), Some(1));
        assert_eq!(writer.poll().unwrap(), None);
        assert_eq!(first_weight(dir.path(), 1), 1.0);
        // One at a time: the second waits for the first, drop waits for the second.
        writer.start(2, state(&weights), || Ok(())).unwrap();
        writer.start(3, state(&weights), || Ok(())).unwrap();
        drop(writer);
        assert_eq!(list(dir.path()).unwrap(), [2, 3]);
        assert_eq!([2, 3].map(|step| first_weight(dir.path(), step)), [6.0, 6.0]);
    }

    #[test]
    fn an_error_is_returned_by_the_next_poll() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let weights = Tensor::from_slice(&[1.0]);
        let mut writer = Writer::new(file, 1);
        writer.start(7, state(&weights), || Ok(())).unwrap();
        let error = loop {
            match writer.poll() {
                Ok(None) => std::thread::yield_now(),
                Ok(Some(_)) => panic!("wrote to a file as a folder"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("step 7 was not written"), "{error}");
        // It is returned once, and the next checkpoint is tried.
        assert_eq!(writer.poll().unwrap(), None);
        writer.start(8, state(&weights), || Ok(())).unwrap();
        assert!(writer.start(9, state(&weights), || Ok(())).unwrap_err().to_string().contains("step 8"));
        writer.start(10, state(&weights), || panic!("a planned panic")).unwrap();
        let error = writer.wait().unwrap_err().to_string();
        assert!(error.contains("step 10 was not written") && error.contains("panicked"), "{error}");
        // If `first` fails, there is no checkpoint.
        let mut writer = Writer::new(dir.path().join("good"), 1);
        writer
            .start(11, state(&weights), || Err(data::Error::LoaderSpec("a planned failure".into()).into()))
            .unwrap();
        assert!(writer.wait().unwrap_err().to_string().contains("a planned failure"));
        assert!(list(&dir.path().join("good")).unwrap().is_empty());
    }
}
