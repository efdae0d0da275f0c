use std::fmt;
use std::sync::Arc;

use crate::{
    Action, CallAttempt, CallError, EnvironmentError, MalformedCall, Message, Tool, ToolCall,
    ToolReply, ToolSpec,
};

/// The tools of an environment, and the answering of calls in the order they were made.
#[derive(Clone, Default)]
pub struct Toolbox {
    tools: Vec<(ToolSpec, Arc<dyn Tool>)>,
}

/// The answers to the calls of one action.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolRound {
    /// One tool message for each attempted call, in call order.
    pub messages: Vec<Message>,
    /// How many of them are errors.
    pub faults: u32,
}

impl Toolbox {
    /// A box with these tools.
    ///
    /// # Panics
    /// When two tools have one name.
    #[must_use]
    pub fn new(tools: Vec<Arc<dyn Tool>>) -> Self {
        let tools: Vec<_> = tools.into_iter().map(|tool| (tool.spec(), tool)).collect();
        let mut names: Vec<&str> = tools.iter().map(|(spec, _)| spec.name.as_str()).collect();
        names.sort_unstable();
        assert!(
            names.windows(2).all(|pair| pair[0] != pair[1]),
            "two tools of one toolbox share a name"
        );
        Self { tools }
    }

    /// What the agent is told.
    #[must_use]
    pub fn specs(&self) -> Vec<ToolSpec> {
        self.tools.iter().map(|(spec, _)| spec.clone()).collect()
    }

    /// Answers every call of an action; wrong ones with an error the agent can read.
    ///
    /// # Errors
    /// When a tool is broken.
    pub async fn answer(&self, action: &Action) -> Result<ToolRound, EnvironmentError> {
        let mut round = ToolRound { messages: Vec::with_capacity(action.calls.len()), faults: 0 };
        for attempt in &action.calls {
            let (id, reply) = match attempt {
                CallAttempt::Call(call) => (&call.id, self.call(call).await?),
                CallAttempt::Malformed(call) => (&call.id, refuse(call)),
            };
            round.messages.push(Message::tool(id.clone(), text_of(&reply)));
            round.faults += u32::from(matches!(reply, ToolReply::Error(..)));
        }
        Ok(round)
    }

    /// Answers one call.
    ///
    /// # Errors
    /// When the tool is broken.
    pub async fn call(&self, call: &ToolCall) -> Result<ToolReply, EnvironmentError> {
        match self.tools.iter().find(|(spec, _)| spec.name == call.name) {
            Some((_, tool)) => tool.call(&call.arguments).await,
            None => Ok(ToolReply::Error(
                CallError::NotFound,
                format!("no tool is called {}", shortened(&call.name)),
            )),
        }
    }
}

/// The agent chose the name, so it may be of any length.
fn shortened(name: &str) -> String {
    const MOST: usize = 64;
    let short: String = name.chars().take(MOST).collect();
    if short.len() < name.len() { format!("`{short}…`") } else { format!("`{short}`") }
}

fn refuse(call: &MalformedCall) -> ToolReply {
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
