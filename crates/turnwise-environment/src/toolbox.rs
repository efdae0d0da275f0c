use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    Action, CallAttempt, CallError, EnvironmentError, Issued, MalformedCall, Message, Services,
    Step, Tool, ToolCall, ToolLedger, ToolReply, ToolSpec,
};

/// The default time limit of a call.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The tools of an environment, which answers calls in the order in which they were made.
///
/// Once [connected](Self::connect) to an episode's services, the toolbox records each call before it is made and its
/// result after it. So each call is made at most once, even if the episode is suspended, restored or replayed.
///
/// # Example
///
/// An environment keeps a toolbox, tells the agent about its tools, passes it the episode's ledger, and answers an
/// action's calls:
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_environment::{
///     Action, Environment, EnvironmentError, Observation, Services, Step, ToolSpec, Toolbox,
///     async_trait,
/// };
/// # use serde_json::{Value, json};
/// # use turnwise_environment::{Tool, ToolReply};
/// #
/// # struct SendMail;
/// #
/// # #[async_trait]
/// # impl Tool for SendMail {
/// #     fn spec(&self) -> ToolSpec {
/// #         let parameters = json!({"type": "object", "properties": {}});
/// #         ToolSpec { name: "send_mail".to_owned(), description: String::new(), parameters }
/// #     }
/// #
/// #     async fn call(&self, _arguments: &Value) -> Result<ToolReply, EnvironmentError> {
/// #         Ok(ToolReply::Result("sent".to_owned()))
/// #     }
/// # }
///
/// struct Office {
///     tools: Toolbox,
/// }
///
/// #[async_trait]
/// impl Environment for Office {
///     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
///         Ok("Send the mail.".into())
///     }
///
///     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
///         Ok(self.tools.answer(&action).await?.into())
///     }
///
///     fn tools(&self) -> Vec<ToolSpec> {
///         self.tools.specs()
///     }
///
///     fn connect(&mut self, services: &Services) {
///         self.tools.connect(services);
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), EnvironmentError> {
/// let mut office = Office { tools: Toolbox::new(vec![Arc::new(SendMail)]) };
/// let step = office.step(Action::call("send_mail", json!({}))).await?;
/// assert!(matches!(step, Step::Next { observation, .. } if observation.messages[0].content == "sent"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Toolbox {
    tools: Vec<(ToolSpec, Arc<dyn Tool>)>,
    timeout: Duration,
    is_concurrent: bool,
    ledger: Option<ToolLedger>,
}

impl Default for Toolbox {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// The answers to the calls of one action.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolRound {
    /// One tool message for each attempted call, in call order.
    pub messages: Vec<Message>,
    /// The number of answers that are errors.
    pub faults: u32,
    /// The sum of the calls' rewards; `None` if no call was scored.
    pub reward: Option<f64>,
}

impl Toolbox {
    /// Creates a toolbox of these tools.
    ///
    /// # Panics
    /// When two tools have the same name.
    #[must_use]
    pub fn new(tools: Vec<Arc<dyn Tool>>) -> Self {
        let tools: Vec<_> = tools.into_iter().map(|tool| (tool.spec(), tool)).collect();
        let mut names: Vec<&str> = tools.iter().map(|(spec, _)| spec.name.as_str()).collect();
        names.sort_unstable();
        assert!(
            names.windows(2).all(|pair| pair[0] != pair[1]),
            "two tools of one toolbox share a name"
        );
        Self { tools, timeout: DEFAULT_TIMEOUT, is_concurrent: false, ledger: None }
    }

    /// Returns what the agent is told about the tools.
    #[must_use]
    pub fn specs(&self) -> Vec<ToolSpec> {
        self.tools.iter().map(|(spec, _)| spec.clone()).collect()
    }

    /// Sets the time limit of a call; by default 30 s.
    ///
    /// A call that takes longer is dropped and answered with an error: the agent asked for too much. Stay well below
    /// the deadline of the environment's step, which ends the episode instead. A tool that waits needs a tokio runtime
    /// with its clock enabled.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs the calls of one action concurrently. The answers stay in call order.
    #[must_use]
    pub fn concurrent(mut self) -> Self {
        self.is_concurrent = true;
        self
    }

    /// Uses the ledger of an episode from now on. An environment calls it from
    /// [`Environment::connect`](crate::Environment::connect).
    pub fn connect(&mut self, services: &Services) {
        self.ledger = Some(services.ledger.clone());
    }

