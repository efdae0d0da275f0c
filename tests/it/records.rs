//! What is written is what is read, and what cannot be is refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise_environment::{Message, Role, TaskKey, ToolCall};
use turnwise_trajectory::{
    AgentFault, AgentId, Author, CancelReason, Edge, EdgeKind, GroupId, Identity, InfraFault,
    InfraReason, Limit, MaskReason, MessageGraph, Node, NodeId, Outcome, PolicyVersion,
    RecordError, SampledToken, SampledTokens, Sampling, Span, SpawnedBy, StopReason, Trajectory,
    Turn, read_line, write_line,
};

use crate::support::{Built, token};

/// Any bits that are a finite number.
fn finite_f32() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite())
}

fn finite_f64() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |value| value.is_finite())
}

fn sampled() -> impl Strategy<Value = SampledToken> {
    let mask = prop::option::of(prop::sample::select(vec![
        MaskReason::Stale,
        MaskReason::SharedPrefix,
        MaskReason::User,
    ]));
    let advantage = prop::option::of(prop_oneof![finite_f32(), Just(0.0), Just(-0.0)]);
    (any::<u32>(), finite_f32(), 0_u32..3, 0_u32..3, 0_u16..2, mask, advantage).prop_map(
        |(id, logprob, version, kv_version, sampling, mask, advantage)| SampledToken {
            id,
            logprob: -logprob.abs(),
            version: PolicyVersion(version),
            kv_version: PolicyVersion(kv_version),
            sampling,
            mask,
            advantage,
        },
    )
}

fn spans(is_policy: bool) -> impl Strategy<Value = Vec<Span>> {
    let ids = || prop::collection::vec(any::<u32>(), 0..4);
    let other = prop_oneof![
        ids().prop_map(Span::Context),
        ids().prop_map(Span::Scaffold),
        ids().prop_map(Span::Forced),
    ];
    let drawn =
        prop::collection::vec(sampled(), 0..6).prop_map(|tokens| Span::Sampled(tokens.into()));
    let span = if is_policy { prop_oneof![drawn, other].boxed() } else { other.boxed() };
    prop::collection::vec(span, 0..4)
}

fn messages() -> impl Strategy<Value = Message> {
    let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant, Role::Tool]);
    let call = ("\\PC*", any::<i64>()).prop_map(|(name, a)| ToolCall {
        id: "call_0".to_owned(),
        name,
        arguments: json!({"a": a, "nested": [null, {"b": "\u{0}\n"}]}),
    });
    (role, any::<String>(), prop::option::of(any::<String>()), prop::option::of(call)).prop_map(
        |(role, content, reasoning, call)| Message {
            reasoning,
            tool_calls: call.into_iter().collect(),
            ..Message::new(role, content)
        },
    )
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let author = prop::sample::select(vec![Author::Policy, Author::Environment, Author::Tool]);
    let node = (author, prop::option::of(any::<usize>()), messages()).prop_flat_map(
        |(author, parent, message)| {
            spans(author == Author::Policy).prop_map(move |spans| {
                // The true parent is chosen when the node's place is known.
                let parent = parent.map(|parent| NodeId(parent as u32));
                Node { parent, author, message: message.clone(), spans }
            })
        },
    );
    prop::collection::vec(node, 1..6).prop_map(|mut nodes| {
        for (place, node) in nodes.iter_mut().enumerate() {
            let parent = node.parent.filter(|_| place > 0);
            node.parent = parent.map(|NodeId(number)| NodeId(number % place as u32));
        }
        nodes
    })
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    let infra = any::<String>().prop_map(|message| {
        Outcome::InfraFault(InfraFault { reason: InfraReason::ToolInDoubt, message })
    });
    prop_oneof![
        Just(Outcome::Done),
        Just(Outcome::Truncated(Limit::SampledTokens)),
        Just(Outcome::AgentFault(AgentFault::FaultBudget)),
        Just(Outcome::Cancelled(CancelReason::GroupDropped)),
        infra,
    ]
}

