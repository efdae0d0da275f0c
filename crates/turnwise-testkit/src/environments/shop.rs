use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use turnwise_environment::{
    Action, CallAttempt, Environment, EnvironmentError, Observation, Services, Step, Tool,
    ToolCall, ToolReply, ToolSpec, Toolbox,
};

/// The crash of a [`Till`] during a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies before the sale.
    Before,
    /// The process dies after the sale, before the result is delivered.
    After,
}

/// A tool with side effects: every sale is in a book that outlives the seller.
pub struct Till {
    /// Whether the tool declares that selling twice is harmless.
    pub is_idempotent: bool,
    /// The unit of a sale's duration, multiplied by the distance of the item's first letter from `z`.
    pub pause: Duration,
    /// The sale that crashes, counted from 0 over all requested sales, and how.
    pub crash: Option<(u64, Crash)>,
    /// The number of requested sales.
    n_asked: AtomicU64,
    sold: Mutex<Vec<String>>,
}

impl Till {
    /// Creates a till that sells at once.
    #[must_use]
    pub fn new(is_idempotent: bool) -> Self {
        Self {
            is_idempotent,
            pause: Duration::ZERO,
            crash: None,
            n_asked: AtomicU64::new(0),
            sold: Mutex::default(),
        }
    }

    /// Creates a till that crashes at one sale.
    #[must_use]
    pub fn crashing(is_idempotent: bool, at: u64, crash: Crash) -> Self {
        Self { crash: Some((at, crash)), ..Self::new(is_idempotent) }
    }

    /// Creates a slow till.
    #[must_use]
    pub fn slow(pause: Duration) -> Self {
        Self { pause, ..Self::new(false) }
    }

    /// Returns the sold items, in the order of the sales.
    ///
    /// # Panics
    /// Panics if a sale panicked.
    #[must_use]
    pub fn sold(&self) -> Vec<String> {
        self.sold.lock().expect("no sale panics").clone()
    }
}

#[async_trait]
impl Tool for Till {
    fn spec(&self) -> ToolSpec {
        let parameters = json!({"type": "object", "properties": {"item": {"type": "string"}}});
        ToolSpec { name: "sell".to_owned(), description: "Sells an item.".to_owned(), parameters }
    }

    fn is_idempotent(&self) -> bool {
        self.is_idempotent
    }

    async fn call(&self, arguments: &Value) -> Result<ToolReply, EnvironmentError> {
        let item = arguments["item"].as_str().unwrap_or_default().to_owned();
        let asked = self.n_asked.fetch_add(1, Ordering::Relaxed);
        let crash = self.crash.filter(|(at, _)| *at == asked).map(|(_, crash)| crash);
        let dies = || std::future::pending::<Result<ToolReply, EnvironmentError>>();
        if !self.pause.is_zero() {
            let rank = item.bytes().next().map_or(1, |letter| b'z'.saturating_sub(letter));
            tokio::time::sleep(self.pause * u32::from(rank)).await;
        }
        if crash == Some(Crash::Before) {
            return dies().await;
        }
        let number = {
            let mut sold = self.sold.lock().expect("no sale panics");
            sold.push(item.clone());
            sold.len()
        };
        if crash == Some(Crash::After) {
            return dies().await;
        }
        Ok(ToolReply::Result(format!("{item} is sale {number}")))
    }
}

impl fmt::Debug for Till {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The output leaves out the book, which would become part of a task's name.
        formatter
            .debug_struct("Till")
            .field("is_idempotent", &self.is_idempotent)
            .finish_non_exhaustive()
    }
}

/// An environment that sells every letter of an action, with one call of its [`Till`] each.
#[derive(Clone)]
pub struct Shop {
    tools: Toolbox,
    state: ShopState,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct ShopState {
    turns: usize,
    turn: usize,
    n_words: usize,
}

impl Shop {
    /// Creates an episode of `turns` turns.
    #[must_use]
    pub fn new(till: &Arc<Till>, turns: usize) -> Self {
        Self::with_tools(Toolbox::new(vec![Arc::clone(till) as Arc<dyn Tool>]), turns)
    }

    /// Creates an episode with an existing toolbox.
    #[must_use]
    pub fn with_tools(tools: Toolbox, turns: usize) -> Self {
        Self { tools, state: ShopState { turns, turn: 0, n_words: 0 } }
    }

    /// Returns the calls that a text requests.
    #[must_use]
    pub fn calls(text: &str) -> Action {
        let call = |(place, letter): (usize, char)| {
            let arguments = json!({"item": letter.to_string()});
            let id = format!("call_{place}");
            CallAttempt::Call(ToolCall { id, name: "sell".to_owned(), arguments })
        };
        Action { calls: text.chars().enumerate().map(call).collect(), ..Action::default() }
    }
}

#[async_trait]
impl Environment for Shop {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("What is it to be?".into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let round = self.tools.answer(&Self::calls(&action.text)).await?;
        self.state.turn += 1;
        let said: String = round.messages.iter().map(|message| message.content.as_str()).collect();
        self.state.n_words += said.split(' ').count();
        Ok(if self.state.turn >= self.state.turns {
            Step::terminated(self.state.n_words as f64)
        } else {
            Step::next(format!("{said}. What else?")).faults(round.faults)
        })
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.state).ok()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        self.state = serde_json::from_slice(snapshot)
            .map_err(|error| EnvironmentError::new("cannot restore a shop").caused_by(error))?;
        Ok(())
    }

    fn connect(&mut self, services: &Services) {
        self.tools.connect(services);
    }
}

impl fmt::Debug for Shop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shop").field("turns", &self.state.turns).finish_non_exhaustive()
    }
}