    /// Answers every call of an action; an invalid call gets an error that the agent can read.
    ///
    /// # Errors
    /// When a tool is broken, or a call is in doubt.
    pub async fn answer(&self, action: &Action) -> Result<ToolRound, EnvironmentError> {
        let first = self.places(action.calls.len());
        let answers = action.calls.iter().enumerate().map(async |(nth, attempt)| match attempt {
            CallAttempt::Call(call) => Ok((&call.id, self.call_at(first + nth, call).await?)),
            CallAttempt::Malformed(call) => Ok((&call.id, refuse(call))),
        });
        let mut round = ToolRound::default();
        if self.is_concurrent {
            // All are awaited, even after one breaks: the effects of the others must be recorded.
            for answer in join_all(answers).await {
                let (id, reply) = answer?;
                round.add(id, &reply);
            }
        } else {
            for answer in answers {
                let (id, reply) = answer.await?;
                round.add(id, &reply);
            }
        }
        Ok(round)
    }

    /// Answers one call.
    ///
    /// # Errors
    /// When the tool is broken, or the call is in doubt.
    pub async fn call(&self, call: &ToolCall) -> Result<ToolReply, EnvironmentError> {
        self.call_at(self.places(1), call).await
    }

    fn places(&self, n: usize) -> usize {
        self.ledger.as_ref().map_or(0, |ledger| ledger.take_places(n))
    }

    async fn call_at(&self, place: usize, call: &ToolCall) -> Result<ToolReply, EnvironmentError> {
        let Some((_, tool)) = self.tools.iter().find(|(spec, _)| spec.name == call.name) else {
            return Ok(no_such_tool(&call.name));
        };
        let Some(ledger) = &self.ledger else { return self.in_time(&**tool, call).await };
        if let Issued::Recorded(reply) = ledger.issue(call, place, tool.is_idempotent())? {
            return Ok(reply);
        }
        let reply = self.in_time(&**tool, call).await?;
        ledger.settle(place, &reply)?;
        Ok(reply)
    }

    async fn in_time(
        &self,
        tool: &dyn Tool,
        call: &ToolCall,
    ) -> Result<ToolReply, EnvironmentError> {
        within(self.timeout, tool.call(&call.arguments), |reply| reply).await
    }
}

/// Waits for an answer, and replies with an error after the timeout.
pub(crate) async fn within<R>(
    timeout: Duration,
    answer: impl Future<Output = Result<R, EnvironmentError>>,
    timed_out: impl FnOnce(ToolReply) -> R,
) -> Result<R, EnvironmentError> {
    let mut answer = pin!(answer);
    // A tool that never waits needs no clock, and so no runtime with one.
    let at_once = std::future::poll_fn(|context| Poll::Ready(answer.as_mut().poll(context)));
    if let Poll::Ready(reply) = at_once.await {
        return reply;
    }
    let reply = tokio::time::timeout(timeout, answer).await;
    reply.unwrap_or_else(|_| {
        let message = format!("timed out after {} s", timeout.as_secs_f64());
        Ok(timed_out(ToolReply::Error(CallError::Timeout, message)))
    })
}

/// Returns the reply to a call of a tool that does not exist.
pub(crate) fn no_such_tool(name: &str) -> ToolReply {
    ToolReply::Error(CallError::NotFound, format!("no tool is called {}", shortened(name)))
}

impl From<ToolRound> for Step {
    /// Creates a step after which the episode goes on: the agent sees the answers, and the turn has the calls' reward
    /// and faults.
    fn from(ToolRound { messages, faults, reward }: ToolRound) -> Self {
        Self::Next {
            observation: messages.into(),
            reward,
            faults,
            others: Vec::new(),
            late: Vec::new(),
        }
    }
}

impl ToolRound {
    pub(crate) fn add(&mut self, id: &str, reply: &ToolReply) {
        self.messages.push(Message::tool(id, text_of(reply)));
        self.faults += u32::from(matches!(reply, ToolReply::Error(..)));
    }
}

/// Shortens a name: the agent chose it, so it may be of any length.
fn shortened(name: &str) -> String {
    const MOST: usize = 64;
    let short: String = name.chars().take(MOST).collect();
    if short.len() < name.len() { format!("`{short}…`") } else { format!("`{short}`") }
}

pub(crate) fn refuse(call: &MalformedCall) -> ToolReply {
    ToolReply::Error(call.error, call.message.clone())
}

fn text_of(reply: &ToolReply) -> String {
    match reply {
        ToolReply::Result(text) => text.clone(),
        ToolReply::Error(error, message) => format!("error: {}: {message}", error.as_str()),
    }
}

impl fmt::Debug for Toolbox {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.tools.iter().map(|(spec, _)| &spec.name)).finish()
    }
}
