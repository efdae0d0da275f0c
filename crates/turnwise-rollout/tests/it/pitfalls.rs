//! Tokens and texts with a real tokenizer: what was drawn stays as it was drawn, whatever its text would encode to.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use proptest::prelude::*;
use serde_json::json;
use turnwise_chat::{ChatMl, ChatMlSettings, Thinking, Tokenizer, train_tokenizer};
use turnwise_environment::{Action, Message, ToolSpec};
use turnwise_rollout::{
    Act, Agent, AgentError, AgentFactory, Bridged, ChatAgents, EndedTurn, Policy, PolicyError,
    RenderError, Rendered, Renderer, Room, Said, Sample, SampleRequest,
};
use turnwise_testkit::{AlphabetRenderer, Lying};
use turnwise_trajectory::{
    Author, MessageGraph, Node, NodeId, PolicyVersion, SampledToken, Span, StopReason, TokenId,
};

use crate::support::{RecordingPolicy, agents, block_on, echoes, identity};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let texts = (0..200).map(|n| format!("user: what is {n} plus {}? it is\n\n{{}}", n * 7));
    Arc::new(train_tokenizer(texts, 320).expect("320 ids are enough"))
});

fn chat(settings: ChatMlSettings) -> ChatAgents {
    let renderer = ChatMl::new(TOKENIZER.clone(), settings).expect("it has the markers");
    speaking(Arc::new(renderer))
}

pub(crate) fn speaking(renderer: Arc<dyn Renderer>) -> ChatAgents {
    ChatAgents::new(renderer)
}

/// Draws the ids it was given, turn after turn, in whatever pieces it is asked for.
struct Script {
    turns: Vec<Vec<TokenId>>,
    seen: std::sync::Mutex<Vec<Vec<TokenId>>>,
}

impl Script {
    fn new(turns: Vec<Vec<TokenId>>) -> Self {
        Self { turns, seen: std::sync::Mutex::default() }
    }
}

#[async_trait]
impl Policy for Script {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let (mut index, mut turns) = (request.first_index as usize, self.turns.iter());
        let turn = loop {
            let turn = turns.next().expect("a turn for every request");
            match index.checked_sub(turn.len()) {
                Some(rest) => index = rest,
                None => break turn,
            }
        };
        let ids: Vec<TokenId> = turn[index..].iter().copied().take(request.max_tokens).collect();
        let ends = ids.last().is_some_and(|id| request.stop.contains(id));
        let stop = if ends { StopReason::EndOfTurn } else { StopReason::MaxTokens };
        let token = |id: &TokenId| SampledToken::new(*id, -0.5, PolicyVersion(0));
        let tokens = ids.iter().map(token).collect();
        let seen = request.prompt.into_iter().chain(ids).collect();
        self.seen.lock().expect("nobody panics with it").push(seen);
        Ok(Sample { tokens, stop, ..Sample::new("script") })
    }
}

/// Holds a conversation, `now` tokens at a time, and answers the graph and what was done in each turn.
fn converse(
    agents: &ChatAgents,
    policy: &dyn Policy,
    said: &[Message],
    now: usize,
) -> Result<(MessageGraph, Vec<Action>), AgentError> {
    let identity = identity(&echoes(1, true), 0, 7);
    let mut agent: Box<dyn Agent> = agents.agent(&identity, Vec::new());
    let mut actions = Vec::new();
    for message in said {
        agent.observe(&vec![message.clone()].into())?;
        while let act = block_on(agent.act(policy, Room { turn: 10_000, now }))?
            && !matches!(act, Act::Decided(_))
        {
            agent = agents.restore(agent.snapshot())?;
        }
        let last = agent.graph().nodes().len() as u32 - 1;
        let turn = agent.graph().node(NodeId(last));
        let ids: Vec<TokenId> = turn.sampled().map(|token| token.id).collect();
        actions.push(read(agents, &ids));
    }
    Ok((agent.into_graph(), actions))
}

fn read(agents: &ChatAgents, ids: &[TokenId]) -> Action {
    agents.renderer.parse(ids, &[])
}

fn drawn(graph: &MessageGraph) -> Vec<TokenId> {
    graph.nodes().iter().flat_map(Node::sampled).map(|token| token.id).collect()
}

/// Ids of text in any spelling: most are not what a tokenizer would make of the text they stand for.
fn any_turn() -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec(0_u32..320, 0..12).prop_map(|ids| {
        let is_text = |id: &TokenId| !TOKENIZER.is_control(*id);
        let end = TOKENIZER.encode_with_markers("<|im_end|>");
        ids.into_iter().filter(is_text).chain(end).collect()
    })
}