fn trajectories() -> impl Strategy<Value = Trajectory> {
    let turn = (any::<usize>(), prop::option::of(finite_f64()), any::<u32>(), finite_f64());
    (
        nodes(),
        prop::collection::vec(turn, 0..4),
        outcomes(),
        any::<(u64, u64, u64, u32, bool)>(),
        any::<String>(),
        (finite_f32(), finite_f32()),
    )
        .prop_map(|(nodes, turns, outcome, numbers, text, (temperature, min_p))| {
            let n_nodes = nodes.len();
            let mut graph = MessageGraph::default();
            let last = nodes.into_iter().map(|node| graph.push(node)).last().expect("a node");
            if last.0 > 0 {
                graph.link(Edge { from: last, to: NodeId(0), kind: EdgeKind::CompactedFrom });
            }
            let turn = |(node, reward, faults, seconds)| Turn {
                node: NodeId((node % n_nodes) as u32),
                stop: StopReason::MaxTokens,
                reward,
                faults,
                seconds,
                engine: text.clone(),
                weights: (faults % 2 == 0).then(|| text.clone()),
            };
            let sampling = Sampling { temperature, min_p, ..Sampling::default() };
            Trajectory {
                identity: Identity {
                    environment: text.clone(),
                    environment_version: numbers.3,
                    task: TaskKey::of(&text),
                    task_index: n_nodes,
                    group: GroupId(numbers.2),
                    member: numbers.3,
                    attempt: 1,
                    environment_seed: numbers.0,
                    sampling_seed: numbers.1,
                },
                renderer: text.clone(),
                sampling: vec![sampling, Sampling::greedy()],
                turns: turns.into_iter().map(turn).collect(),
                graph,
                outcome,
                solved: numbers.4,
                agent: AgentId(numbers.3 % 3),
                spawned_by: (numbers.3 % 3 > 0)
                    .then_some(SpawnedBy { agent: AgentId(0), node: NodeId(numbers.3) }),
            }
        })
}

fn written(trajectory: &Trajectory) -> String {
    let mut bytes = Vec::new();
    write_line(&mut bytes, trajectory).expect("memory takes what is written");
    String::from_utf8(bytes).expect("JSON is text")
}

