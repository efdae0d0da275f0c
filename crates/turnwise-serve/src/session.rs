//! Sessions: an episode and the program that plays it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use turnwise_environment::Message;

use crate::answer::{ChatAnswer, TurnReport, own_id};
use crate::call::Event;
use crate::key::SessionKey;

/// The open sessions of a gateway; a handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionTable(Arc<TableState>);

#[derive(Debug, Default)]
struct TableState {
    open: Mutex<HashMap<SessionKey, Arc<Session>>>,
    /// Reports of turns that no answer has taken yet, by request.
    reports: Mutex<HashMap<u64, TurnReport>>,
    requests: AtomicU64,
}

/// A session, as its clients see it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) events: mpsc::Sender<Event>,
    /// What was answered: the message as the program knows it, and as the trajectory has it.
    answered: Mutex<Vec<(Message, Message)>>,
}

/// The most requests of a session that wait for each other.
const WAITING: usize = 64;

impl SessionTable {
    /// Opens a session, unless there are `most` already. What its clients send arrives at the receiver.
    pub(crate) fn open(&self, most: usize) -> Option<OpenSession> {
        let mut open = locked(&self.0.open);
        if open.len() >= most {
            return None;
        }
        let (events, received) = mpsc::channel(WAITING);
        let session = Arc::new(Session { events, answered: Mutex::default() });
        let key = SessionKey::random();
        open.insert(key.clone(), session.clone());
        Some(OpenSession { key, session, events: received, sessions: self.clone() })
    }

    pub(crate) fn get(&self, key: &SessionKey) -> Option<Arc<Session>> {
        locked(&self.0.open).get(key).cloned()
    }

    /// Returns the number of a new request.
    pub(crate) fn new_request(&self) -> u64 {
        self.0.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes what is known of a request's turn.
    pub(crate) fn report(&self, request: u64, turn: TurnReport) {
        locked(&self.0.reports).insert(request, turn);
    }

    pub(crate) fn take_report(&self, request: u64) -> Option<TurnReport> {
        locked(&self.0.reports).remove(&request)
    }
}

impl Session {
    /// Notes an answer, so that it is recognised when the program sends it again.
    pub(crate) fn note(&self, answer: &ChatAnswer, held: Message) {
        locked(&self.answered).push((answer.message(), held));
    }

    /// Puts the trajectory's messages in the places of those that the program knows.
    pub(crate) fn recognise(&self, messages: Vec<Message>) -> Vec<Message> {
        let answered = locked(&self.answered);
        let each = messages.into_iter().map(|message| {
            let known = answered.iter().rev().find(|(known, _)| is_same(known, &message));
            known.map_or_else(|| with_own_ids(message), |(_, held)| held.clone())
        });
        each.collect()
    }
}

/// Compares an answer with a message that came back: programs drop thinking, and white space around a text.
fn is_same(known: &Message, said: &Message) -> bool {
    known.role == said.role
        && known.content.trim() == said.content.trim()
        && known.tool_calls == said.tool_calls
}

fn with_own_ids(mut message: Message) -> Message {
    for call in &mut message.tool_calls {
        call.id = own_id(&call.id).to_owned();
    }
    message.tool_call_id = message.tool_call_id.map(|id| own_id(&id).to_owned());
    message
}

/// A session, as its episode sees it; closed when dropped.
#[derive(Debug)]
pub(crate) struct OpenSession {
    pub(crate) key: SessionKey,
    pub(crate) session: Arc<Session>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) sessions: SessionTable,
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        locked(&self.sessions.0.open).remove(&self.key);
    }
}

/// Locks what is valid between any two statements.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnwise_environment::{Action, Role, ToolCall};

    use super::*;

    #[test]
    fn an_answer_that_comes_back_is_the_message_that_was_sampled() {
        let opened = SessionTable::default().open(1).unwrap();
        let call = ToolCall {
            id: "call_0".to_owned(),
            name: "add".to_owned(),
            arguments: json!({"a": 1}),
        };
        let action = Action {
            reasoning: Some("hm".to_owned()),
            ..Action::call(&call.name, call.arguments.clone())
        };
        let answer = ChatAnswer::new(&action, TurnReport::default(), &[], 3);
        opened.session.note(&answer, action.to_message());
        let theirs = Message::tool(answer.calls[0].id.clone(), "2");
        let said = vec![Message::user("1 + 1"), answer.message(), theirs];
        let known = opened.session.recognise(said);
        assert_eq!(known[1], action.to_message());
        assert_eq!(known[2].tool_call_id.as_deref(), Some("call_0"));
        // What the model never said stays what it is.
        let other = Message::new(Role::Assistant, "something else");
        assert_eq!(opened.session.recognise(vec![other.clone()]), [other]);
    }

    #[test]
    fn a_closed_session_is_not_found_and_makes_room() {
        let sessions = SessionTable::default();
        let opened = sessions.open(1).unwrap();
        assert!(sessions.open(1).is_none());
        let key = opened.key.clone();
        assert!(sessions.get(&key).is_some());
        drop(opened);
        assert!(sessions.get(&key).is_none());
        assert!(sessions.open(1).is_some());
    }
}
