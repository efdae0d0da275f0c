use async_trait::async_trait;
use serde_json::Value;
use turnwise_environment::{Observation, ToolSpec};
use turnwise_rollout::{
    Act, Agent, AgentError, AgentFactory, Allowance, ChatAgents, Episode, Limits, Policy,
    PolicyError, Progress, Room, Sample, SampleRequest, SessionId,
};
use turnwise_testkit::{Echo, Lying, Method, Panicking};
use turnwise_trajectory::{
    Identity, InfraReason, MessageGraph, Outcome, PolicyVersion, Sampling, Trajectory,
};

use crate::support::{
    ENGINE, agents, block_on, episode, finished, identity, limits, message, reason, suspended,
};

/// Plays an environment that panics in one method; the episode is suspended once, and snapshotted then.
fn played(method: Method) -> Trajectory {
    let tasks = vec![Panicking { inner: Echo::new(5, true), method }];
    // The panic must come from the episode's environment and not from the tasks that the test keeps.
    let identity = identity(&tasks, 3);
    // No fault is allowed, and every answer of one token is a fault, so that `fault_reward` is called.
    let limits = Limits { max_faults: 0, ..limits() };
    let empty = Lying {
        inner: ENGINE,
        lie: |request: &SampleRequest, mut sample: Sample| {
            if method == Method::FaultReward {
                sample.tokens.truncate(1);
                sample.tokens[0].id = request.stop[0];
                sample.stop = turnwise_trajectory::StopReason::EndOfTurn;
            }
            sample
        },
    };
    let ended = block_on(async {
        let environment = Box::new(tasks[0].clone());
        let episode = Episode::new(identity, environment, &agents(), limits);
        match episode.advance(&empty, &Allowance::tokens(3)).await {
            Progress::Finished(trajectory) => trajectory,
            Progress::Suspended(episode) => {
                let snapshot = episode.snapshot();
                assert_eq!(snapshot.is_none(), method == Method::Snapshot, "{method:?}");
                if let Some(snapshot) = snapshot {
                    let restored = Episode::restore(snapshot, &tasks, &agents());
                    assert_eq!(restored.is_err(), method == Method::Restore, "{method:?}");
                    drop(restored);
                }
                finished(episode, &empty).await
            }
        }
    });
    // Dropping the tasks would panic too.
    std::mem::forget(tasks);
    ended
}

// Every method of an environment.
#[test]
fn a_panic_anywhere_in_an_environment_ends_its_episode_and_nothing_else() {
    for method in Method::ALL {
        let ended = played(method);
        match method {
            // An episode that stays in its process does not call these methods, and is not disturbed.
            Method::Snapshot | Method::Restore | Method::Drop => {
                assert!(ended.outcome.is_scored(), "{method:?}: {:?}", ended.outcome);
            }
            _ => {
                assert_eq!(reason(&ended), Some(InfraReason::EnvPanic), "{method:?}");
                assert!(message(&ended).contains(&format!("made to panic in {method:?}")));
                assert_eq!(ended.reward(), None);
            }
        }
    }
}

/// A method of an agent or its factory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Make,
    Restore,
    Observe,
    Act,
    Count,
    Graph,
    Snapshot,
    IntoGraph,
}

/// Chat agents that panic in one method.
struct Fragile {
    inner: ChatAgents,
    at: At,
}

struct FragileAgent {
    inner: Box<dyn Agent>,
    at: At,
}

impl AgentFactory for Fragile {
    fn renderer(&self) -> &str {
        self.inner.renderer()
    }

    fn sampling(&self) -> Vec<Sampling> {
        self.inner.sampling()
    }

    fn agent(&self, identity: &Identity, tools: Vec<ToolSpec>) -> Box<dyn Agent> {
        assert!(self.at != At::Make, "made to panic");
        Box::new(FragileAgent { inner: self.inner.agent(identity, tools), at: self.at })
    }

    fn restore(&self, snapshot: Value) -> Result<Box<dyn Agent>, AgentError> {
        assert!(self.at != At::Restore, "made to panic");
        Ok(Box::new(FragileAgent { inner: self.inner.restore(snapshot)?, at: self.at }))
    }
}

impl FragileAgent {
    fn may(&self, at: At) {
        assert!(self.at != at, "made to panic");
    }
}

#[async_trait]
impl Agent for FragileAgent {
    fn observe(&mut self, observation: &Observation) -> Result<(), AgentError> {
        self.may(At::Observe);
        self.inner.observe(observation)
    }

    async fn act(&mut self, policy: &dyn Policy, room: Room) -> Result<Act, AgentError> {
        self.may(At::Act);
        self.inner.act(policy, room).await
    }

    fn n_context(&self) -> usize {
        self.inner.n_context()
    }

    fn n_drawn(&self) -> usize {
        self.may(At::Count);
        self.inner.n_drawn()
    }

    fn n_pending(&self) -> usize {
        self.inner.n_pending()
    }

    fn graph(&self) -> &MessageGraph {
        self.may(At::Graph);
        self.inner.graph()
    }

    fn into_graph(self: Box<Self>) -> MessageGraph {
        self.may(At::IntoGraph);
        self.inner.into_graph()
    }

    fn snapshot(&self) -> Value {
        self.may(At::Snapshot);
        self.inner.snapshot()
    }
}

// Every method of an agent, which includes its renderer.
#[test]
fn a_panic_anywhere_in_an_agent_ends_its_episode_and_nothing_else() {
    let tasks = vec![Echo::new(5, true)];
    for at in [At::Make, At::Observe, At::Act, At::Count, At::IntoGraph] {
        let agents = Fragile { inner: agents(), at };
        let identity = identity(&tasks, 3);
        let episode = Episode::new(identity, Box::new(tasks[0].clone()), &agents, limits());
        let ended = block_on(finished(episode, &ENGINE));
        assert_eq!(reason(&ended), Some(InfraReason::AgentPanic), "{at:?}");
        assert!(message(&ended).contains("made to panic"), "{at:?}");
        assert!(
            ended.turns.iter().all(|turn| { (turn.node.0 as usize) < ended.graph.nodes().len() })
        );
    }
    for at in [At::Snapshot, At::Restore, At::Graph] {
        let fragile = Fragile { inner: agents(), at };
        let identity = identity(&tasks, 3);
        let episode = Episode::new(identity, Box::new(tasks[0].clone()), &fragile, limits());
        let episode = block_on(suspended(episode, 3)).expect("five turns");
        let restored = episode.snapshot().map(|one| Episode::restore(one, &tasks, &fragile));
        assert!(restored.is_none_or(|restored| restored.is_err()), "{at:?}");
    }
}

/// A policy that panics instead of sampling, and again on release.
struct PanickingPolicy;

#[async_trait]
impl Policy for PanickingPolicy {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        panic!("{} tokens are too many", request.prompt.len())
    }

    fn release(&self, session: SessionId) {
        panic!("nobody is {session:?}")
    }
}

// The engine's client.
#[test]
fn a_panic_in_the_policy_ends_its_episode_and_nothing_else() {
    let tasks = vec![Echo::new(5, true)];
    let ended = block_on(finished(episode(&tasks, 3), &PanickingPolicy));
    assert_eq!(reason(&ended), Some(InfraReason::EngineError));
    assert!(message(&ended).contains("tokens are too many"));
    assert!(matches!(ended.outcome, Outcome::InfraFault(_)));
}
