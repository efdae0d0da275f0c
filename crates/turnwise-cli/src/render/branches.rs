//! A conversation as a message graph: rendered as a whole, or played turn by turn to show where history is rewritten.

use std::collections::BTreeMap;

use async_trait::async_trait;
use turnwise_chat::parse_turn;
use turnwise_environment::{Action, CallAttempt, Message, Observation, Role, TaskKey};
use turnwise_rollout::{
    AgentFactory, ChatAgents, Policy, PolicyError, Room, Said, Sample, SampleRequest,
};
use turnwise_trajectory::{
    Author, GroupId, Identity, MessageGraph, Node, PolicyVersion, SampledToken, Span, StopReason,
    TokenId,
};

use super::conversation::Conversation;
use turnwise_run::Failure;
use turnwise_run::form::Form;

/// Renders the whole conversation at once, as one branch. The assistant's messages are not samples, and a template gets
/// their thoughts under the key of the conversation, as from `transformers`.
pub(super) fn render(conversation: &Conversation, form: &Form) -> Result<MessageGraph, Failure> {
    let keys = conversation.thought_keys.iter().flatten();
    if let Some(unread) = keys.copied().find(|key| !form.reads_thoughts(key)) {
        tracing::warn!("the template does not read `{unread}`: these thoughts are not rendered");
    }
    let given = conversation.messages.iter().zip(&conversation.thought_keys);
    let given: Vec<Message> = given
        .map(|(message, key)| {
            let reasoning = message.reasoning.clone();
            let is_read = key.is_some_and(|key| form.reads_thoughts(key));
            Message { reasoning: reasoning.filter(|_| is_read), ..message.clone() }
        })
        .collect();
    let said: Vec<Said<'_>> = given.iter().map(Said::new).collect();
    let rendered = if conversation.leads_in {
        form.renderer.render(&said, &conversation.tools)
    } else {
        form.render_ended(&said, &conversation.tools)
    };
    let rendered = rendered.map_err(|error| Failure::refused_by(&error))?;
    let mut graph = MessageGraph::default();
    let mut parent = None;
    for (message, spans) in conversation.messages.iter().zip(rendered.messages) {
        let author = author_of(message);
        parent = Some(graph.push(Node { parent, author, message: message.clone(), spans }));
    }
    if let Some(last) = parent.filter(|_| !conversation.leads_in) {
        let behind = [rendered.generation, rendered.prefill].concat();
        graph.node_mut(last).spans.push(Span::Scaffold(behind));
    } else if conversation.leads_in {
        let spans = vec![Span::Scaffold(rendered.generation), Span::Forced(rendered.prefill)];
        let message = Message::assistant("");
        graph.push(Node { parent, author: Author::Policy, message, spans });
    }
    Ok(graph)
}

/// Plays the conversation as the agent of a run does: after each message of the assistant it continues with the next
/// one, and forks where the template rewrites history. The assistant's messages are written like demonstrations.
pub(super) async fn play(
    conversation: &Conversation,
    form: &Form,
) -> Result<MessageGraph, Failure> {
    let renderer = form.renderer.clone();
    let agents = ChatAgents::new(renderer);
    let mut agent = agents.agent(&identity(), conversation.tools.clone());
    let mut heard = Vec::new();
    let mut n_turns = 0;
    let mut ids: BTreeMap<&str, String> = BTreeMap::new();
    for (index, message) in conversation.messages.iter().enumerate() {
        if message.role != Role::Assistant {
            let id = message.tool_call_id.as_ref();
            let id = id.map(|id| ids.get(id.as_str()).unwrap_or(id).clone());
            heard.push(Message { tool_call_id: id, ..message.clone() });
            continue;
        }
        // The agent numbers the calls of each turn.
        let calls = message.tool_calls.iter().enumerate();
        ids.extend(calls.map(|(n, call)| (call.id.as_str(), format!("call_{n}"))));
        if heard.is_empty() {
            return Err(Failure::refused(format!(
                "message {index} is the assistant's, and no message precedes it"
            ))
            .help("without --branches the conversation is rendered as a whole"));
        }
        let before: Vec<Said<'_>> = conversation.messages[..index].iter().map(Said::new).collect();
        let opened = form.renderer.render(&before, &conversation.tools);
        let prefill = opened.map_err(|error| Failure::refused_by(&error))?.prefill;
        let turn = form.renderer.write_after(&prefill, &action(message, form));
        observe_and_act(&mut *agent, &mut heard, Demonstrated(turn)).await?;
        n_turns += 1;
    }
    let leads_in = conversation.leads_in && !heard.is_empty();
    if !heard.is_empty() {
        // A turn that consists of its end token shows its lead-in.
        let end = form.renderer.stop_tokens()[..1].to_vec();
        observe_and_act(&mut *agent, &mut heard, Demonstrated(end)).await?;
    }
    Ok(without_samples(&agent.into_graph(), n_turns, leads_in))
}

