//! What is written is what is read, and what cannot be is refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise_environment::{Message, Role, Seat, TaskKey, ToolCall};
use turnwise_trajectory::{
    AgentFault, Author, CancelReason, Edge, EdgeKind, GroupId, Identity, InfraFault, InfraReason,
    Limit, MaskReason, MessageGraph, Node, NodeId, Outcome, PolicyVersion, RecordError,
    SampledToken, SampledTokens, Sampling, Score, Span, StopReason, Trajectory, Turn, read_line,
    write_line,
};

use turnwise_testkit::{Built, scored_token as token};

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
            graph.ids().step_by(2).skip(n_nodes % 2).for_each(|id| graph.mark_shortened(id));
            let turn = |(node, reward, faults, seconds)| Turn {
                node: NodeId((node % n_nodes) as u32),
                stop: StopReason::MaxTokens,
                reward,
                score: (faults % 3 == 0).then(|| Score { rubric: text.clone(), value: reward }),
                penalty: (faults % 5 > 0).then_some(seconds),
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
                seat: Seat(numbers.3 % 3),
                others: Vec::new(),
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
    assert!(matches!(refused(|line| line["format"] = json!(3)), RecordError::Format { found: 3 }));
    assert!(matches!(refused(|line| line["format"] = Value::Null), RecordError::Json(_)));
}

