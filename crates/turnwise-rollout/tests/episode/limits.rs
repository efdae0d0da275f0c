use std::sync::Arc;

use proptest::prelude::*;
use turnwise_environment::{
    Action, Environment, EnvironmentError, ErrorKind, Message, Observation, Step, ToolSpec,
    async_trait,
};
use turnwise_rollout::{
    Bridged, ChatAgents, EndedTurn, Episode, Limits, RenderError, Rendered, Renderer, Said, Sample,
    SampleRequest, SessionId, check_sample,
};
use turnwise_testkit::{AlphabetRenderer, Echo, Lying, Shop};
use turnwise_trajectory::{
    InfraReason, Limit, Outcome, PolicyVersion, SampledToken, Sampling, StopReason, TokenId,
    Trajectory,
};

use crate::support::{ENGINE, Made, agents, block_on, finished, identity, limits, reason};

fn played(
    tasks: &Made<impl Fn() -> Box<dyn Environment> + Send + Sync>,
    limits: Limits,
) -> Trajectory {
    let episode = Episode::new(identity(tasks, 3), tasks.0(), &agents(), limits);
    block_on(finished(episode, &ENGINE))
}

/// An environment that gives the same answer to every action, and rewards it.
#[derive(Clone, Debug)]
struct Wall {
    says: String,
}

#[async_trait]
impl Environment for Wall {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Speak.".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::next(self.says.clone()).reward(0.5))
    }
}

/// Returns an engine that always says the same word.
fn parrot() -> Lying<turnwise_testkit::Hashed, impl Fn(&SampleRequest, Sample) -> Sample> {
    let lie = |request: &SampleRequest, mut sample: Sample| {
        let version = PolicyVersion(0);
        sample.tokens =
            vec![SampledToken::new(1, -0.5, version), SampledToken::new(0, 0.0, version)];
        sample.tokens.truncate(request.max_tokens);
        sample.stop = StopReason::EndOfTurn;
        sample
    };
    Lying { inner: ENGINE, lie }
}

// A loop is a limit that the policy reached; the rewards received so far count.
#[test]
fn the_same_again_and_again_is_truncated_as_a_loop_where_that_is_asked_for() {
    let wall = || Box::new(Wall { says: "No.".to_owned() }) as Box<dyn Environment>;
    let tasks = Made(wall);
    let play = |max_repeats| {
        let limits = Limits { max_repeats, ..limits() };
        let episode = Episode::new(identity(&tasks, 3), wall(), &agents(), limits);
        block_on(finished(episode, &parrot()))
    };
    for max_repeats in [1, 3, 7] {
        let ended = play(max_repeats);
        assert_eq!(ended.outcome, Outcome::Truncated(Limit::Loop));
        assert_eq!(ended.turns.len(), max_repeats as usize);
        assert_eq!(ended.reward(), Some(0.5 * f64::from(max_repeats)));
    }
    assert_eq!(play(0).outcome, Outcome::Truncated(Limit::Turns), "off by default");
}

// Different answers to the same action, or different actions, are not a loop.
#[test]
fn going_on_is_no_loop() {
    let tasks = vec![Echo::new(9, true)];
    let limits = Limits { max_repeats: 2, ..limits() };
    let episode = Episode::new(identity(&tasks, 3), Box::new(tasks[0].clone()), &agents(), limits);
    assert_eq!(block_on(finished(episode, &parrot())).outcome, Outcome::Done);
}

/// A renderer that parses every letter as a call.
struct Calling(AlphabetRenderer);

impl Renderer for Calling {
    fn fingerprint(&self) -> &'static str {
        "calling"
    }

    fn render(&self, said: &[Said<'_>], tools: &[ToolSpec]) -> Result<Rendered, RenderError> {
        self.0.render(said, tools)
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        self.0.bridge(ended, history, new)
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        self.0.write(action)
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        Shop::calls(&self.0.parse(turn, tools).text)
    }

    fn shortens(&self, message: &Message, tools: &[ToolSpec]) -> bool {
        self.0.shortens(message, tools)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        self.0.stop_tokens()
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.0.text(ids)
    }
}

