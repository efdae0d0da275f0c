//! What a server sends of an episode: the changes of its traces, and a reply at its end.

use std::collections::BTreeMap;

use rmp_serde::from_slice;
use serde::Deserialize;
use turnwise_environment::EnvironmentError;

use super::super::fault::{malformed, shown};

/// An episode that a server played to its end and scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PlayedEpisode {
    pub(super) reward: f64,
    /// Whether a limit of the server ended it.
    pub(super) is_cut: bool,
}

/// The traces of an episode, as far as a verdict needs them.
#[derive(Debug, Default)]
pub(super) struct Traces(BTreeMap<String, Trace>);

/// What is known of one agent's rollout.
#[derive(Debug, Default)]
struct Trace {
    agent: String,
    rewards: BTreeMap<String, Option<SentReward>>,
    errors: Vec<SentError>,
    is_ok: bool,
    is_completed: bool,
    is_timeout: bool,
    stop_condition: Option<String>,
}

/// The most traces of an episode that are kept.
const MAX_TRACES: usize = 64;

/// The most errors of a trace that are kept: the newest says what ended it.
const MAX_ERRORS: usize = 16;

/// A change of a trace. The messages and tokens in it are the gateway's own, and are not read.
#[derive(Debug, Deserialize)]
struct SentDelta {
    trace: String,
    #[serde(default)]
    discard: bool,
    #[serde(default)]
    errors: Vec<SentError>,
    #[serde(default)]
    set: Option<SentFields>,
}

/// Fields that replace those before them; a field that is absent has not changed.
#[derive(Debug, Default, Deserialize)]
struct SentFields {
    agent: Option<SentAgent>,
    rewards: Option<BTreeMap<String, Option<SentReward>>>,
    ok: Option<bool>,
    is_completed: Option<bool>,
    is_timeout: Option<bool>,
    stop_condition: Option<String>,
}

#[derive(Debug, Deserialize)]
struct SentAgent {
    #[serde(default)]
    name: Option<String>,
}

/// A score with its weight.
#[derive(Clone, Copy, Debug, Deserialize)]
struct SentReward {
    score: f64,
    #[serde(default = "one")]
    weight: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct SentError {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    message: String,
}

/// The reply to a request, whatever its method.
#[derive(Debug, Deserialize)]
pub(super) struct SentReply {
    success: bool,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    head: Option<SentHead>,
    #[serde(default)]
    traces: Vec<SentTrace>,
}

/// An episode without its traces.
#[derive(Debug, Deserialize)]
struct SentHead {
    ok: bool,
    #[serde(default)]
    is_timeout: bool,
    #[serde(default)]
    errors: Vec<SentError>,
}

#[derive(Debug, Deserialize)]
struct SentTrace {
    id: String,
}

fn one() -> f64 {
    1.0
}

impl SentReply {
    /// Returns why the server did not do what it was asked for.
    pub(super) fn failure(&self) -> Option<String> {
        let why = || self.error.clone().unwrap_or_else(|| "it gives no reason".to_owned());
        (!self.success).then(why)
    }
}

impl SentError {
    fn shown(&self) -> String {
        shown(&format!("{}: {}", self.kind, self.message))
    }
}

impl Traces {
    /// Takes a change.
    pub(super) fn apply(&mut self, payload: &[u8]) -> Result<(), EnvironmentError> {
        let SentDelta { trace, discard, errors, set } =
            from_slice(payload).map_err(|error| malformed("run, a delta,", error))?;
        // A server that tries an episode again begins another trace. What the model said in the first try is in this
        // episode, and the reward of the second would be given to it.
        if discard {
            return Err(EnvironmentError::new(
                "the verifiers server tried the episode again, after an error of its own; set its retries to 0, because turnwise begins such an episode anew",
            ));
        }
        if self.0.len() >= MAX_TRACES && !self.0.contains_key(&trace) {
            return Err(malformed("run", "the episode has too many traces"));
        }
        let trace = self.0.entry(trace).or_default();
        trace.errors.extend(errors);
        let excess = trace.errors.len().saturating_sub(MAX_ERRORS);
        trace.errors.drain(..excess);
        let fields = set.unwrap_or_default();
        trace.agent =
            fields.agent.and_then(|agent| agent.name).unwrap_or(std::mem::take(&mut trace.agent));
        trace.rewards = fields.rewards.unwrap_or(std::mem::take(&mut trace.rewards));
        trace.is_ok = fields.ok.unwrap_or(trace.is_ok);
        trace.is_completed = fields.is_completed.unwrap_or(trace.is_completed);
        trace.is_timeout = fields.is_timeout.unwrap_or(trace.is_timeout);
        trace.stop_condition = fields.stop_condition.or(trace.stop_condition.take());
        Ok(())
    }

