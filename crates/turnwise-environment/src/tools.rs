use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::toolbox::{DEFAULT_TIMEOUT, no_such_tool, refuse, within};
use crate::{
    Action, CallAttempt, CallError, EnvironmentError, ToolCall, ToolReply, ToolRound, ToolSpec,
};

/// Tools with typed arguments over the state `S` of an environment.
///
/// A tool is a closure or an `async fn` that takes the state and its arguments. The type of the arguments contains
/// everything that the agent is told: the tool's name is the name of the type in `snake_case`
/// (`#[schemars(rename = "…")]` sets another), its description is the type's documentation, and its parameters are the
/// fields with theirs. Arguments that do not fit are answered with an error that names the field, and the tool is not
/// called.
///
/// ```
/// use schemars::JsonSchema;
/// use serde::Deserialize;
/// use turnwise_environment::{Action, EnvironmentError, Reply, Step, Tools};
///
/// #[derive(Default)]
/// struct Order {
///     pizzas: u32,
/// }
///
/// /// Adds pizzas to the order.
/// #[derive(Deserialize, JsonSchema)]
/// struct AddPizzas {
///     /// How many.
///     count: u32,
/// }
///
/// async fn add_pizzas(order: &mut Order, call: AddPizzas) -> Result<Reply, String> {
///     if call.count == 0 {
///         return Err("the count must be at least 1".to_owned());
///     }
///     order.pizzas += call.count;
///     Ok(Reply::text(format!("{} pizzas are ordered", order.pizzas)).reward(0.5))
/// }
///
/// let tools = Tools::new().async_tool(add_pizzas);
/// assert_eq!(tools.specs()[0].name, "add_pizzas");
/// assert_eq!(tools.specs()[0].description, "Adds pizzas to the order.");
///
/// async fn step(
///     tools: &Tools<Order>,
///     order: &mut Order,
///     action: &Action,
/// ) -> Result<Step, EnvironmentError> {
///     Ok(tools.answer(order, action).await?.into())
/// }
/// ```
///
/// The state belongs to the episode, so a call is part of the episode's own history: its effect is in the snapshot of
/// the state, and a replay of the episode makes the call again. A tool that acts on the world outside is a
/// [`Tool`](crate::Tool) in a [`Toolbox`](crate::Toolbox), which makes each call at most once.
pub struct Tools<S> {
    tools: Arc<Vec<Entry<S>>>,
    timeout: Duration,
}

struct Entry<S> {
    spec: ToolSpec,
    call: Box<CallFn<S>>,
}

type CallFn<S> = dyn for<'a> Fn(&'a mut S, &Value) -> Replying<'a> + Send + Sync;
type Replying<'a> = Pin<Box<dyn Future<Output = Result<Reply, EnvironmentError>> + Send + 'a>>;

/// A typed tool's reply: a text for the agent, and the reward of the call.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    reply: ToolReply,
    reward: Option<f64>,
}

/// The reason why a typed tool gives no result.
#[derive(Debug)]
pub enum ToolError {
    /// The call was not possible as asked. The agent reads the text, and the call costs one unit of its fault budget.
    Refused(String),
    /// The tool itself is broken, which ends the episode without a reward.
    Broken(EnvironmentError),
}

/// The return types of typed tools: [`Reply`], text, JSON, or a `Result` of one of them whose error is a text, an
/// [`EnvironmentError`] or a [`ToolError`].
pub trait IntoReply {
    /// Converts the return value to a reply.
    ///
    /// # Errors
    /// When the tool is broken.
    fn into_reply(self) -> Result<Reply, EnvironmentError>;
}

/// An `async fn` that takes the state and the arguments. Implemented for every function of that form.
pub trait AsyncTool<'a, S, A>: Send + Sync {
    /// The future that a call returns.
    type Future: Future<Output: IntoReply> + Send + 'a;

    /// Calls the function.
    fn call(&self, state: &'a mut S, arguments: A) -> Self::Future;
}