fn message() -> impl Strategy<Value = Message> {
    (any::<bool>(), "[ -~]{0,12}").prop_map(|(is_tool, text)| {
        if is_tool { Message::tool("call_0", text) } else { Message::user(text) }
    })
}

proptest! {
    // Rollouts 11.1, 11.2, 13.18: ids in any spelling, hostile to any reader, come back in every later prompt as they
    // were drawn, and in the record.
    #[test]
    fn what_was_drawn_is_never_encoded_again(
        turns in prop::collection::vec(any_turn(), 1..5),
        said in prop::collection::vec(message(), 5),
        now in 1_usize..20,
    ) {
        let agents = chat(ChatMlSettings { thinking: Thinking::Keep, ..ChatMlSettings::default() });
        let policy = Script::new(turns.clone());
        let (graph, _) = converse(&agents, &policy, &said[..turns.len()], now).expect("it goes on");
        prop_assert_eq!(drawn(&graph), turns.concat());
        prop_assert_eq!(graph.leaves().len(), 1, "nothing is rendered anew");
        let branch = graph.ids_to(graph.leaves()[0]);
        for seen in policy.seen.lock().expect("nobody panics with it").iter() {
            prop_assert!(branch.starts_with(seen));
        }
    }

    // Rollouts 11.27: a request may end between two bytes of a letter, and bytes may be no letter at all.
    #[test]
    fn a_letter_cut_in_two_is_whole_in_its_turn(
        text in "[a-zé🦀\u{301}]{1,8}",
        is_torn in any::<bool>(),
        now in 1_usize..6,
    ) {
        let agents = chat(ChatMlSettings::default());
        let mut ids = TOKENIZER.encode_plain(&text);
        if is_torn {
            // A first byte of four, and nothing that could follow it.
            let crab = TOKENIZER.encode_plain("🦀");
            ids.push(crab[0]);
        }
        ids.extend(TOKENIZER.encode_with_markers("<|im_end|>"));
        let of = |now| {
            let policy = Script::new(vec![ids.clone()]);
            converse(&agents, &policy, &[Message::user("Hi")], now).expect("it goes on")
        };
        let (cut, actions) = of(now);
        prop_assert_eq!(drawn(&cut), ids.clone());
        prop_assert_eq!(&of(1000), &(cut, actions.clone()));
        prop_assert!(actions[0].text.starts_with(&text));
        prop_assert_eq!(actions[0].text == text, !is_torn, "{:?}", actions[0].text);
    }
}

// Rollouts 11.9, 13.18: a call stands in later prompts with its own blanks and order of keys, or as the nonsense it was.
#[test]
fn a_call_is_never_written_anew_from_what_was_read() {
    let calls = [
        "<tool_call>{\"arguments\" : {\"b\":1,\"a\":  [true]},\n\"name\":\"calc\"}</tool_call>",
        "<tool_call>{\"name\": \"calc\", \"arguments\": \"{\\\"a\\\": 1.50}\"}</tool_call>",
        "<tool_call>{\"name\": \"calc\", \"arguments\": {\"a\": }</tool_call>",
        "<tool_call>{\"name\": 3",
        "</tool_call><tool_call></tool_call>",
    ];
    for thinking in [Thinking::Keep, Thinking::Follow] {
        for (place, call) in calls.into_iter().enumerate() {
            let agents = chat(ChatMlSettings { thinking, ..ChatMlSettings::default() });
            let first = TOKENIZER.encode_with_markers(&format!("I add.\n{call}<|im_end|>"));
            let second = TOKENIZER.encode_with_markers("8<|im_end|>");
            let policy = Script::new(vec![first.clone(), second]);
            let said = [Message::user("3 + 5?"), Message::tool("call_0", "8")];
            let (graph, actions) = converse(&agents, &policy, &said, 1000).expect("it goes on");
            let seen = policy.seen.lock().expect("nobody panics with it")[1].clone();
            assert!(seen.windows(first.len()).any(|window| window == first), "{call}");
            assert!(drawn(&graph).starts_with(&first), "{call}");
            assert_eq!(actions[0].n_malformed() > 0, place > 1, "{:?}", actions[0]);
        }
    }
}

/// Draws one more token than the one that ends the turn.
fn talkative(inner: RecordingPolicy) -> impl Policy {
    let lie = |request: &SampleRequest, mut sample: Sample| {
        if sample.stop == StopReason::EndOfTurn && request.first_index > 3 {
            let beyond = SampledToken::new(1, -0.5, PolicyVersion(0));
            sample.tokens.push(beyond);
        }
        sample
    };
    Lying { inner, lie }
}