proptest! {
    // Tool calls have their own budget, and no step is made beyond it.
    #[test]
    fn a_tool_budget_that_is_used_up_truncates(max_tool_calls in 0_usize..12, seed in any::<u64>()) {
        let wall = Wall { says: "No.".to_owned() };
        let tasks = vec![wall.clone()];
        let renderer = Arc::new(Calling(AlphabetRenderer::new("abc")));
        let callers = ChatAgents::new(renderer);
        let limits = Limits { max_tool_calls, max_turns: 50, max_faults: 99, ..limits() };
        let episode = Episode::new(identity(&tasks, seed), Box::new(wall), &callers, limits);
        let ended = block_on(finished(episode, &ENGINE));
        prop_assert_eq!(&ended.outcome, &Outcome::Truncated(Limit::ToolCalls));
        let asked: Vec<usize> =
            ended.turn_nodes().map(|node| node.message.tool_calls.len()).collect();
        let (last, answered) = asked.split_last().expect("a turn");
        prop_assert!(answered.iter().sum::<usize>() <= max_tool_calls);
        prop_assert!(answered.iter().sum::<usize>() + last > max_tool_calls);
        prop_assert_eq!(ended.reward(), Some(0.5 * answered.len() as f64));
    }
}

// Rollouts 13.25, 11.23: text of environment and tools costs no sampled token.
#[test]
fn observations_do_not_reduce_the_sampled_budget() {
    let budget = Limits {
        max_sampled_tokens: 12,
        max_turns: 1000,
        max_context_tokens: 1_000_000,
        ..limits()
    };
    let drawn = |says: String| {
        let tasks = Made(move || Box::new(Wall { says: says.clone() }) as Box<dyn Environment>);
        let ended = played(&tasks, budget.clone());
        assert_eq!(ended.outcome, Outcome::Truncated(Limit::SampledTokens));
        ended.n_sampled()
    };
    assert_eq!((drawn(String::new()), drawn("long ".repeat(5000))), (12, 12));
}

// An observation of 100 MB gives a bounded prompt.
#[test]
fn an_observation_of_a_hundred_megabytes_is_cut_before_it_is_rendered() {
    let tasks = Made(|| Box::new(Wall { says: "x".repeat(100 << 20) }) as Box<dyn Environment>);
    let limits = Limits {
        max_observation_bytes: 1000,
        max_turns: 2,
        max_context_tokens: 100_000,
        ..limits()
    };
    let ended = played(&tasks, limits);
    assert_eq!(ended.outcome, Outcome::Truncated(Limit::Turns));
    let longest = ended.graph.nodes().iter().map(|node| node.message.content.len()).max();
    assert!(longest < Some(1100), "{longest:?}");
    let mark = format!("[... {} bytes omitted ...]", (100 << 20) - 1000);
    assert!(ended.messages().iter().any(|message| message.content.contains(&mark)));
}

/// An environment whose episode is over before it begins.
struct Over;
#[async_trait]
impl Environment for Over {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Over.".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        Err(EnvironmentError::new("a step was taken after the end").of_kind(ErrorKind::Protocol))
    }
}

// No turns, and a step after the end.
#[test]
fn an_order_of_calls_that_cannot_be_is_a_protocol_fault() {
    let tasks = vec![Echo::new(3, true)];
    let limits = Limits { max_turns: 0, ..limits() };
    let none = Episode::new(identity(&tasks, 3), Box::new(tasks[0].clone()), &agents(), limits);
    assert_eq!(reason(&block_on(finished(none, &ENGINE))), Some(InfraReason::Protocol));

    let tasks = Made(|| Box::new(Over) as Box<dyn Environment>);
    let ended = played(&tasks, crate::support::limits());
    assert_eq!(reason(&ended), Some(InfraReason::Protocol));
}

/// Returns a request, and a valid answer to it.
fn exchange() -> (SampleRequest, Sample) {
    let request = SampleRequest {
        prompt: vec![7, 8],
        stop: vec![0],
        max_tokens: 4,
        sampling: Sampling::default(),
        seed: 1,
        first_index: 0,
        min_version: PolicyVersion(2),
        session: SessionId(1),
    };
    let token = |id, version| SampledToken::new(id, -0.5, PolicyVersion(version));
    let tokens = vec![token(1, 2), token(2, 3), token(0, 3)];
    (request, Sample { tokens, stop: StopReason::EndOfTurn, ..Sample::new("good") })
}

/// A change that makes an answer invalid.
type Lie = fn(&mut Sample);