#[test]
fn an_impossible_graph_is_refused() {
    type Change<'a> = &'a dyn Fn(&mut Value);

    fn node(line: &mut Value, number: usize) -> &mut Value {
        &mut line["graph"]["nodes"][number]
    }
    let edge = |from, to| json!([{"from": from, "to": to, "kind": "summarises"}]);
    let graphs: [(&str, Change); 9] = [
        ("a parent that is the node itself", &|line| node(line, 1)["parent"] = json!(1)),
        ("a parent that comes later", &|line| node(line, 0)["parent"] = json!(2)),
        ("a parent outside", &|line| node(line, 2)["parent"] = json!(u32::MAX)),
        ("sampled tokens of the environment", &|line| {
            node(line, 1)["author"] = json!("environment");
        }),
        ("an edge to nowhere", &|line| line["graph"]["edges"] = edge(2, 9)),
        ("an edge to itself", &|line| line["graph"]["edges"] = edge(1, 1)),
        ("an edge forwards", &|line| line["graph"]["edges"] = edge(1, 2)),
        ("a shortened node outside", &|line| line["graph"]["shortened"] = json!([1, 9])),
        ("a node shortened twice", &|line| line["graph"]["shortened"] = json!([1, 1])),
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

/// Rollouts 13.3 and 11.7 on disk: columns that disagree, runs that do not fit, lengths nobody could allocate.
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

/// What can be done to sampled tokens.
#[derive(Clone, Debug)]
enum Change {
    Push(SampledToken),
    Score(usize, usize, Option<f32>),
    MaskOlderThan(u32, MaskReason),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let score = (0_usize..20, 0_usize..20, prop::option::of(finite_f32()));
    let reason = prop::sample::select(vec![MaskReason::Stale, MaskReason::User]);
    let change = prop_oneof![
        3 => sampled().prop_map(Change::Push),
        1 => score.prop_map(|(from, to, advantage)| Change::Score(from, to, advantage)),
        1 => (0_u32..4, reason).prop_map(|(version, reason)| Change::MaskOlderThan(version, reason)),
    ];
    prop::collection::vec(change, 0..30)
}

proptest! {
    // Rollouts 13.3, 13.7: columns are what an array of tokens would be; only mask and advantage ever change.
    #[test]
    fn columns_are_an_array_of_tokens(changes in changes()) {
        let (mut columns, mut array) = (SampledTokens::default(), Vec::<SampledToken>::new());
        let n_pushed = changes.iter().filter(|one| matches!(one, Change::Push(_))).count();
        for change in changes {
            match change {
                Change::Push(token) => {
                    columns.push(token);
                    array.push(token);
                }
                Change::Score(from, to, advantage) => {
                    let to = to.min(array.len());
                    let range = from.min(to)..to;
                    columns.set_advantage_in(range.clone(), advantage);
                    array[range].iter_mut().for_each(|token| token.advantage = advantage);
                }
                Change::MaskOlderThan(version, reason) => {
                    let is_old = |token: &SampledToken| token.version < PolicyVersion(version);
                    columns.mask_where(reason, is_old);
                    for token in array.iter_mut().filter(|token| is_old(token)) {
                        token.mask.get_or_insert(reason);
                    }
                }
            }
        }
        prop_assert_eq!(columns.len(), n_pushed);
        prop_assert_eq!(columns.iter().collect::<Vec<_>>(), array.clone());
        prop_assert_eq!((0..array.len()).map(|index| columns.get(index)).collect::<Vec<_>>(), array.clone());
        prop_assert_eq!(columns.ids(), array.iter().map(|token| token.id).collect::<Vec<_>>());
        prop_assert_eq!(columns.logprobs(), array.iter().map(|token| token.logprob).collect::<Vec<_>>());
        // However it was made, the same content is the same value and the same bytes.
        let rebuilt: SampledTokens = array.into();
        prop_assert_eq!(&rebuilt, &columns);
        let json = serde_json::to_string(&columns).expect("plain data");
        prop_assert_eq!(&serde_json::to_string(&rebuilt).expect("plain data"), &json);
        prop_assert_eq!(serde_json::from_str::<SampledTokens>(&json).expect("just written"), columns);
    }

    // Optional columns come back, cost nothing where they are absent, and never disagree in length.
    #[test]
    fn optional_columns_are_kept(
        tokens in prop::collection::vec((sampled(), any::<bool>()), 1..8),
        has_reference in any::<bool>(),
    ) {
        let mut columns = SampledTokens::default();
        for (token, is_truncated) in &tokens {
            if *is_truncated {
                columns.push_kept(*token, &[token.id, token.id ^ 1]);
            } else {
                columns.push(*token);
            }
        }
        if has_reference {
            columns.set_reference_logprobs(vec![-1.5; tokens.len()]);
        }
        let json = serde_json::to_string(&columns).expect("plain data");
        prop_assert_eq!(json.contains("reference_logprobs"), has_reference);
        let has_kept = tokens.iter().any(|(_, is_truncated)| *is_truncated);
        prop_assert_eq!(json.contains("kept"), has_kept);
        let read: SampledTokens = serde_json::from_str(&json).expect("just written");
        for (index, (token, is_truncated)) in tokens.iter().enumerate() {
            let kept = [token.id, token.id ^ 1];
            prop_assert_eq!(read.kept(index), is_truncated.then_some(kept.as_slice()));
        }
        prop_assert_eq!(&read, &columns);
        columns.push(tokens[0].0);
        prop_assert_eq!(columns.reference_logprobs(), None, "it was of other tokens");
        prop_assert_eq!(columns.kept(tokens.len()), None);
    }
}

// Rollouts 13.3: optional columns that disagree, or a kept set that cannot have drawn its token.
#[test]
fn impossible_optional_columns_are_refused() {
    let impossible = [
        ("reference_logprobs", json!([-0.5])),
        ("kept", json!([[1]])),
        ("kept", json!([[1], [1]])),
        ("unheard_of", json!([])),
    ];
    for (column, values) in impossible {
        let change = |line: &mut Value| columns(line)[column] = values.clone();
        assert!(matches!(refused(change), RecordError::Json(_)), "{column} {values}");
    }
}

/// As written before tokens were columns in memory, before seats and before weight digests.
const OLD_LINE: &str = concat!(
    r#"{"format":1,"identity":{"environment":"built","environment_version":1,"task":"#,
    r#"TASK,"task_index":0,"group":0,"member":0,"attempt":0,"environment_seed":0,"#,
    r#""sampling_seed":0},"renderer":"built","sampling":[{"temperature":1.0,"top_p":1.0,"#,
    r#""top_k":0,"min_p":0.0}],"graph":{"nodes":[{"parent":null,"author":"environment","#,
    r#""message":{"role":"user","content":""},"spans":[{"context":[7,8]}]},{"parent":0,"#,
    r#""author":"policy","message":{"role":"assistant","content":""},"spans":[{"scaffold":[5]},"#,
    r#"{"sampled":{"ids":[1,2],"logprobs":[-0.5,-0.25],"versions":[[0,2]],"#,
    r#""kv_versions":[[0,2]],"sampling":[[0,2]],"advantages":[[1.0,2]]}}]},{"parent":1,"#,
    r#""author":"environment","message":{"role":"user","content":""},"spans":[{"context":[9]}]}]},"#,
    r#""turns":[{"node":1,"stop":"end_of_turn","reward":1.0,"faults":0,"seconds":0.0,"#,
    r#""engine":"built"}],"outcome":"done","solved":false}"#,
    "\n"
);

// Records of format 1 are read as before, and written with nothing changed but the format's number.
#[test]
fn records_written_before_columns_are_read_and_written_alike() {
    let task = serde_json::to_string(&TaskKey::of("built")).expect("plain data");
    let line = OLD_LINE.replace("TASK", &task);
    let read = read_line(&line).expect("an old record is a record");
    let built = Built::new(0).turn(vec![token(1, -0.5, 1.0), token(2, -0.25, 1.0)], 1.0).trajectory;
    assert_eq!(read, built);
    assert_eq!(written(&read), line.replace("{\"format\":1,", "{\"format\":2,"));
}

// In format 1, the reward of a turn was the sum of the environment's, the rubric's and the trainer's parts.
#[test]
fn the_parts_of_an_old_reward_are_read_apart() {
    let task = serde_json::to_string(&TaskKey::of("built")).expect("plain data");
    let line = OLD_LINE.replace("TASK", &task);
    let with = |reward: &str, score: &str| {
        let new = format!("\"reward\":{reward},\"score\":{score}");
        let read = read_line(&line.replace("\"reward\":1.0", &new)).expect("an old record");
        let turn = read.turns[0].clone();
        assert_eq!(read.reward(), turn.total_reward());
        (turn.reward, turn.score.and_then(|score| score.value), turn.penalty)
    };
    let by_rubric = r#"{"rubric":"brevity","value":0.25,"before":1.0}"#;
    assert_eq!(with("1.25", by_rubric), (Some(1.0), Some(0.25), None));
    let by_trainer = r#"{"rubric":"admission","value":-0.5,"before":1.0}"#;
    assert_eq!(with("0.5", by_trainer), (Some(1.0), None, Some(-0.5)));
    let unscored = r#"{"rubric":"brevity","value":null,"before":null}"#;
    assert_eq!(with("null", unscored), (None, None, None));
}

/// Five turns of 200 tokens by one version, scored turn by turn, without masks.
fn typical() -> Trajectory {
    let turn = |built: Built, turn: u32| {
        let drawn = (0..200).map(|place| {
            let logprob = -(turnwise_rollout::uniform_at(u64::from(turn), place) as f32);
            let advantage = Some(turn as f32 * 0.25 - 0.5);
            let id = (place * 977 % 50_000) as u32;
            SampledToken { advantage, ..SampledToken::new(id, logprob, PolicyVersion(3)) }
        });
        built.turn(drawn.collect(), 1.0)
    };
    let mut trajectory = (0..5).fold(Built::new(0), turn).trajectory;
    for id in trajectory.graph.ids().collect::<Vec<_>>() {
        trajectory.graph.node_mut(id).sampled_mut().for_each(SampledTokens::shrink_to_fit);
    }
    trajectory
}

// A token costs its id, its log-probability, and little else.
#[test]
fn a_sampled_token_is_small_in_memory_and_on_disk() {
    let trajectory = typical();
    let n = trajectory.n_sampled() as f64;
    let bytes: usize = trajectory.sampled_spans().map(SampledTokens::memory_bytes).sum();
    let array = size_of::<SampledToken>();
    let line = written(&trajectory).len();
    println!(
        "memory {:.2} bytes a token (as an array {array}), record {line} bytes, {:.2} a token",
        bytes as f64 / n,
        line as f64 / n
    );
    assert!(bytes as f64 / n < 9.5, "{bytes} bytes");
    assert!((line as f64 / n) < 22.0, "{line} bytes");
}