/// What equality of floats would let through.
fn bits(trajectory: &Trajectory) -> Vec<(u32, Option<u32>)> {
    let of = |token: SampledToken| (token.logprob.to_bits(), token.advantage.map(f32::to_bits));
    trajectory.sampled().map(of).collect()
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(trajectory in trajectories()) {
        let line = written(&trajectory);
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert!(line.ends_with('\n'));
        let read = read_line(&line).expect("it was just written");
        prop_assert_eq!(bits(&read), bits(&trajectory));
        let rewards = |one: &Trajectory| -> Vec<_> {
            one.turns.iter().map(|turn| turn.reward.map(f64::to_bits)).collect()
        };
        prop_assert_eq!(rewards(&read), rewards(&trajectory));
        prop_assert_eq!(&read, &trajectory);
        prop_assert_eq!(written(&read), line);
    }

    /// Whatever a disk did to a line, it is refused or it is a trajectory one can work with.
    #[test]
    fn a_damaged_line_never_panics(
        trajectory in trajectories(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = written(&trajectory).into_bytes();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if is_cut {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(read) = read_line(&String::from_utf8_lossy(&bytes)) {
            work_with(&read);
        }
    }

    #[test]
    fn garbage_is_refused(text in any::<String>()) {
        prop_assert!(read_line(&text).is_err());
    }
}

/// Touches everything that could be out of bounds.
fn work_with(trajectory: &Trajectory) {
    for leaf in trajectory.graph.leaves() {
        assert!(!trajectory.graph.path_to(leaf).is_empty());
        let _ = trajectory.graph.ids_to(leaf);
    }
    for token in trajectory.sampled() {
        assert!(usize::from(token.sampling) < trajectory.sampling.len());
        assert!(token.logprob.is_finite() && token.logprob <= 0.0);
    }
    for edge in trajectory.graph.edges() {
        assert!(edge.to < edge.from);
    }
    trajectory.turn_nodes().for_each(drop);
    let _ = (trajectory.transcript(), trajectory.staleness(PolicyVersion(9)));
}

fn record() -> Value {
    let trajectory =
        Built::new(0).turn(vec![token(1, -0.5, 1.0), token(2, -0.25, 1.0)], 1.0).trajectory;
    serde_json::from_str(&written(&trajectory)).expect("it is JSON")
}

fn refused(change: impl Fn(&mut Value)) -> RecordError {
    let mut record = record();
    change(&mut record);
    read_line(&record.to_string()).expect_err("it cannot be")
}

#[test]
fn another_format_is_refused_by_its_number() {
    assert!(matches!(refused(|line| line["format"] = json!(2)), RecordError::Format { found: 2 }));
    assert!(matches!(refused(|line| line["format"] = Value::Null), RecordError::Json(_)));
}

#[test]
fn an_impossible_graph_is_refused() {
    type Change<'a> = &'a dyn Fn(&mut Value);

    fn node(line: &mut Value, number: usize) -> &mut Value {
        &mut line["graph"]["nodes"][number]
    }
    let edge = |from, to| json!([{"from": from, "to": to, "kind": "retry_of"}]);
    let graphs: [(&str, Change); 7] = [
        ("a parent that is the node itself", &|line| node(line, 1)["parent"] = json!(1)),
        ("a parent that comes later", &|line| node(line, 0)["parent"] = json!(2)),
        ("a parent outside", &|line| node(line, 2)["parent"] = json!(u32::MAX)),
        ("sampled tokens of the environment", &|line| {
            node(line, 1)["author"] = json!("environment");
        }),
        ("an edge to nowhere", &|line| line["graph"]["edges"] = edge(2, 9)),
        ("an edge to itself", &|line| line["graph"]["edges"] = edge(1, 1)),
        ("an edge forwards", &|line| line["graph"]["edges"] = edge(1, 2)),
    ];
    for (name, change) in graphs {
        assert!(matches!(refused(change), RecordError::Graph(_)), "{name}");
    }
    let positive = |line: &mut Value| columns(line)["logprobs"][0] = json!(0.5);
    assert!(matches!(refused(positive), RecordError::Graph(_)));
    assert!(matches!(
        refused(|line| line["turns"][0]["node"] = json!(3)),
        RecordError::Turn { turn: 0 }
    ));
    assert!(matches!(refused(|line| line["sampling"] = json!([])), RecordError::Sampling));
}

fn columns(line: &mut Value) -> &mut Value {
    &mut line["graph"]["nodes"][1]["spans"][1]["sampled"]
}

/// rollouts 13.3 on disk: columns that disagree, runs that do not fit, lengths nobody could allocate.
#[test]
fn columns_of_different_lengths_are_refused() {
    let runs = [
        json!([]),
        json!([[0, 1]]),
        json!([[0, 3]]),
        json!([[0, u64::MAX]]),
        json!([[0, u64::MAX], [0, 3]]),
        json!([[0, -2]]),
    ];
    for column in ["versions", "kv_versions", "sampling"] {
        for runs in &runs {
            let change = |line: &mut Value| columns(line)[column] = runs.clone();
            assert!(matches!(refused(change), RecordError::Json(_)), "{column} {runs}");
        }
    }
    for logprobs in [json!([]), json!([-0.5]), json!([-0.5, null]), json!([-0.5, -0.5, -0.5])] {
        let change = |line: &mut Value| columns(line)["logprobs"] = logprobs.clone();
        assert!(matches!(refused(change), RecordError::Json(_)), "{logprobs}");
    }
}