// Rollouts 13.3, 11.7
#[test]
fn every_impossible_answer_is_found() {
    let (request, good) = exchange();
    assert_eq!(check_sample(&good, &request), Ok(()));
    let lies: [(&str, Lie); 15] = [
        ("NaN", |sample| sample.tokens[1].logprob = f32::NAN),
        ("minus infinity", |sample| sample.tokens[1].logprob = f32::NEG_INFINITY),
        ("infinity", |sample| sample.tokens[0].logprob = f32::INFINITY),
        ("above 0", |sample| sample.tokens[2].logprob = 1e-6),
        ("older than asked", |sample| sample.tokens[0].version = PolicyVersion(1)),
        ("decreasing", |sample| {
            sample.tokens[0].version = PolicyVersion(5);
            sample.tokens[0].kv_version = PolicyVersion(5);
        }),
        ("keys from the future", |sample| sample.tokens[0].kv_version = PolicyVersion(9)),
        ("too many", |sample| {
            let first = sample.tokens[0];
            sample.tokens.splice(0..0, [first, first]);
        }),
        ("goes on after the end", |sample| sample.tokens.swap(1, 2)),
        ("an end without a stop token", |sample| sample.tokens.truncate(2)),
        ("nothing", |sample| sample.tokens.clear()),
        ("all that fit, too early", |sample| {
            sample.tokens.pop();
            sample.stop = StopReason::MaxTokens;
        }),
        ("a stop token, interrupted", |sample| sample.stop = StopReason::Interrupted),
        ("sampling nobody asked for", |sample| sample.tokens[0].sampling = 3),
        ("scored already", |sample| sample.tokens[0].advantage = Some(0.0)),
    ];
    for (name, lie) in lies {
        let mut sample = good.clone();
        lie(&mut sample);
        assert!(check_sample(&sample, &request).is_err(), "{name}");
        let tasks = vec![Echo::new(3, true)];
        let liar = Lying {
            inner: ENGINE,
            lie: |request: &SampleRequest, mut sample: Sample| {
                sample.tokens = exchange().1.tokens;
                sample.tokens.truncate(request.max_tokens);
                sample.stop = StopReason::EndOfTurn;
                lie(&mut sample);
                sample
            },
        };
        let environment = Box::new(tasks[0].clone());
        let episode = Episode::new(identity(&tasks, 3), environment, &agents(), limits());
        let ended = block_on(finished(episode, &liar));
        if name != "older than asked" {
            assert_eq!(reason(&ended), Some(InfraReason::BadEngine), "{name}");
        }
        assert!(name == "older than asked" || ended.reward().is_none());
    }
    let nothing = Sample { tokens: Vec::new(), stop: StopReason::Interrupted, ..good };
    assert_eq!(check_sample(&nothing, &request), Ok(()), "an interruption may bring nothing");
}

proptest! {
    // Rollouts 13.3: every token of an answer that passes has a valid log-probability and valid versions.
    #[test]
    fn what_passes_the_check_keeps_every_promise(
        tokens in prop::collection::vec(
            (0_u32..4, prop_oneof![-3.0_f32..1.0, Just(f32::NAN)], 0_u32..5, 0_u32..5),
            0..7,
        ),
        stop in prop::sample::select(vec![
            StopReason::EndOfTurn,
            StopReason::MaxTokens,
            StopReason::Interrupted,
        ]),
    ) {
        let token = |(id, logprob, version, kv): (u32, f32, u32, u32)| SampledToken {
            kv_version: PolicyVersion(kv),
            ..SampledToken::new(id, logprob, PolicyVersion(version))
        };
        let (request, good) = exchange();
        let sample = Sample { tokens: tokens.into_iter().map(token).collect(), stop, ..good };
        if check_sample(&sample, &request).is_ok() {
            let tokens = &sample.tokens;
            prop_assert!(tokens.len() <= request.max_tokens);
            prop_assert!(tokens.iter().all(|token| token.logprob <= 0.0));
            prop_assert!(tokens.iter().all(|token| token.version >= request.min_version));
            prop_assert!(tokens.iter().all(|token| token.kv_version <= token.version));
            prop_assert!(tokens.is_sorted_by_key(|token| token.version));
            let n_stops = tokens.iter().filter(|token| token.id == 0).count();
            prop_assert_eq!(n_stops, usize::from(stop == StopReason::EndOfTurn));
        }
    }
}