impl<'a, S, A, F, R> AsyncTool<'a, S, A> for F
where
    S: 'a,
    F: Fn(&'a mut S, A) -> R + Send + Sync,
    R: Future<Output: IntoReply> + Send + 'a,
{
    type Future = R;

    fn call(&self, state: &'a mut S, arguments: A) -> R {
        self(state, arguments)
    }
}

impl<S: Send + 'static> Tools<S> {
    /// Creates an empty set of tools.
    #[must_use]
    pub fn new() -> Self {
        Self { tools: Arc::default(), timeout: DEFAULT_TIMEOUT }
    }

    /// Adds a tool that answers at once.
    ///
    /// # Panics
    /// When another tool has the same name, or the arguments are not a struct with named fields.
    #[must_use]
    pub fn tool<A, R>(self, call: impl Fn(&mut S, A) -> R + Send + Sync + 'static) -> Self
    where
        A: DeserializeOwned + JsonSchema + 'static,
        R: IntoReply + 'static,
    {
        self.with(spec::<A>(), Box::new(call_at_once(call)))
    }

    /// Adds a tool that may wait.
    ///
    /// # Panics
    /// As [`Self::tool`].
    #[must_use]
    pub fn async_tool<A>(self, call: impl for<'a> AsyncTool<'a, S, A> + 'static) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
    {
        self.with(spec::<A>(), Box::new(call_async(call)))
    }

    fn with(mut self, spec: ToolSpec, call: Box<CallFn<S>>) -> Self {
        let tools = Arc::get_mut(&mut self.tools);
        let tools = tools.expect("tools are added before they are cloned");
        let is_new = tools.iter().all(|tool| tool.spec.name != spec.name);
        assert!(is_new, "two tools are called {}", spec.name);
        tools.push(Entry { spec, call });
        self
    }

    /// Sets the time limit of a call; by default 30 s. A call that exceeds it is dropped, but what it has changed stays
    /// changed.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns what the agent is told about the tools.
    #[must_use]
    pub fn specs(&self) -> Vec<ToolSpec> {
        self.tools.iter().map(|tool| tool.spec.clone()).collect()
    }

    /// Answers every call of an action in order; an invalid call gets an error that the agent can read.
    ///
    /// # Errors
    /// When a tool is broken.
    pub async fn answer(
        &self,
        state: &mut S,
        action: &Action,
    ) -> Result<ToolRound, EnvironmentError> {
        let mut round = ToolRound::default();
        for attempt in &action.calls {
            match attempt {
                CallAttempt::Call(call) => {
                    let Reply { reply, reward } = self.call(state, call).await?;
                    round.add(&call.id, &reply);
                    if let Some(reward) = reward {
                        *round.reward.get_or_insert(0.0) += reward;
                    }
                }
                CallAttempt::Malformed(call) => round.add(&call.id, &refuse(call)),
            }
        }
        Ok(round)
    }

    async fn call(&self, state: &mut S, call: &ToolCall) -> Result<Reply, EnvironmentError> {
        let Some(tool) = self.tools.iter().find(|tool| tool.spec.name == call.name) else {
            return Ok(Reply { reply: no_such_tool(&call.name), reward: None });
        };
        let timed_out = |reply| Reply { reply, reward: None };
        within(self.timeout, (tool.call)(state, &call.arguments), timed_out).await
    }
}

/// Wraps a closure: reads the arguments, then calls it.
fn call_at_once<S, A: DeserializeOwned, R: IntoReply>(
    call: impl Fn(&mut S, A) -> R + Send + Sync + 'static,
) -> impl for<'a> Fn(&'a mut S, &Value) -> Replying<'a> + Send + Sync {
    move |state, arguments| {
        let reply = match read::<A>(arguments) {
            Ok(arguments) => call(state, arguments).into_reply(),
            Err(why) => Ok(Reply::error(why)),
        };
        Box::pin(ready(reply))
    }
}

/// Wraps an `async fn`: reads the arguments, then calls it.
fn call_async<S: Send + 'static, A: DeserializeOwned + Send + 'static>(
    call: impl for<'a> AsyncTool<'a, S, A> + 'static,
) -> impl for<'a> Fn(&'a mut S, &Value) -> Replying<'a> + Send + Sync {
    move |state, arguments| match read::<A>(arguments) {
        Ok(arguments) => {
            let replying = call.call(state, arguments);
            Box::pin(async move { replying.await.into_reply() })
        }
        Err(why) => Box::pin(ready(Ok(Reply::error(why)))),
    }
}

