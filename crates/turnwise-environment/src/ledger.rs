use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{EnvironmentError, ErrorKind, TaskKey, ToolCall, ToolReply};

/// The stable name of one call: `g7.m2.a0.t3.c1` is the second call of the fourth turn of member 2 of group 7, at the
/// first attempt. Tools that talk to servers may pass it on as an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallKey(String);

impl CallKey {
    /// Returns the key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// One entry of a ledger: a call and its reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRecord {
    /// The turn of the episode, from 0.
    pub turn: usize,
    /// The call's place among those of its turn, from 0.
    pub call: usize,
    /// The tool's name and a hash of the arguments.
    pub request: String,
    /// The tool's reply; `None` while it is unknown.
    pub reply: Option<ToolReply>,
}

/// A ledger's answer about a call that is about to be made.
#[derive(Clone, Debug, PartialEq)]
pub enum Issued {
    /// The call is recorded; make it, then [`settle`](ToolLedger::settle) it.
    Call(CallKey),
    /// The call was made before, with this result; do not make it again.
    Recorded(ToolReply),
}

/// Storage for ledgers that outlives the process.
///
/// # Contract
///
/// `issued` and `settled` return once the entry is safe. `issued` comes before the call, `settled` after it.
pub trait LedgerStore: Send + Sync {
    /// Returns the request and the reply of a call, if it is known.
    fn find(&self, key: &CallKey) -> Option<(String, Option<ToolReply>)>;

    /// Records that a call is about to be made.
    ///
    /// # Errors
    /// When it cannot be written; the call is then not made.
    fn issued(&self, key: &CallKey, request: &str) -> Result<(), LedgerError>;

    /// Records the reply to a call.
    ///
    /// # Errors
    /// When it cannot be written.
    fn settled(&self, key: &CallKey, reply: &ToolReply) -> Result<(), LedgerError>;
}

/// A ledger that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A read or write failed.
    #[error("cannot keep a ledger of tool calls")]
    Io(#[from] std::io::Error),
    /// A line in the middle of the file is not an entry of a ledger.
    #[error("cannot read line {line} of a ledger of tool calls: {reason}")]
    Line {
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong with the line.
        reason: String,
    },
}

/// The tool calls of one attempt at an episode: each is recorded before it is made, and its result after it.
///
/// A call that has a result is never made again, even if the episode is suspended, restored or replayed. A call without
/// a result is in doubt: it is made again only if its tool is idempotent. Calls of idempotent tools are not written to
/// the [store](Self::keep_in), because making them again after a crash does no harm. The ledger is a handle; its clones
/// share the entries.
///
/// ```
/// use serde_json::json;
/// use turnwise_environment::{Issued, ToolCall, ToolLedger, ToolReply};
///
/// let ledger = ToolLedger::new(7, 2, 0);
/// let call = ToolCall { id: "call_0".into(), name: "pay".into(), arguments: json!({"sum": 3}) };
/// ledger.begin_turn(0);
/// let Issued::Call(key) = ledger.issue(&call, 0, false)? else { unreachable!("nothing was called") };
/// assert_eq!(key.as_str(), "g7.m2.a0.t0.c0");
/// let reply = ToolReply::Result("paid".into());
/// ledger.settle(0, &reply)?;
/// assert_eq!(ledger.issue(&call, 0, false)?, Issued::Recorded(reply));
/// # Ok::<(), turnwise_environment::EnvironmentError>(())
/// ```
#[derive(Clone)]
pub struct ToolLedger {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    scope: String,
    turn: usize,
    /// The number of places taken in this turn.
    n_calls: usize,
    entries: BTreeMap<(usize, usize), Entry>,
    store: Option<Arc<dyn LedgerStore>>,
    is_closed: bool,
}

struct Entry {
    request: String,
    reply: Option<ToolReply>,
    /// Whether the call is left out of the store.
    is_idempotent: bool,
}

