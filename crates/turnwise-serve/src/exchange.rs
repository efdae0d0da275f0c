//! What a session's client asks, and what it is answered.

use tokio::sync::oneshot;
use turnwise_environment::{Action, EnvironmentError, Observation, TurnRequest};

use crate::Gateway;
use crate::answer::ChatAnswer;
use crate::call::{Event, ModelCall};
use crate::session::OpenSession;

/// A session as the environment that is its client has it: requests become observations, and actions answers.
#[derive(Debug)]
pub(crate) struct Exchange {
    session: OpenSession,
    /// The request that the next action answers.
    asked: Option<Asked>,
    /// Answers that nobody waited for any more, by what was asked: a client that gave up asks again.
    unclaimed: Vec<(ModelCall, Vec<ChatAnswer>)>,
    n_turns: usize,
}

/// A request in the course of its answer.
#[derive(Debug)]
struct Asked {
    call: ModelCall,
    reply: oneshot::Sender<Vec<ChatAnswer>>,
    /// The number by which the agent reports the next turn.
    request: u64,
    answers: Vec<ChatAnswer>,
}

impl Exchange {
    /// Opens a session of a gateway.
    pub(crate) fn open(gateway: &Gateway) -> Result<Self, EnvironmentError> {
        let session = gateway
            .open()
            .ok_or_else(|| EnvironmentError::new("the gateway has no room for another session"))?;
        Ok(Self { session, asked: None, unclaimed: Vec::new(), n_turns: 0 })
    }

    /// Returns the URL of the session, without a slash at its end.
    pub(crate) fn url(&self, gateway: &Gateway) -> String {
        format!("{}/s/{}", gateway.url(), self.key())
    }

    /// Returns the session's key.
    pub(crate) fn key(&self) -> &str {
        self.session.key.as_str()
    }

    /// Returns the number of turns that were answered.
    pub(crate) fn n_turns(&self) -> usize {
        self.n_turns
    }

    /// Waits for the client.
    pub(crate) async fn event(&mut self) -> Event {
        self.session.events.recv().await.unwrap_or(Event::End)
    }

    /// Returns what the client sent and nobody has read yet.
    pub(crate) fn waiting_event(&mut self) -> Option<Event> {
        self.session.events.try_recv().ok()
    }

    /// Takes a request; returns nothing if its answer was sampled before.
    pub(crate) fn asks(
        &mut self,
        call: ModelCall,
        reply: oneshot::Sender<Vec<ChatAnswer>>,
    ) -> Option<Observation> {
        if let Some(place) = self.unclaimed.iter().position(|(before, _)| *before == call) {
            let (call, answers) = self.unclaimed.swap_remove(place);
            if let Err(answers) = reply.send(answers) {
                self.unclaimed.push((call, answers));
            }
            return None;
        }
        let request = self.session.sessions.new_request();
        self.asked = Some(Asked { call, reply, request, answers: Vec::new() });
        self.asked.as_ref().map(Asked::observation)
    }

    /// Takes the model's turn; returns an observation if the request wants another.
    pub(crate) fn answer(
        &mut self,
        action: &Action,
    ) -> Result<Option<Observation>, EnvironmentError> {
        let mut asked = self.asked.take().ok_or_else(|| {
            EnvironmentError::new("an action came for a client that asked for nothing")
        })?;
        let report = self.session.sessions.take_report(asked.request).unwrap_or_default();
        let answer = ChatAnswer::new(action, report, &asked.call.stop, asked.request);
        self.session.session.note(&answer, action.to_message());
        asked.answers.push(answer);
        self.n_turns += 1;
        if asked.answers.len() < asked.call.n {
            asked.request = self.session.sessions.new_request();
            return Ok(Some(self.asked.insert(asked).observation()));
        }
        if let Err(answers) = asked.reply.send(asked.answers) {
            self.unclaimed.push((asked.call, answers));
        }
        Ok(None)
    }
}

impl Asked {
    fn observation(&self) -> Observation {
        let ModelCall { messages, tools, max_tokens, stop, .. } = &self.call;
        let request = TurnRequest {
            number: self.request,
            tools: tools.clone(),
            max_tokens: *max_tokens,
            stop: stop.clone(),
        };
        Observation::whole(messages.clone(), request)
    }
}