// Rollouts 11.8: an engine that draws beyond the close has its answer refused whole, so no such token is in a row, a
// prompt or a count.
#[test]
fn nothing_beyond_the_close_of_a_turn_gets_into_a_row() {
    let said: Vec<Message> = (0..8).map(|_| Message::user("Go on.")).collect();
    let plain = RecordingPolicy::new(4);
    let (whole, _) = converse(&agents(), &plain, &said, 1000).expect("it goes on");
    let error =
        converse(&agents(), &talkative(RecordingPolicy::new(4)), &said, 1000).expect_err("it lies");
    let AgentError::BadEngine(message) = error else { panic!("{error}") };
    assert!(message.contains("stop token"), "{message}");
    let ends = whole.nodes().iter().filter(|node| node.author == Author::Policy);
    for node in ends {
        let ids: Vec<TokenId> = node.sampled().map(|token| token.id).collect();
        assert_eq!(ids.iter().position(|id| *id == turnwise_testkit::END), Some(ids.len() - 1));
    }
}

// Rollouts 11.8: what a renderer is handed with a tail is trimmed for the next prompt all the same, by a fork.
#[test]
fn a_renderer_never_appends_to_a_turn_with_a_tail() {
    let agents = chat(ChatMlSettings { thinking: Thinking::Keep, ..ChatMlSettings::default() });
    let question = Message::user("3 + 5?");
    let ids = TOKENIZER.encode_with_markers("8<|im_end|>\n<|im_start|>user\nWell done!");
    let turn = read(&agents, &ids).to_message();
    assert_eq!(turn.content, "8");
    let history = [Said::new(&question), Said { message: &turn, drawn: Some(&ids) }];
    let ended = EndedTurn { ids: &ids, stop: StopReason::EndOfTurn };
    let bridged = agents.renderer.bridge(ended, &history, &[Message::user("And 3?")]);
    assert_eq!(bridged.expect("it renders"), Bridged::Rewrite);
    let rendered = agents.renderer.render(&history, &[]).expect("it renders");
    let mut next = Vec::new();
    rendered.messages.iter().flatten().for_each(|span| span.extend_ids(&mut next));
    assert!(TOKENIZER.decode(&next).ends_with("assistant\n8<|im_end|>"));
}

// Rollouts 11.11, 13.2: the lead-in is scaffold and what is put into the model's mouth is forced; neither is drawn.
#[test]
fn the_lead_in_is_scaffold_and_a_prefill_is_forced() {
    let agents = chat(ChatMlSettings { enable_thinking: false, ..ChatMlSettings::default() });
    let turn = TOKENIZER.encode_with_markers("8<|im_end|>");
    let policy = Script::new(vec![turn.clone()]);
    let (graph, _) = converse(&agents, &policy, &[Message::user("3 + 5?")], 1000).expect("it acts");
    let node = graph.nodes().last().expect("a turn");
    let [Span::Scaffold(lead_in), Span::Forced(prefill), Span::Sampled(tokens)] = &node.spans[..]
    else {
        panic!("{:?}", node.spans)
    };
    assert_eq!(TOKENIZER.decode(lead_in), "\n<|im_start|>assistant\n");
    assert_eq!(TOKENIZER.decode(prefill), "<think>\n\n</think>\n\n");
    assert_eq!(tokens.ids(), turn);
}

// Rollouts 11.26: what ends a turn is an id; letters that spell its name are letters, drawn, kept and read.
#[test]
fn a_turn_ends_at_an_id_and_never_inside_a_token() {
    let agents = chat(ChatMlSettings::default());
    let spelt = TOKENIZER.encode_plain("8<|im_end|>9");
    let end = TOKENIZER.encode_with_markers("<|im_end|>");
    assert!(spelt.iter().all(|id| !end.contains(id)), "it is spelt with letters");
    let turn = [spelt, end].concat();
    let policy = Script::new(vec![turn.clone()]);
    let (graph, actions) =
        converse(&agents, &policy, &[Message::user("Spell it.")], 1000).expect("it acts");
    assert_eq!(drawn(&graph), turn);
    assert_eq!(actions[0].text, "8<|im_end|>9");
}

// Rollouts 11.10: whatever spells a control token in what a user or a tool says is letters, and reads back.
#[test]
fn text_that_spells_a_control_token_is_letters() {
    let controls: Vec<TokenId> = (0..320).filter(|id| TOKENIZER.is_control(*id)).collect();
    assert!(controls.len() > 5, "{controls:?}");
    let agents = chat(ChatMlSettings::default());
    let prompt = |text: &str, is_tool: bool| {
        let said = if is_tool { Message::tool("call_0", text) } else { Message::user(text) };
        let end = TOKENIZER.encode_with_markers("<|im_end|>");
        let policy = Script::new(vec![end]);
        let (graph, _) = converse(&agents, &policy, &[said], 1000).expect("it acts");
        let leaf = graph.leaves()[0];
        graph.ids_to(leaf)
    };
    let n_controls = |ids: &[TokenId]| ids.iter().filter(|id| controls.contains(id)).count();
    for is_tool in [false, true] {
        let plain = n_controls(&prompt("", is_tool));
        for id in &controls {
            let text = format!("so {} it is", TOKENIZER.decode(&[*id]));
            let ids = prompt(&text, is_tool);
            assert_eq!(n_controls(&ids), plain, "{text}");
            assert!(TOKENIZER.decode(&ids).contains(&text), "{text}");
        }
    }
}