impl ToolLedger {
    /// Creates an empty ledger for one attempt of one member of a group.
    #[must_use]
    pub fn new(group: u64, member: u32, attempt: u32) -> Self {
        let scope = format!("g{group}.m{member}.a{attempt}");
        let shared = Shared {
            scope,
            turn: 0,
            n_calls: 0,
            entries: BTreeMap::new(),
            store: None,
            is_closed: false,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Writes every further entry to `store` too, and looks there for calls that this ledger does not know.
    pub fn keep_in(&self, store: Arc<dyn LedgerStore>) {
        self.shared().store = Some(store);
    }

    /// Returns the store, if there is one.
    #[must_use]
    pub fn store(&self) -> Option<Arc<dyn LedgerStore>> {
        self.shared().store.clone()
    }

    /// Begins a turn, whose calls are numbered from 0.
    pub fn begin_turn(&self, turn: usize) {
        let mut shared = self.shared();
        shared.turn = turn;
        shared.n_calls = 0;
    }

    /// Takes the places of the next `n` calls of the turn and returns the first. A caller that runs calls concurrently
    /// takes their places beforehand, so that the places do not depend on the timing.
    #[must_use]
    pub fn take_places(&self, n: usize) -> usize {
        let mut shared = self.shared();
        let first = shared.n_calls;
        shared.n_calls += n;
        first
    }

    /// Records that the call in this place of the turn is about to be made, or returns its recorded reply.
    ///
    /// # Errors
    /// When the call was made before with an unknown result, or another call was made in its place, and the tool is not
    /// idempotent; when the entry cannot be written; when the attempt is over.
    pub fn issue(
        &self,
        call: &ToolCall,
        place: usize,
        is_idempotent: bool,
    ) -> Result<Issued, EnvironmentError> {
        let mut shared = self.shared();
        if shared.is_closed {
            let error = EnvironmentError::new("cannot call a tool for an attempt that is over");
            return Err(error.of_kind(ErrorKind::Protocol));
        }
        let key = shared.key(place);
        let request = request_of(call);
        match shared.known(place, &key) {
            Some((before, Some(reply))) if before == request => {
                shared.enter(place, request, Some(reply.clone()), is_idempotent);
                return Ok(Issued::Recorded(reply));
            }
            Some((before, reply)) if !is_idempotent => {
                return Err(in_doubt(&key, &before, &request, reply.is_some()));
            }
            Some(_) | None => {}
        }
        if let Some(store) = shared.store.as_ref().filter(|_| !is_idempotent) {
            store.issued(&key, &request).map_err(broken)?;
        }
        shared.enter(place, request, None, is_idempotent);
        Ok(Issued::Call(key))
    }

    /// Records the reply to the call in this place of the turn. After the attempt is over the reply is dropped.
    ///
    /// # Errors
    /// When the entry cannot be written.
    pub fn settle(&self, place: usize, reply: &ToolReply) -> Result<(), EnvironmentError> {
        let mut shared = self.shared();
        if shared.is_closed {
            return Ok(());
        }
        let (turn, key) = (shared.turn, shared.key(place));
        let store = shared.store.clone();
        let Some(entry) = shared.entries.get_mut(&(turn, place)) else { return Ok(()) };
        if let Some(store) = store.filter(|_| !entry.is_idempotent) {
            store.settled(&key, reply).map_err(broken)?;
        }
        entry.reply = Some(reply.clone());
        Ok(())
    }

    /// Ends the attempt: further calls are refused, and late replies are dropped.
    pub fn close(&self) {
        self.shared().is_closed = true;
    }

    /// Returns all entries, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<CallRecord> {
        let record = |(&(turn, call), entry): (&(usize, usize), &Entry)| CallRecord {
            turn,
            call,
            request: entry.request.clone(),
            reply: entry.reply.clone(),
        };
        self.shared().entries.iter().map(record).collect()
    }

    /// Replaces the entries by those that [`records`](Self::records) returned.
    pub fn restore(&self, records: Vec<CallRecord>) {
        let entry = |record: CallRecord| {
            let CallRecord { turn, call, request, reply } = record;
            ((turn, call), Entry { request, reply, is_idempotent: false })
        };
        self.shared().entries = records.into_iter().map(entry).collect();
    }

    /// Locks the entries. A poisoned lock still guards consistent entries: code that holds the lock does not panic
    /// between two changes.
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn key(&self, place: usize) -> CallKey {
        CallKey(format!("{}.t{}.c{place}", self.scope, self.turn))
    }

    fn known(&self, place: usize, key: &CallKey) -> Option<(String, Option<ToolReply>)> {
        let own = self.entries.get(&(self.turn, place));
        let stored = || self.store.as_ref()?.find(key);
        own.map(|entry| (entry.request.clone(), entry.reply.clone())).or_else(stored)
    }

    fn enter(
        &mut self,
        place: usize,
        request: String,
        reply: Option<ToolReply>,
        is_idempotent: bool,
    ) {
        let entry = Entry { request, reply, is_idempotent };
        self.entries.insert((self.turn, place), entry);
    }
}

/// Returns what identifies the content of a call. The call's id is only a name and not part of it.
fn request_of(call: &ToolCall) -> String {
    let name: String = call.name.chars().take(64).collect();
    format!("{name} {}", TaskKey::of(&format!("{}\n{}", call.name, call.arguments)))
}

fn in_doubt(key: &CallKey, before: &str, now: &str, is_settled: bool) -> EnvironmentError {
    let message = if is_settled {
        format!("cannot call `{now}` as {key}: in its place, `{before}` was called before")
    } else {
        format!(
            "call {key} (`{before}`) may have been made before a crash, and its tool is not idempotent"
        )
    };
    EnvironmentError::new(message).of_kind(ErrorKind::ToolInDoubt)
}

fn broken(error: LedgerError) -> EnvironmentError {
    EnvironmentError::new("cannot write down a tool call").caused_by(error)
}

impl fmt::Debug for ToolLedger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared();
        formatter
            .debug_struct("ToolLedger")
            .field("scope", &shared.scope)
            .field("turn", &shared.turn)
            .field("n_entries", &shared.entries.len())
            .finish_non_exhaustive()
    }
}
