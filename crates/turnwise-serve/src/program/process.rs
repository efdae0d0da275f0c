//! The process of an agent program.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

/// A running program, in a process group of its own; killed when dropped, with everything that it started.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Option<Pid>,
    said: LastOutput,
    readers: [AbortOnDropHandle<()>; 2],
}

/// The last bytes that a program wrote.
#[derive(Clone, Debug, Default)]
struct LastOutput(Arc<Mutex<VecDeque<u8>>>);

/// The bytes that are kept of what a program writes.
const KEPT: usize = 2_000;

/// How long the last output of a program is waited for after its end.
const PATIENCE: Duration = Duration::from_millis(500);

impl Process {
    /// Starts a command line by the shell.
    pub(super) fn start(command: &str, variables: &[(String, String)]) -> std::io::Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let said = LastOutput::default();
        let out = child.stdout.take().expect("the program's output is a pipe");
        let errors = child.stderr.take().expect("the program's errors are a pipe");
        let readers = [said.listen(out), said.listen(errors)];
        Ok(Self { child, group, said, readers })
    }

    /// Waits for the end of the program.
    pub(super) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Returns what the program wrote before its end: its last line, and then those before it.
    pub(super) async fn last_words(&mut self) -> String {
        // What the program started may hold its pipes open for longer.
        let read = async {
            for reader in &mut self.readers {
                let _ = reader.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, read).await;
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = said.iter().copied().collect();
        let said = String::from_utf8_lossy(&bytes);
        let said = said.trim();
        // A traceback ends with what happened, and a screen may have room for one line.
        match said.rsplit_once('\n') {
            Some((before, last)) => format!("{last}\nbefore it:\n{before}"),
            None => said.to_owned(),
        }
    }
}

impl LastOutput {
    /// Keeps the last of what comes out of a pipe, which must not fill up.
    fn listen(&self, mut pipe: impl AsyncRead + Send + Unpin + 'static) -> AbortOnDropHandle<()> {
        let said = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut bytes = [0; 1_024];
            while let Ok(n) = pipe.read(&mut bytes).await
                && n > 0
            {
                let mut kept = said.0.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&bytes[..n]);
                let excess = kept.len().saturating_sub(KEPT);
                kept.drain(..excess);
            }
        }))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // What the program started may outlive it. A group without members is no error worth a word.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
