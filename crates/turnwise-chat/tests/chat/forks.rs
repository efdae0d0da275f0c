//! Conversations with rewritten history.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use turnwise_chat::{ChatMl, ChatMlSettings, Thinking};
use turnwise_environment::{Action, Message, Observation, TaskKey, ToolSpec};
use turnwise_rollout::{
    Act, Agent, AgentError, AgentFactory, Bridged, ChatAgents, Compaction, EndedTurn, Policy,
    PolicyError, RenderError, Rendered, Renderer, Room, Said, Sample, SampleRequest,
};
use turnwise_trajectory::{
    Author, EdgeKind, GroupId, Identity, MessageGraph, NodeId, PolicyVersion, SampledToken, Span,
    StopReason, TokenId, TokenKind,
};

use crate::support::trained;

/// A policy with prescribed answers, which records its prompts.
#[derive(Default)]
struct Scripted {
    turns: Mutex<VecDeque<&'static str>>,
    exchanges: Mutex<Vec<Vec<TokenId>>>,
}

impl Scripted {
    fn new(turns: &[&'static str]) -> Self {
        Self { turns: Mutex::new(turns.iter().copied().collect()), ..Self::default() }
    }
}

#[async_trait]
impl Policy for Scripted {
    fn version(&self) -> PolicyVersion {
        PolicyVersion::default()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let turn = self.turns.lock().expect("a lock").pop_front().expect("a turn");
        let ids = trained().encode_with_markers(turn);
        let tokens = ids.iter().map(|id| SampledToken::new(*id, -0.5, PolicyVersion::default()));
        let is_closed = ids.last().is_some_and(|id| request.stop.contains(id));
        let seen = request.prompt.iter().chain(&ids).copied().collect();
        self.exchanges.lock().expect("a lock").push(seen);
        let stop = if is_closed { StopReason::EndOfTurn } else { StopReason::MaxTokens };
        Ok(Sample { tokens: tokens.collect(), stop, ..Sample::new("script") })
    }
}

fn agents(thinking: Thinking, compaction: Option<Compaction>) -> ChatAgents {
    let settings = ChatMlSettings { thinking, ..ChatMlSettings::default() };
    let renderer = Arc::new(ChatMl::new(trained(), settings).expect("it has the markers"));
    ChatAgents { compaction, ..ChatAgents::new(renderer) }
}

fn identity() -> Identity {
    Identity {
        environment: "test".to_owned(),
        environment_version: 1,
        task: TaskKey::of("test"),
        task_index: 0,
        group: GroupId(0),
        member: 0,
        attempt: 0,
        environment_seed: 1,
        sampling_seed: 2,
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}

/// Plays a conversation, through a snapshot before every turn, and returns the graph and the kinds of the turns.
fn play(agents: &ChatAgents, policy: &Scripted, said: &[Message]) -> (MessageGraph, Vec<bool>) {
    let mut agent: Box<dyn Agent> = agents.agent(&identity(), Vec::new());
    let mut asides = Vec::new();
    for message in said {
        agent.observe(&Observation::new(vec![message.clone()])).expect("it is rendered");
        loop {
            agent = agents.restore(agent.snapshot()).expect("a snapshot");
            let length = policy
                .turns
                .lock()
                .expect("a lock")
                .front()
                .map_or(1, |turn| trained().encode_with_markers(turn).len());
            let act = block_on(agent.act(policy, Room { turn: length, now: length }));
            match act.expect("it acts") {
                Act::Decided(_) => break asides.push(false),
                Act::Aside(_) => asides.push(true),
                Act::Interrupted => panic!("nothing interrupts"),
            }
        }
    }
    (agent.into_graph(), asides)
}

fn text(graph: &MessageGraph, leaf: NodeId) -> String {
    trained().decode(&graph.ids_to(leaf))
}

// Rollouts 13.1
fn assert_every_exchange_is_in_a_branch(graph: &MessageGraph, policy: &Scripted) {
    let branches: Vec<Vec<TokenId>> =
        graph.leaves().iter().map(|leaf| graph.ids_to(*leaf)).collect();
    for seen in policy.exchanges.lock().expect("a lock").iter() {
        assert!(
            branches.iter().any(|branch| branch.starts_with(seen)),
            "{}",
            trained().decode(seen)
        );
    }
}

const THINKING: [&str; 3] = [
    "<think>\nAdd.\n</think>\n\n8<|im_end|>",
    "<think>\nMore.\n</think>\n\n11<|im_end|>",
    "<think>\nEnd.\n</think>\n\n12<|im_end|>",
];

// Rollouts 5.6, 11.3, 11.16, 13.1, 13.15
#[test]
fn a_template_that_strips_thinking_forks_and_loses_nothing() {
    let policy = Scripted::new(&THINKING);
    let questions = [Message::user("3 + 5?"), Message::user("And 3?"), Message::user("And 1?")];
    let (graph, _) = play(&agents(Thinking::Follow, None), &policy, &questions);
    let leaves = graph.leaves();
    assert_eq!(leaves.len(), 3);
    assert_every_exchange_is_in_a_branch(&graph, &policy);
    let first = "<|im_start|>user\n3 + 5?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text(&graph, leaves[0]), format!("{first}{}", THINKING[0]));
    let second =
        format!("{first}8<|im_end|>\n<|im_start|>user\nAnd 3?<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(text(&graph, leaves[1]), format!("{second}{}", THINKING[1]));
    let third = format!(
        "{second}11<|im_end|>\n<|im_start|>user\nAnd 1?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(text(&graph, leaves[2]), format!("{third}{}", THINKING[2]));
    // Each sampled token is in the graph once, and the first question is shared.
    let n_drawn: usize =
        THINKING.iter().map(|turn| trained().encode_with_markers(turn).len()).sum();
    assert_eq!(graph.nodes().iter().flat_map(turnwise_trajectory::Node::sampled).count(), n_drawn);
    assert_eq!(graph.path_to(leaves[2])[0], graph.path_to(leaves[0])[0]);
    // In a later branch, the turn's author is the policy and its tokens are context.
    let again = graph.node(graph.path_to(leaves[2])[1]);
    assert_eq!((again.author, again.sampled().count()), (Author::Policy, 0));
    assert!(again.spans.iter().any(|span| span.kind() == TokenKind::Context));
}

// Rollouts 5.6, 13.15
#[test]
fn a_conversation_that_keeps_thinking_has_one_branch() {
    let policy = Scripted::new(&THINKING);
    let questions = [Message::user("3 + 5?"), Message::user("And 3?"), Message::user("And 1?")];
    let (graph, _) = play(&agents(Thinking::Keep, None), &policy, &questions);
    assert_eq!(graph.leaves().len(), 1);
    assert_every_exchange_is_in_a_branch(&graph, &policy);
}

// Rollouts 11.4: tools' answers continue the branch, and thoughts stay.
#[test]
fn a_cycle_of_tools_does_not_fork() {
    let policy = Scripted::new(&THINKING);
    let said =
        [Message::user("3 + 5?"), Message::tool("call_0", "8"), Message::tool("call_0", "9")];
    let (graph, _) = play(&agents(Thinking::Follow, None), &policy, &said);
    assert_eq!(graph.leaves().len(), 1);
    assert_every_exchange_is_in_a_branch(&graph, &policy);
}

// Rollouts 11.6
#[test]
fn a_turn_without_a_close_is_closed_by_force_in_both_modes() {
    for thinking in [Thinking::Keep, Thinking::Follow] {
        let policy = Scripted::new(&["8", "9<|im_end|>"]);
        let (graph, _) =
            play(&agents(thinking, None), &policy, &[Message::user("a"), Message::user("b")]);
        assert_eq!(graph.leaves().len(), 1);
        let spans = &graph.node(NodeId(1)).spans;
        assert_eq!(spans.last(), Some(&Span::Forced(trained().encode_with_markers("<|im_end|>"))));
        assert_eq!(graph.node(NodeId(1)).sampled().count(), 1);
    }
}

// Rollouts 11.8: a turn that did not end as the template writes it is trimmed for the next prompt, in a new branch; the
// row keeps the sampled tokens.
#[test]
fn another_stop_token_is_not_in_the_next_prompt_of_a_followed_template() {
    let policy = Scripted::new(&["8<|endoftext|>", "9<|im_end|>"]);
    let (graph, _) =
        play(&agents(Thinking::Follow, None), &policy, &[Message::user("a"), Message::user("b")]);
    let leaves = graph.leaves();
    assert_eq!(leaves.len(), 2);
    assert!(text(&graph, leaves[0]).ends_with("8<|endoftext|>"));
    assert!(!text(&graph, leaves[1]).contains("<|endoftext|>"));
    assert_every_exchange_is_in_a_branch(&graph, &policy);
}

// Rollouts 5.7, 11.25
#[test]
fn a_long_conversation_goes_on_from_a_summary_that_trains() {
    let compaction = Compaction { at_tokens: 90, prompt: "Sum up.".to_owned() };
    let policy = Scripted::new(&["8<|im_end|>", "It was 8.<|im_end|>", "9<|im_end|>"]);
    let said = [Message::user("start"), Message::user("go on ".repeat(30))];
    let (graph, asides) = play(&agents(Thinking::Keep, Some(compaction)), &policy, &said);
    assert_eq!(asides, [false, true, false]);
    assert_every_exchange_is_in_a_branch(&graph, &policy);
    let leaves = graph.leaves();
    assert_eq!(leaves.len(), 2);
    let old = text(&graph, leaves[0]);
    assert!(
        old.ends_with("Sum up.<|im_end|>\n<|im_start|>assistant\nIt was 8.<|im_end|>"),
        "{old}"
    );
    assert!(graph.node(leaves[0]).sampled().count() > 0);
    let new = graph.path_to(leaves[1]);
    let head = "<|im_start|>user\nstart<|im_end|>\n<|im_start|>user\nIt was 8.<|im_end|>\n<|im_start|>user\ngo on ";
    assert!(text(&graph, leaves[1]).starts_with(head));
    assert_eq!(new[0], graph.path_to(leaves[0])[0]);
    let kinds: Vec<_> = graph.edges().iter().map(|edge| (edge.from, edge.to, edge.kind)).collect();
    let old = graph.path_to(leaves[0]);
    let expected =
        [(leaves[0], old[1], EdgeKind::Summarises), (new[1], leaves[0], EdgeKind::CompactedFrom)];
    assert_eq!(kinds, expected);
    assert_eq!(graph.node(new[1]).sampled().count(), 0);
    graph.validate().expect("a graph that can be");
}

/// Each message that the model saw in part is counted once, on whatever branches it stands; the task is whole.
#[test]
fn shortened_messages_are_counted_once_each() {
    let long = "go on ".repeat(60);
    let said =
        [Message::user(&*long), Message::tool("call_0", "8"), Message::tool("call_0", &*long)];
    let said = [&said[..], &[Message::user(&*long), Message::user("And 1?")]].concat();
    let turns = ["<think>\na\n</think>\n\n8<|im_end|>"; 5];
    for (thinking, n_leaves) in [(Thinking::Keep, 1), (Thinking::Follow, 3)] {
        for (limit, n_shortened) in [(8192, 0), (60, 2)] {
            let settings = ChatMlSettings {
                thinking,
                max_observation_tokens: limit,
                ..ChatMlSettings::default()
            };
            let renderer = Arc::new(ChatMl::new(trained(), settings).expect("the markers"));
            let policy = Scripted::new(&turns);
            let (graph, _) = play(&ChatAgents::new(renderer), &policy, &said);
            assert_eq!(graph.leaves().len(), n_leaves, "{thinking:?}");
            let shortened = graph.shortened().iter().map(|id| &graph.node(*id).message);
            let shortened: Vec<&Message> = shortened.collect();
            assert_eq!(shortened, said[2..4].iter().take(n_shortened).collect::<Vec<_>>());
            graph.validate().expect("a graph that can be");
        }
    }
}

/// A renderer that forgets the last message.
struct Forgetful(ChatMl);

impl Renderer for Forgetful {
    fn fingerprint(&self) -> &'static str {
        "forgetful"
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let mut rendered = self.0.render(conversation, tools)?;
        rendered.messages.pop();
        Ok(rendered)
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
        self.0.parse(turn, tools)
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

// Rollouts 13.15: an error instead of a panic.
#[test]
fn a_renderer_that_loses_a_message_is_an_error() {
    let chat = ChatMl::new(trained(), ChatMlSettings::default()).expect("it has the markers");
    let renderer = Arc::new(Forgetful(chat));
    let agents = ChatAgents::new(renderer);
    let mut agent = agents.agent(&identity(), Vec::new());
    let error = agent.observe(&"Hi".into()).expect_err("a message is missing");
    assert!(matches!(error, AgentError::Render(_)), "{error}");
}