async fn observe_and_act(
    agent: &mut dyn turnwise_rollout::Agent,
    heard: &mut Vec<Message>,
    policy: Demonstrated,
) -> Result<(), Failure> {
    let room = Room { turn: policy.0.len(), now: policy.0.len() };
    agent
        .observe(&Observation::new(std::mem::take(heard)))
        .map_err(|error| Failure::refused_by(&error))?;
    agent.act(&policy, room).await.map_err(|error| Failure::refused_by(&error))?;
    Ok(())
}

/// A policy that returns these tokens.
struct Demonstrated(Vec<TokenId>);

#[async_trait]
impl Policy for Demonstrated {
    fn version(&self) -> PolicyVersion {
        PolicyVersion::default()
    }

    async fn sample(&self, _request: SampleRequest) -> Result<Sample, PolicyError> {
        let tokens = self.0.iter().map(|id| SampledToken::new(*id, 0.0, PolicyVersion::default()));
        let (tokens, engine) = (tokens.collect(), String::new());
        Ok(Sample { tokens, stop: StopReason::EndOfTurn, ..Sample::new(engine) })
    }
}

/// Returns the graph with the first `n_turns` turns as another speaker's text, and, if `leads_in`, the lead-in of the
/// next turn.
fn without_samples(played: &MessageGraph, n_turns: usize, leads_in: bool) -> MessageGraph {
    let mut graph = MessageGraph::default();
    let mut turn = 0;
    for id in played.ids() {
        let mut node = played.node(id).clone();
        let was_drawn = node.sampled().next().is_some();
        let is_last = was_drawn && turn == n_turns;
        if is_last && !leads_in {
            continue;
        }
        if node.author == Author::Policy && !is_last {
            node.author = Author::Fabricated;
        }
        node.spans = node.spans.into_iter().filter_map(|span| undrawn(span, is_last)).collect();
        turn += usize::from(was_drawn);
        graph.push(node);
    }
    graph
}

fn undrawn(span: Span, is_last: bool) -> Option<Span> {
    match span {
        Span::Sampled(_) if is_last => None,
        Span::Sampled(tokens) => Some(Span::Context(tokens.ids().to_vec())),
        other => Some(other),
    }
}

/// Returns the action that says a message. Thinking may be in the text; a model with tags for thinking writes those.
fn action(message: &Message, form: &Form) -> Action {
    if message.reasoning.is_none() && message.tool_calls.is_empty() && form.texts.has("<think>") {
        let read = parse_turn(&message.content);
        if read.reasoning.is_some() {
            return read;
        }
    }
    Action {
        text: message.content.clone(),
        reasoning: message.reasoning.clone(),
        calls: message.tool_calls.iter().cloned().map(CallAttempt::Call).collect(),
    }
}

fn author_of(message: &Message) -> Author {
    match message.role {
        Role::System => Author::System,
        Role::User => Author::Environment,
        Role::Assistant => Author::Fabricated,
        Role::Tool => Author::Tool,
    }
}

/// An arbitrary identity, because nothing is sampled or recorded.
fn identity() -> Identity {
    Identity {
        environment: String::new(),
        environment_version: 0,
        task: TaskKey::of(""),
        task_index: 0,
        group: GroupId(0),
        member: 0,
        attempt: 0,
        environment_seed: 0,
        sampling_seed: 0,
    }
}