    /// Takes the reply, and returns the episode, unless something broke in it.
    pub(super) fn finish(mut self, payload: &[u8]) -> Result<PlayedEpisode, EnvironmentError> {
        let reply: SentReply = from_slice(payload).map_err(|error| malformed("run", error))?;
        if let Some(why) = reply.failure() {
            let why = shown(&why);
            return Err(EnvironmentError::new(format!(
                "the verifiers server did not play the episode: {why}"
            )));
        }
        let head = reply.head.ok_or_else(|| malformed("run", "it has no head"))?;
        let mut traces = Vec::new();
        for SentTrace { id } in reply.traces {
            let trace = self.0.remove(&id);
            traces.push(trace.ok_or_else(|| malformed("run", "a trace of it was never sent"))?);
        }
        let errors = traces.iter().flat_map(|trace| &trace.errors).chain(&head.errors);
        if let Some(error) = errors.last() {
            return Err(EnvironmentError::new(format!(
                "the episode failed at the verifiers server: {}",
                error.shown()
            )));
        }
        let [trace] = traces.as_slice() else { return Err(several(&traces)) };
        if !head.ok || !trace.is_ok || !trace.is_completed {
            let why = trace.stop_condition.as_deref().unwrap_or("it names no reason");
            return Err(EnvironmentError::new(format!(
                "the episode failed at the verifiers server: {}",
                shown(why)
            )));
        }
        Ok(PlayedEpisode { reward: trace.reward()?, is_cut: head.is_timeout || trace.is_cut() })
    }
}

impl Trace {
    /// Returns the sum of the scores, each with its weight. A reward that is null was not scored.
    fn reward(&self) -> Result<f64, EnvironmentError> {
        let mut sum = None;
        for (name, reward) in &self.rewards {
            let Some(SentReward { score, weight }) = reward else { continue };
            let value = score * weight;
            if !value.is_finite() {
                let (name, why) = (shown(name), format!("{score}, with the weight {weight}"));
                return Err(malformed("run", format!("the reward `{name}` is {why}")));
            }
            sum = Some(sum.unwrap_or(0.0) + value);
        }
        let sum: f64 = sum.ok_or_else(|| {
            EnvironmentError::new(
                "the verifiers server scored the episode with no reward; give its task a method with @vf.reward, or a judge",
            )
        })?;
        if sum.is_finite() {
            Ok(sum)
        } else {
            Err(malformed("run", "the rewards sum to no number"))
        }
    }

    /// Returns whether a limit ended the rollout, and not its program.
    fn is_cut(&self) -> bool {
        let limits = [
            "max_turns",
            "max_input_tokens",
            "max_output_tokens",
            "max_total_tokens",
            "compaction_failed",
        ];
        self.is_timeout || self.stop_condition.as_deref().is_some_and(|stop| limits.contains(&stop))
    }
}

/// Creates the error for an episode that does not have exactly one trace.
fn several(traces: &[Trace]) -> EnvironmentError {
    if traces.is_empty() {
        return EnvironmentError::new("the episode of the verifiers server has no trace");
    }
    let agents: Vec<&str> = traces.iter().map(|trace| trace.agent.as_str()).collect();
    let agents = shown(&agents.join(", "));
    EnvironmentError::new(format!(
        "the episode of the verifiers server has {} agents ({agents}), and turnwise trains one; serve an environment with a single agent",
        traces.len()
    ))
}