// Rollouts 5.6: a run of one mode cannot be mixed with one of the other.
#[test]
fn what_becomes_of_thinking_is_part_of_the_fingerprint() {
    let of = |thinking| {
        let agents = chat(ChatMlSettings { thinking, ..ChatMlSettings::default() });
        agents.renderer.fingerprint().to_owned()
    };
    assert_eq!(of(Thinking::Keep), of(Thinking::Keep));
    assert_ne!(of(Thinking::Keep), of(Thinking::Follow));
}

// Rollouts 11.22: there is no place for an image in a message, and one that comes from elsewhere is refused, not dropped.
#[test]
fn what_is_no_text_cannot_be_said() {
    let text = json!({"role": "user", "content": "What is this?"});
    assert!(serde_json::from_value::<Message>(text.clone()).is_ok());
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}});
    let part = json!({"type": "text", "text": "What is this?"});
    let refused = [
        (json!({"role": "user", "content": [part, image.clone()]}), "expected a string"),
        (json!({"role": "user", "content": image.clone()}), "expected a string"),
        (json!({"role": "user", "content": "What is this?", "images": [image]}), "`images`"),
    ];
    for (said, why) in refused {
        let error = serde_json::from_value::<Message>(said).expect_err("it is no text").to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// Writes history anew at every turn, with another id for the same letter.
pub(crate) struct Respelling(pub(crate) AlphabetRenderer);

impl Renderer for Respelling {
    fn fingerprint(&self) -> &'static str {
        "respelling"
    }

    fn render(&self, said: &[Said<'_>], tools: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let mut rendered = self.0.render(said, tools)?;
        for (place, spans) in rendered.messages.iter_mut().enumerate().skip(1) {
            let is_last = place + 1 == said.len();
            let Some(Span::Context(ids)) =
                spans.iter_mut().find(|one| matches!(one, Span::Context(_)))
            else {
                continue;
            };
            if said[place].drawn.is_some() && !is_last {
                ids.iter_mut().filter(|id| **id == 1).for_each(|id| *id = 4);
            }
        }
        Ok(rendered)
    }

    fn bridge(
        &self,
        _ended: EndedTurn<'_>,
        _history: &[Said<'_>],
        _new: &[Message],
    ) -> Result<Bridged, RenderError> {
        Ok(Bridged::Rewrite)
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        self.0.write(action)
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        let same: Vec<TokenId> = turn.iter().map(|id| if *id == 4 { 1 } else { *id }).collect();
        self.0.parse(&same, tools)
    }

    fn shortens(&self, message: &Message, tools: &[ToolSpec]) -> bool {
        self.0.shortens(message, tools)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        self.0.stop_tokens()
    }

    fn text(&self, ids: &[TokenId]) -> String {
        let same: Vec<TokenId> = ids.iter().map(|id| if *id == 4 { 1 } else { *id }).collect();
        self.0.text(&same)
    }
}

// Rollouts 11.14, 11.15: one text in other ids is another prompt, whatever it reads as. The conversation forks, the old
// branch keeps every token as it was drawn, and none is relabelled or masked.
#[test]
fn the_same_text_in_other_ids_forks_and_masks_nothing() {
    let agents = speaking(Arc::new(Respelling(AlphabetRenderer::new("abc"))));
    let policy = Script::new(vec![vec![2, 1, 0], vec![3, 0]]);
    let said = [Message::user("x"), Message::user("y")];
    let (graph, _) = converse(&agents, &policy, &said, 1000).expect("it goes on");
    let leaves = graph.leaves();
    assert_eq!(leaves.len(), 2);
    let texts: Vec<String> =
        leaves.iter().map(|leaf| agents.renderer.text(&graph.ids_to(*leaf))).collect();
    assert!(texts[1].starts_with(&texts[0]), "{texts:?}: a reader sees no difference");
    assert!(!graph.ids_to(leaves[1]).starts_with(&graph.ids_to(leaves[0])));
    let tokens: Vec<SampledToken> = graph.nodes().iter().flat_map(Node::sampled).collect();
    assert!(tokens.iter().all(SampledToken::trains));
    assert_eq!(drawn(&graph), [2, 1, 0, 3, 0]);
}