impl Reply {
    /// Creates a result without a reward.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { reply: ToolReply::Result(text.into()), reward: None }
    }

    /// Creates a refusal, which costs one unit of the fault budget.
    #[must_use]
    pub fn error(why: impl Into<String>) -> Self {
        Self { reply: ToolReply::Error(CallError::InvalidArgs, why.into()), reward: None }
    }

    /// Sets the reward of the call. The rewards of all calls of an action add up to the reward of the turn.
    #[must_use]
    pub fn reward(mut self, reward: f64) -> Self {
        self.reward = Some(reward);
        self
    }
}

impl From<String> for Reply {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<&str> for Reply {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<Value> for Reply {
    /// Creates a result from the JSON on one line.
    fn from(json: Value) -> Self {
        Self::text(json.to_string())
    }
}

impl From<String> for ToolError {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl From<&str> for ToolError {
    fn from(why: &str) -> Self {
        Self::Refused(why.to_owned())
    }
}

impl From<EnvironmentError> for ToolError {
    fn from(error: EnvironmentError) -> Self {
        Self::Broken(error)
    }
}

impl IntoReply for Reply {
    fn into_reply(self) -> Result<Reply, EnvironmentError> {
        Ok(self)
    }
}

impl IntoReply for String {
    fn into_reply(self) -> Result<Reply, EnvironmentError> {
        Ok(self.into())
    }
}

impl IntoReply for &str {
    fn into_reply(self) -> Result<Reply, EnvironmentError> {
        Ok(self.into())
    }
}

impl IntoReply for Value {
    fn into_reply(self) -> Result<Reply, EnvironmentError> {
        Ok(self.into())
    }
}

impl<T: Into<Reply>, E: Into<ToolError>> IntoReply for Result<T, E> {
    fn into_reply(self) -> Result<Reply, EnvironmentError> {
        match self.map_err(Into::into) {
            Ok(reply) => Ok(reply.into()),
            Err(ToolError::Refused(why)) => Ok(Reply::error(why)),
            Err(ToolError::Broken(error)) => Err(error),
        }
    }
}

impl<S> Clone for Tools<S> {
    fn clone(&self) -> Self {
        Self { tools: self.tools.clone(), timeout: self.timeout }
    }
}

impl<S: Send + 'static> Default for Tools<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for Tools<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.tools.iter().map(|tool| &tool.spec.name)).finish()
    }
}

/// The most characters of an error about arguments that a model is shown.
const MAX_ERROR_CHARS: usize = 200;

/// Reads arguments, or says which field does not fit and why. Missing arguments count as an empty object.
fn read<A: DeserializeOwned>(arguments: &Value) -> Result<A, String> {
    let none = Value::Object(Map::new());
    let arguments = if arguments.is_null() { &none } else { arguments };
    if !arguments.is_object() {
        return Err("the arguments must be an object".to_owned());
    }
    serde_path_to_error::deserialize(arguments).map_err(|error| {
        let field = error.path().to_string();
        let why = error.into_inner().to_string();
        let why = if field == "." { why } else { format!("{field}: {why}") };
        shortened(&why, MAX_ERROR_CHARS)
    })
}

fn shortened(text: &str, most: usize) -> String {
    let mut characters = text.chars();
    let short: String = characters.by_ref().take(most).collect();
    if characters.next().is_some() { short + "…" } else { short }
}

/// Returns what the agent is told about a tool with these arguments.
fn spec<A: JsonSchema>() -> ToolSpec {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<A>();
    RecursiveTransform(plain).transform(&mut schema);
    let description = schema.remove("description");
    schema.remove("title");
    let parameters = schema.to_value();
    let name = snake_case(&A::schema_name());
    assert_eq!(
        parameters.get("type"),
        Some(&Value::from("object")),
        "the arguments of the tool {name} must be a struct with named fields"
    );
    let description = description.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    ToolSpec { name, description, parameters }
}

/// Removes what describes a Rust type and means nothing to a model: `"format": "uint32"` of a number.
fn plain(schema: &mut Schema) {
    let is_number =
        matches!(schema.get("type").and_then(Value::as_str), Some("integer" | "number"));
    if is_number {
        schema.remove("format");
    }
}

/// Converts `AddItem` to `add_item`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    let mut before_is_lower = false;
    for character in name.chars() {
        if character.is_uppercase() && before_is_lower {
            snake.push('_');
        }
        before_is_lower = character.is_lowercase() || character.is_ascii_digit();
        snake.extend(character.to_lowercase());
    }
    snake
}
